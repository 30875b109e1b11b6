"""OpenAI-shaped routes: bodies, conversions and routes of one resource a file."""
