"""The training worker: `python -m smedje.training.worker --objects URL --run RUN_ID --cache DIR`.

Reads the spec from the run folder, trains, and says everything through the folder: events, checkpoints, saved state,
a heartbeat, and one result at the very end. Knows no database and no HTTP; goes on working when nobody listens.
A waiting process that becomes a worker (training/warm.py) hands over what it holds in memory.
"""

import argparse
import ctypes
import logging
import os
import resource
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from smedje.domain.runs import Control, Outcome, RunEvent, RunResult
from smedje.errors import SmedjeError
from smedje.objects.run_folder import RunFolder
from smedje.objects.store import Objects, open_objects
from smedje.training.spec import spec_from_json

if TYPE_CHECKING:
    from smedje.training.resident import Resident

HEARTBEAT_SECONDS = 2.0
# Kernels that oneDNN keeps ready. A stream of another length needs about thirty new ones, 0.6 MiB each, so that its
# own bound of 1024 costs more memory than small jobs take, for kernels that are hardly ever used again.
KERNELS_KEPT = 128
M_ARENA_MAX = -8  # malloc.h of the GNU C library
log = logging.getLogger("smedje.training")


class Reporter:
    """Collects events and puts them into the run folder at most twice a second."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._waiting: list[RunEvent] = []
        self._last = 0.0

    def say(self, event: RunEvent) -> None:
        """Hand over an event; it is written now or with the next ones."""
        self._waiting.append(event)
        if time.monotonic() - self._last >= 0.5:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        if self._waiting:
            self._folder.emit(self._waiting)
            self._waiting = []
        self._last = time.monotonic()


def bound_memory() -> None:
    """Keep what is not tensors small, before anything is computed: kernels, and heaps of threads on their own."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS_KEPT))
    if sys.platform == "linux":
        # Streams side by side would each fill a heap of their own, and no thread gets what another has freed.
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def beat(folder: RunFolder, stop: threading.Event) -> None:
    """Say every two seconds that this process lives, and which process it is, so that a restarted server finds it."""
    while True:
        folder.heartbeat({"pid": os.getpid(), "at": time.time()})
        if stop.wait(HEARTBEAT_SECONDS):
            return


def train_run(
    objects: Objects, folder: RunFolder, reporter: Reporter, *, cache: Path, resident: "Resident | None" = None
) -> RunResult:
    """Do the whole run; returns its result. Raises SmedjeError for what a person can mend."""
    entered = time.monotonic()
    spec = spec_from_json(folder.read_spec())
    # Imported here, after the heartbeat has begun: torch alone takes seconds on a busy machine.
    from smedje.training.checkpoint import save_checkpoint, save_state
    from smedje.training.loop import train
    from smedje.training.run import label_names, prepare
    from smedje.training.run_events import record_event, resolved_event

    began = time.monotonic()
    job, state = prepare(objects, spec, cache=cache, resident=resident)
    reporter.say(resolved_event(spec, job, state, load_seconds=time.monotonic() - began))
    began, saved, first_step = time.monotonic(), time.monotonic(), state.step
    stepping = began
    for record in train(job, state):
        reporter.say(record_event(record, job, speed=(state.step - first_step, time.monotonic() - stepping)))
        if record.step == 0:
            # Measuring the base model is no step: it must not count in the time that the steps left will take.
            stepping = time.monotonic()
        elif record.step == first_step + 1:
            reporter.flush()
        if record.keep:
            figures = {k: v for k, v in record_event(record, job).data.items() if isinstance(v, float)}
            key = save_checkpoint(
                objects, folder, state, base_model=spec.base_model, metrics=figures, labels=label_names(job)
            )
            data = {"step": state.step, "key": key, "metrics": figures}
            reporter.say(RunEvent(kind="checkpoint", at=time.time(), data=data))
        asked = folder.requested()
        if asked is Control.CANCEL:
            return RunResult(
                outcome=Outcome.CANCELLED, step=state.step, data=_totals(state.trained_tokens, entered, began)
            )
        if not record.last and (asked is Control.PAUSE or time.monotonic() - saved >= spec.state_seconds):
            # What was said comes first: a run that goes on from this state does not say it again.
            reporter.flush()
            save_state(objects, folder, state)
            saved = time.monotonic()
        if asked is Control.PAUSE and not record.last:
            return RunResult(
                outcome=Outcome.PAUSED, step=state.step, data=_totals(state.trained_tokens, entered, began)
            )
    totals = _totals(state.trained_tokens, entered, began)
    if state.step < job.plan.total_steps:
        totals["stopped_early"] = state.step
        reporter.say(_early(state.step, state.best.step))
    if spec.watch.best:
        totals["model_step"] = state.best.step
    return RunResult(outcome=Outcome.SUCCEEDED, step=state.step, data=totals)


def _early(step: int, best: int) -> RunEvent:
    message = (
        f"Stopped early after step {step}: the validation loss was lowest at step {best} and has not fallen since."
    )
    return RunEvent(kind="message", at=time.time(), message=message)


def _totals(trained_tokens: int, entered: float, began: float) -> dict[str, float]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "trained_tokens": trained_tokens,
        "seconds": time.monotonic() - began,
        "start_seconds": began - entered,
        "peak_memory_bytes": peak,
    }


def main(argv: Sequence[str] | None = None, *, resident: "Resident | None" = None) -> int:
    """Run one training run to its result; the exit code is 0 whenever a result was written.

    resident: a base model that is in memory already; used where it is the run's own and unchanged.
    """
    parser = argparse.ArgumentParser(prog="smedje.training.worker")
    parser.add_argument("--objects", required=True, help="object storage URL")
    parser.add_argument("--run", required=True, help="run id")
    parser.add_argument("--cache", required=True, type=Path, help="folder for copies of remote objects")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    bound_memory()
    objects = open_objects(arguments.objects)
    folder = RunFolder(objects, arguments.run)
    stop = threading.Event()
    pulse = threading.Thread(target=beat, args=(folder, stop), daemon=True)
    pulse.start()
    reporter = Reporter(folder)
    try:
        result = train_run(objects, folder, reporter, cache=arguments.cache, resident=resident)
    except SmedjeError as problem:
        log.warning("run failed: %s", problem.code)
        result = RunResult(
            outcome=Outcome.FAILED,
            error_code=problem.code,
            error_message=problem.message,
            error_param=problem.param,
        )
    except Exception as problem:
        # The trace goes to the run's own log; the job's error names the kind of fault and never carries row text.
        log.exception("run failed")
        result = RunResult(
            outcome=Outcome.FAILED,
            error_code="server_error",
            error_message=f"The training worker failed with {type(problem).__name__}. Its log has the trace.",
        )
    reporter.flush()
    folder.write_result(result)
    stop.set()
    pulse.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
