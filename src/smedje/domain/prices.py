"""Price tables and what counted usage costs under them. Whole numbers only, so that sums are exact.

A price is in millionths of the currency for a million tokens, so one token's price is in millionths of millionths.
"""

from dataclasses import dataclass

from smedje.domain.usage import UsageRecord

# One unit of the currency in the smallest amount that costs are counted in.
UNIT = 1_000_000_000_000
MILLIONTH = UNIT // 1_000_000
GB_DAY = 10**9 * 24 * 3600
# What failed through no fault of the customer's is metered and not charged.
FREE = "training_failed"


@dataclass(frozen=True, kw_only=True)
class PriceTable:
    """Prices from a moment on. An idle engine or deployment costs nothing, whatever the table says.

    version: 0 is the built-in table; every change counts up. training_tokens, prompt_tokens, completion_tokens:
    millionths of the currency for a million. device_hour: millionths for an hour of training. storage_gb_day:
    millionths for 10^9 bytes of files and checkpoints kept for a day.
    """

    version: int
    valid_from: int
    currency: str
    training_tokens: int
    prompt_tokens: int
    completion_tokens: int
    device_hour: int
    storage_gb_day: int = 0

    def cost(self, record: UsageRecord) -> int:
        """What usage costs, in units of 1e-12 of the currency. Serving is paid by the token alone, a failed job not."""
        if record.kind == FREE:
            return 0
        tokens = (
            record.trained_tokens * self.training_tokens
            + record.prompt_tokens * self.prompt_tokens
            + record.completion_tokens * self.completion_tokens
        )
        seconds = record.seconds if record.kind == "training" else 0.0
        stored = record.byte_seconds * self.storage_gb_day * MILLIONTH // GB_DAY
        return tokens + stored + round(seconds * 1000) * self.device_hour * MILLIONTH // 3_600_000


# Until an owner sets prices: the order of what clouds ask for small models, to show where the money would go.
BUILT_IN = PriceTable(
    version=0,
    valid_from=0,
    currency="USD",
    training_tokens=3_000_000,
    prompt_tokens=130_000,
    completion_tokens=520_000,
    device_hour=0,
    storage_gb_day=700,
)


def millionths(cost: int) -> int:
    """A cost in millionths of the currency, rounded up, so that a budget is never overrun by rounding."""
    return -(-cost // MILLIONTH)
