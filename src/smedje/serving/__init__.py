"""Engines: token ids in, token ids out, many adapters on one resident base model; no database."""
