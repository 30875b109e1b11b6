"""Bytes that no row names: what a server that died in the middle left in object storage and beside it.

Knows which prefixes are whose. Only what has lain untouched for a day is taken, so that nothing on its way into a row
is; prefixes that it does not know it leaves alone.
"""

from collections.abc import Iterator

from smedje.domain.files import content_key
from smedje.domain.jobs import TERMINAL
from smedje.objects.store import ObjectInfo
from smedje.services.context import Context
from smedje.services.removal import CACHE, purge
from smedje.store import cascade
from smedje.store import files as file_rows

UNTOUCHED_SECONDS = 24 * 3600
BESIDE_FILES = ("reports", "insights", "lineage")
ENDED = frozenset(status.value for status in TERMINAL)


def collect(ctx: Context) -> int:
    """Remove orphans; how many objects and logs went."""
    count = 0
    before = ctx.now() - UNTOUCHED_SECONDS
    with ctx.database.transaction() as tx:
        ids, digests = cascade.known_files(tx)
        runs, adapters = cascade.known_runs(tx), cascade.known_adapters(tx)
    for found in ctx.objects.list("sha256"):
        if found.modified < before and found.key.rpartition("/")[2] not in digests:
            count += drop_content(ctx, found.key.rpartition("/")[2])
    for folder in BESIDE_FILES:
        for found in ctx.objects.list(folder):
            file_id = found.key.rpartition("/")[2].partition(".")[0]
            if found.modified < before and file_id not in ids:
                purge(ctx, [found.key])
                count += 1
    for prefix, objects in _of_runs(ctx, runs, adapters):
        if max(one.modified for one in objects) < before:
            purge(ctx, [prefix])
            count += len(objects)
    for log in (ctx.home / "logs").glob("run-*.log"):
        if log.stem not in runs and log.stat().st_mtime < before:
            log.unlink(missing_ok=True)
            count += 1
    return count


def unfinished(ctx: Context) -> int:
    """Remove what killed workers, engines and servers were writing or fetching; how many files. Safe at any time."""
    return ctx.objects.sweep(ctx.home / CACHE)


def _of_runs(ctx: Context, runs: dict[str, str], adapters: set[str]) -> Iterator[tuple[str, list[ObjectInfo]]]:
    """Prefixes below runs/ that nothing needs: of unknown runs everything; of runs whose job has ended the saved state
    and checkpoints that are not recorded."""
    groups: dict[str, list[ObjectInfo]] = {}
    for found in ctx.objects.list("runs"):
        parts = found.key.split("/")
        run_id = parts[1]
        if run_id not in runs:
            prefix = f"runs/{run_id}"
        elif runs[run_id] not in ENDED or len(parts) < 4:
            continue
        elif parts[2] == "state":
            prefix = f"runs/{run_id}/state"
        elif parts[2] == "checkpoints" and "/".join(parts[:4]) not in adapters:
            prefix = "/".join(parts[:4])
        else:
            continue
        groups.setdefault(prefix, []).append(found)
    yield from groups.items()


def drop_content(ctx: Context, sha256: str) -> int:
    """Remove bytes by their digest unless a file has them; how many objects went."""
    with ctx.database.transaction() as tx:
        # Asked for the lock that it takes: nobody records a file with these bytes meanwhile.
        if file_rows.digest_in_use(tx, sha256):
            return 0
        ctx.objects.forget(content_key(sha256), ctx.home / CACHE)
        ctx.objects.delete(content_key(sha256))
    return 1
