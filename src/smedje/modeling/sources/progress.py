"""One step of getting a base model, as a value. Knows nothing of how it is shown."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PullProgress:
    """How far a pull has come.

    stage: present, waiting, listing, downloading, extracting, copying, converting, verifying, installing or done.
    file: the file it concerns, empty for the whole. bytes_total is 0 when it is not known.
    """

    stage: str
    file: str = ""
    bytes_done: int = 0
    bytes_total: int = 0
