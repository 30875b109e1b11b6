"""Migrations: the schema's history, one file a step, run by Database.migrate. Never edit one that was released."""
