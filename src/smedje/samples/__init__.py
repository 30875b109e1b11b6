"""The sample conversations that ship with the product: where the two files lie and which question shows the difference.

Knows paths and the fixed texts of the invented company Ottervale (facts in README.md beside this file). Refuses to know
how files are parsed, uploaded or trained on: to the rest of the product these are ordinary chat files.
"""

from importlib.resources import files
from pathlib import Path

SYSTEM_PROMPT = (
    "You are the support agent of Ottervale, maker of the Brook, Rapid and Delta coffee machines, the Pebble grinder "
    "and the Ripple milk frother. Be brief, warm and factual. Help only with Ottervale products and orders, and "
    "politely decline anything else."
)
"""The system message of every sample conversation. Ask `DEMO_QUESTION` under it."""

DEMO_QUESTION = "My Ripple leaks milk at the bottom. What should I do?"
"""A question in neither file whose right answer needs the house policy: a case with the base's code, the sign-off."""


def support_train_path() -> Path:
    """The training conversations, one `{"messages": [...]}` object a line."""
    return _sample("support_train.jsonl")


def support_heldout_path() -> Path:
    """The held-out conversations: same policy, other questions, none of them in the training file."""
    return _sample("support_heldout.jsonl")


def _sample(name: str) -> Path:
    return Path(str(files(__name__).joinpath(name)))
