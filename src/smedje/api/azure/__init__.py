"""Azure's dialects: deployment paths, classic authoring, and the model inference route."""
