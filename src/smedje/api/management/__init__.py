"""Management routes under /api: what OpenAI's surface has no word for."""
