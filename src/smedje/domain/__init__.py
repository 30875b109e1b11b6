"""Nouns and pure state changes. Standard library only; no input or output."""
