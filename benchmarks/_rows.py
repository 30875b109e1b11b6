"""Rows of ids and labels in the shapes that trainers want: the product's dataset, and a padded batch of tensors.

Knows no engine; peers import it from environments without smedje.
"""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from smedje.data.encode import EncodedDataset

Row = dict[str, list[int]]


def dataset_of(rows: list[Row]) -> "EncodedDataset":
    """Rows of ids and labels as the product keeps them."""
    from smedje.data.encode import EncodedDataset

    found = EncodedDataset()
    for line, row in enumerate(rows, start=1):
        found.tokens.extend(row["input_ids"])
        found.weights.extend(0.0 if label < 0 else 1.0 for label in row["labels"])
        found.offsets.append(len(found.tokens))
        found.lines.append(line)
        found.groups.append(line)
    return found


def padded(rows: list[Row]) -> dict[str, torch.Tensor]:
    """One batch, padded on the right: input_ids [R, L], attention_mask [R, L], labels [R, L] with -100 for no loss."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for number, row in enumerate(rows):
        size = len(row["input_ids"])
        ids[number, :size] = torch.tensor(row["input_ids"])
        labels[number, :size] = torch.tensor(row["labels"])
        mask[number, :size] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
