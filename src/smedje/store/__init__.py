"""Rows: facts of a few KB each, returned as domain values, never as rows."""
