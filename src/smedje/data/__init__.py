"""Uploaded bytes to checked examples to batches; no torch, no database."""
