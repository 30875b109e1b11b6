"""Upkeep: what a server does by itself every so often. Retention, what was left half erased, orphans, storage's usage.

Each step is safe to repeat and for several servers at once. Knows when; the steps know how.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from smedje.domain.ids import USAGE, new_id
from smedje.domain.usage import UsageRecord
from smedje.services import erasure, orphans, retention
from smedje.services.context import Context
from smedje.services.locations import announce_location
from smedje.store import upkeep as store
from smedje.store import usage as usage_rows
from smedje.store import webhooks as webhook_rows

log = logging.getLogger("smedje.upkeep")
HOUR, DAY = 3600, 24 * 3600
DELIVERY_DAYS = 90


def meter_storage(ctx: Context) -> int:
    """Turn what has been stored since the last time into usage, one row a project; how many rows."""
    now, count = ctx.seconds(), 0
    with ctx.database.transaction() as tx:
        stored, until = store.stored_bytes(tx), store.metered_until(tx)
        for project_id, size in stored.items():
            seconds = now - until.get(project_id, now)
            store.set_metered(tx, project_id, now)
            if seconds > 0 and size > 0:
                record = UsageRecord(
                    id=new_id(USAGE),
                    project_id=project_id,
                    key_id=None,
                    kind="storage",
                    model="storage",
                    byte_seconds=size * seconds,
                    created_at=now,
                )
                usage_rows.insert_usage(tx, record)
                count += 1
        for project_id in until.keys() - stored.keys():
            store.set_metered(tx, project_id, now)
    return count


def forget_deliveries(ctx: Context) -> int:
    """Forget what webhooks were told long ago."""
    with ctx.database.transaction() as tx:
        return webhook_rows.delete_ended_deliveries(tx, before=ctx.seconds() - DELIVERY_DAYS * DAY)


STEPS: dict[str, tuple[int, Callable[[Context], int]]] = {
    "location": (60, announce_location),
    "erasures": (60, erasure.resume),
    "storage": (HOUR, meter_storage),
    "retention": (HOUR, retention.apply_all),
    "unfinished": (HOUR, orphans.unfinished),
    "deliveries": (DAY, forget_deliveries),
    "orphans": (DAY, orphans.collect),
}


@dataclass
class Upkeep:
    """Owns when each step was last done by this server."""

    ctx: Context
    _done: dict[str, float] = field(default_factory=dict)

    def step(self) -> dict[str, int]:
        """Do what is due; what each step counted. One that fails is logged and done again when it is due again."""
        counts = {}
        for name, (every, run) in STEPS.items():
            now = self.ctx.now()
            if now - self._done.get(name, float("-inf")) < every:
                continue
            self._done[name] = now
            try:
                counts[name] = run(self.ctx)
            except Exception:
                # The next step does not rest on this one.
                log.exception("upkeep failed: %s", name)
        return counts

    def run_forever(self, stop: threading.Event, *, interval: float = 5.0) -> None:
        """Step after step until `stop` is set."""
        while not stop.wait(interval):
            self.step()
