"""What an executor is: something that starts a worker process somewhere and finds it again.

Knows arguments, environment and handles; knows nothing of jobs, databases or what a worker does.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

# What a worker may inherit: finding programs, libraries, devices, caches and buckets. Nothing of ours.
INHERITED = frozenset(
    {
        "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME",
        "LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "PATHEXT", "VIRTUAL_ENV", "PYTHONPATH",
        "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "NUMBER_OF_PROCESSORS",
    }
)  # fmt: skip
INHERITED_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "ROCR_", "HIP_", "OMP_", "GOMP_", "MKL_", "KMP_", "TORCH", "PYTORCH_")
BUCKET_PREFIXES = {"s3": ("AWS_",), "az": ("AZURE_",), "gs": ("GOOGLE_",)}
OURS = "SMEDJE_"


class Executor(Protocol):
    """Starts workers and finds them again. Every method may be called from any thread."""

    name: str

    def start(self, run_id: str, argv: Sequence[str], *, env: Mapping[str, str], log: Path) -> dict[str, Any]:
        """Start a worker and return its handle: small JSON that any later process can use with the same executor.

        env: the worker's whole environment; names that begin with SMEDJE_ are left out. log: a file that its output is
        appended to. Starting the same run twice while the first worker lives is the caller's mistake.
        Raises Unavailable when the worker cannot be started.
        """

    def adopt(self, pid: int) -> dict[str, Any]:
        """A handle for a worker whose own was never kept, from the process number that it says of itself."""

    def alive(self, handle: Mapping[str, Any]) -> bool:
        """Whether this very worker still runs. A finished one, a zombie or another process with its number does not."""

    def stop(self, handle: Mapping[str, Any], *, grace_seconds: float) -> None:
        """Ask the worker to end, end it by force after `grace_seconds`, and return once it and its children are gone.

        Stopping one that has ended is no error, and still ends children that it left behind.
        """


def worker_environment(environ: Mapping[str, str], *, objects_url: str) -> dict[str, str]:
    """What a worker may see of this process's environment.

    An allow-list, so that no secret reaches a worker by being forgotten: paths, locale, devices, thread counts, and
    the bucket's credentials when `objects_url` is a bucket, since the worker must read and write it.
    """
    prefixes = INHERITED_PREFIXES + BUCKET_PREFIXES.get(objects_url.partition(":")[0], ())
    kept = {
        name: value for name, value in environ.items() if name.upper() in INHERITED or name.upper().startswith(prefixes)
    }
    # Compute threads that spin while they wait steal the cores of everything else, their own team included: on a busy
    # two-core machine small products took 17 s with sleeping threads, 35 s with one thread, 98 s with spinning ones.
    # One heap for all threads: memory that a thread of one step gives back serves another of the next. With a heap for
    # each, a run of short examples took 2.9 GB in place of 2.0.
    return {"OMP_WAIT_POLICY": "PASSIVE", "MALLOC_ARENA_MAX": "1", **kept}
