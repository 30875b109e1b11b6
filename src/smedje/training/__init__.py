"""One training run: spec in, events and checkpoints out; no database, no HTTP."""
