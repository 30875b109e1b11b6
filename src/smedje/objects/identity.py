"""Which process is writing: a number and the moment it started, so that a number used again is never taken for it.

Both planes use it: a worker says it in its heartbeat, an executor keeps it in a handle. Knows nothing of either.
"""

from pathlib import Path

PROC = Path("/proc")


def start_mark(pid: int) -> str | None:
    """When a process started, as text that no other process with the same number ever has; None when there is none.

    Linux: the boot's id and clock ticks since boot, which stay the same when the wall clock is set. Elsewhere: the
    time in seconds.
    """
    if not PROC.joinpath("self/stat").exists():
        # Imported here: Linux, where most workers run, does without it.
        import psutil

        try:
            return f"{psutil.Process(pid).create_time():.2f}"
        except psutil.Error:
            return None
    try:
        # Fields after the command, which is in parentheses and may hold spaces: the 20th is the start (proc(5)).
        ticks = PROC.joinpath(str(pid), "stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
    return f"{_boot()}:{ticks}"


def same_boot(mark: str) -> bool:
    """Whether a mark was taken since this machine was last started; True where marks do not tell."""
    return not PROC.joinpath("self/stat").exists() or mark.partition(":")[0] == _boot()


def _boot() -> str:
    return PROC.joinpath("sys/kernel/random/boot_id").read_text().strip()
