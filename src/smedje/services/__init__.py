"""Use cases: ownership checks and transactions live here, and only here."""
