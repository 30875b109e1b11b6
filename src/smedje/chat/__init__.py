"""Messages to token ids and back; no torch."""
