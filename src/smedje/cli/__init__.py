"""The `smedje` command. Imports lazily, so that help is quick."""
