"""Which answers of a file are labels, so that a split can give each part its share of them. Knows answers only."""

from pathlib import Path

from smedje.data.forms import read_items
from smedje.data.said import LONGEST_LABEL, MOST_LABELS, answer, label_counts


def answer_labels(path: Path) -> dict[int, str] | None:
    """The last answer of each valid line by its number, where the answers look like labels; else None.

    Chats are told from labels by their first lines, so that a large file costs little.
    """
    answers: dict[int, str] = {}
    different: set[str] = set()
    for item in read_items(path):
        if item.other is not None:
            return None
        if item.example is not None:
            said = answer(item.example)
            different.add(said)
            if len(different) > MOST_LABELS or len(said) > LONGEST_LABEL:
                return None
            answers[item.line] = said
    return answers if label_counts(list(answers.values())) else None
