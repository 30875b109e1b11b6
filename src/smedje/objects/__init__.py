"""Bytes under keys: files, checkpoints and run folders, on a local disk or a bucket."""
