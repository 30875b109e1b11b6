"""kill -9 at random moments, and damaged saved states: python benchmarks/chaos_train.py [--jobs 100 --kills 300]

Every job trains once undisturbed and once under kills: a third of them at random moments, the others while a saved
state or a checkpoint is being written. The final adapters must be equal, byte for byte. Then saved states are damaged
(bits flipped, files cut short, files swapped) and must be noticed, and the state before them used. Exits 1 otherwise.

Jobs are drawn by number from the seed and run in two lanes. Workers are forked from a process that holds libraries and
base model and has computed nothing, as the server's waiting process does: a start costs milliseconds. With --json the
jobs done so far are kept beside it, so the same command goes on after an interruption.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch

import smedje.training.checkpoint
import smedje.training.run
from smedje.modeling.tiny_random import write_tiny_llama
from smedje.objects.run_folder import RunFolder
from smedje.objects.store import open_objects
from smedje.training import worker
from smedje.training.optimizer import make_optimizer
from smedje.training.resident import Resident, load_resident
from smedje.training.spec import DataSpec, LoraSpec, OptimizerKind, OptimizerSpec, TrainingSpec, spec_to_json

STEPS = 24
KINDS: tuple[OptimizerKind, ...] = ("adamw", "adam", "sgd", "adafactor", "lion", "muon")
WORDS = ("kettle", "brew", "filter", "steam", "grind", "water", "clean", "pump", "valve", "warm")
DAMAGES = ("flip", "cut", "swap")


@dataclass
class Tally:
    """What one job has shown. torn: kills that left a state or checkpoint without its manifest. noticed: of damages."""

    job: int
    kills: int = 0
    torn: int = 0
    damages: int = 0
    noticed: int = 0
    wrong: list[str] = field(default_factory=list)


def fork(work: Callable[[], None], log: Path) -> int:
    """Run `work` in a child; its process number. The child ends with 0, or with 1 and a trace in `log`."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        work()
        status = 0
    except BaseException as problem:
        print(repr(problem), file=sys.stderr)
    finally:
        os._exit(status)


def rows(seed: int) -> bytes:
    """Twenty short chat examples."""
    draw = random.Random(seed)

    def say() -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 5)))

    chats = [[{"role": "user", "content": say()}, {"role": "assistant", "content": say()}] for _ in range(20)]
    return "\n".join(json.dumps({"messages": messages}) for messages in chats).encode()


@dataclass(frozen=True)
class Place:
    """A folder with a tiny base model and object storage."""

    root: Path
    resident: Resident | None

    @property
    def url(self) -> str:
        """The object storage."""
        return (self.root / "objects").as_uri()

    def run_path(self, run: str) -> Path:
        """Where a run's files lie."""
        return self.root / "objects" / "runs" / run

    def write(self, key: str, content: bytes) -> None:
        """Put an object by writing its file."""
        path = self.root / "objects" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def start(self, run: str, spec: TrainingSpec) -> int:
        """Start a worker on this spec; its process number."""
        self.write(f"runs/{run}/spec.json", spec_to_json(spec))
        words = ["--objects", self.url, "--run", run, "--cache", str(self.root / "cache")]

        def work() -> None:
            worker.main(words, resident=self.resident)

        return fork(work, self.root / "log")

    def sha(self, run: str) -> str:
        """SHA-256 of the run's final adapter, empty without one."""
        path = self.run_path(run) / "checkpoints"
        found = sorted(path.glob("*/adapter_model.safetensors"), key=lambda one: int(one.parent.name))
        return hashlib.sha256(found[-1].read_bytes()).hexdigest() if found else ""


def job_spec(place: Place, number: int) -> TrainingSpec:
    """Job `number`: an optimizer in turn, dropout on, state saved after every step."""
    return TrainingSpec(
        job_id=f"job-{number}",
        base_model="tiny",
        base_folder=str(place.root / "tiny"),
        seed=number,
        today="2026-01-31",
        data=DataSpec(training_key="data", validation_fraction=0.2, max_tokens=400),
        n_epochs=50,
        batch_size=4,
        max_steps=STEPS,
        lora=LoraSpec(rank=2, alpha=4.0, dropout=0.1),
        optimizer=OptimizerSpec(kind=KINDS[number % len(KINDS)], learning_rate=1e-2),
        state_seconds=0.0,
        threads=1,
    )


def torn_folders(path: Path) -> set[Path]:
    """Folders of states and checkpoints that have a file and no manifest."""
    found: set[Path] = set()
    for kind in ("state", "checkpoints"):
        # A worker that goes on may remove an old state's folder while it is listed.
        with suppress(FileNotFoundError):
            found |= {file.parent for file in (path / kind).glob("*/*")}
    return {folder for folder in found if not (folder / "manifest.json").exists()}


def kill_somewhere(place: Place, run: str, child: int, draw: random.Random, seconds: float) -> bool:
    """Kill the child at a random moment or while it saves; False when it had ended before."""
    deadline = time.monotonic() + draw.uniform(0.0, seconds)
    aimed, saves = draw.random() < 2 / 3, draw.randint(1, 4)
    seen: set[Path] = set()
    while time.monotonic() < deadline or aimed:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        if aimed and (fresh := torn_folders(place.run_path(run)) - seen):
            seen |= fresh
            if len(seen) >= saves:
                break
        time.sleep(0.0001)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def disturb(place: Place, kills: int, draw: random.Random, tally: Tally) -> None:
    """Train a job undisturbed, then under `kills` kills, and compare."""
    number = tally.job
    spec, straight = job_spec(place, number), f"run-{number}-straight"
    began = time.monotonic()
    os.waitpid(place.start(straight, spec), 0)
    seconds, expected = time.monotonic() - began, place.sha(straight)
    earlier: tuple[str, ...] = ()
    attempt = 0
    while True:
        run = f"run-{number}-{attempt}"
        attempt += 1
        child = place.start(run, msgspec.structs.replace(spec, earlier_runs=earlier))
        left = kills - tally.kills
        if left and kill_somewhere(place, run, child, draw, seconds):
            tally.kills += 1
            tally.torn += bool(torn_folders(place.run_path(run)))
            earlier = (run, *earlier)
            continue
        if not left:
            os.waitpid(child, 0)
        if not expected or place.sha(run) != expected:
            tally.wrong.append(run)
        if not left:
            return
        earlier = ()  # it ended before all kills were used: once more from the beginning


def damage(folder: Path, other: Path, kind: str, draw: random.Random) -> str:
    """Damage one file of a saved state; what was done, in words."""
    path = folder / draw.choice(("manifest.json", "state.safetensors"))
    raw = bytearray(path.read_bytes())
    if kind == "flip":
        place = draw.randrange(len(raw) * 8)
        raw[place // 8] ^= 1 << place % 8
    elif kind == "cut":
        del raw[draw.randrange(len(raw)) :]
    else:
        raw = bytearray((other / path.name).read_bytes())
    path.write_bytes(raw)
    return f"{kind} {path.name}"


def expect_fallback(place: Place, run: str, spec: TrainingSpec, step: int) -> None:
    """Raises unless the newest whole state of the run is that of `step`."""
    objects = open_objects(place.url)
    assert place.resident is not None
    cache = place.root / "cache"
    state = smedje.training.run.fresh_state(objects, spec, place.resident.decoder, cache=cache)
    found = smedje.training.checkpoint.load_latest_state(objects, RunFolder(objects, run), state, cache=cache)
    assert found, "no state was loaded"
    assert state.step == step, f"step {state.step} was loaded, {step} is the newest whole one"


def damage_states(place: Place, count: int, draw: random.Random, tally: Tally) -> None:
    """Damage the newest state of the undisturbed run `count` times; each must be noticed and the one before used."""
    spec, run = job_spec(place, tally.job), f"run-{tally.job}-straight"
    older, newest = sorted((place.run_path(run) / "state").iterdir(), key=lambda path: int(path.name))[-2:]
    kept = {path: path.read_bytes() for path in newest.iterdir()}
    for number in range(count):
        what = damage(newest, older, DAMAGES[(tally.job + number) % len(DAMAGES)], draw)
        child = fork(lambda: expect_fallback(place, run, spec, int(older.name)), place.root / "log")
        good = os.waitpid(child, 0)[1] == 0
        tally.damages += 1
        tally.noticed += good
        if not good:
            tally.wrong.append(f"{run} {what}")
        for path, content in kept.items():
            path.write_bytes(content)


def share(total: int, number: int, jobs: int) -> int:
    """What falls to job `number` when `total` is spread evenly."""
    return total * (number + 1) // jobs - total * number // jobs


def lane(place: Place, numbers: list[int], arguments: argparse.Namespace, seed: int) -> None:
    """Do these jobs one after the other; each one done is a line of the journal. Files of good jobs are removed."""
    parent = os.getppid()
    for number in numbers:
        if os.getppid() != parent:
            return  # nobody listens any more
        draw, tally = random.Random(f"{seed} {number}"), Tally(job=number)
        disturb(place, share(arguments.kills, number, arguments.jobs), draw, tally)
        damage_states(place, share(arguments.damages, number, arguments.jobs), draw, tally)
        with (place.root / "journal").open("a") as journal:
            journal.write(json.dumps(asdict(tally)) + "\n")
        if not tally.wrong:
            for path in (place.root / "objects" / "runs").glob(f"run-{number}-*"):
                shutil.rmtree(path)


def watch(place: Place, children: list[int], tallies: list[Tally], jobs: int, keep: Path | None) -> None:
    """Collect what the lanes write until they have ended; tell how far they are, and keep it."""
    began, at_first, seen = time.monotonic(), len(tallies), 0
    while children:
        children = [child for child in children if os.waitpid(child, os.WNOHANG)[0] == 0]
        journal = place.root / "journal"
        lines = journal.read_text().splitlines(keepends=True) if journal.exists() else []
        for line in (fresh := [line for line in lines[seen:] if line.endswith("\n")]):
            tallies.append(Tally(**json.loads(line)))
            if keep is not None:
                with keep.open("a") as kept:
                    kept.write(line)
        seen += len(fresh)
        if fresh:
            done, spent = len(tallies) - at_first, time.monotonic() - began
            left = spent / done * (jobs - len(tallies))
            kills, noticed = sum(t.kills for t in tallies), sum(t.noticed for t in tallies)
            words = f"{len(tallies)} of {jobs} jobs, {kills} kills, {noticed} damages noticed"
            print(f"{words}, about {left / 60:.1f} min left", file=sys.stderr, flush=True)
        time.sleep(0.2)


def taken_up(keep: Path | None, arguments: argparse.Namespace) -> tuple[int, list[Tally]]:
    """The seed, and the jobs that an interrupted run with these numbers has done."""
    wanted = {"jobs": arguments.jobs, "kills": arguments.kills, "damages": arguments.damages}
    if keep is not None and keep.exists():
        first, *lines = keep.read_text().splitlines(keepends=True)
        head = json.loads(first)
        if {name: head[name] for name in wanted} == wanted and arguments.seed in (None, head["seed"]):
            return head["seed"], [Tally(**json.loads(line)) for line in lines if line.endswith("\n")]
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    if keep is not None:
        keep.write_text(json.dumps({"seed": seed, **wanted}) + "\n")
    return seed, []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--damages", type=int, default=200)
    parser.add_argument("--lanes", type=int, default=2, help="jobs at once")
    parser.add_argument("--seed", type=int, default=None, help="drawn and printed when left out")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    keep = arguments.json.with_suffix(".part") if arguments.json else None
    seed, tallies = taken_up(keep, arguments)
    print(f"seed {seed}, {len(tallies)} jobs were done before")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_tiny_llama(root / "tiny")
        place = Place(root, ready(root / "tiny"))
        place.write("data", rows(seed))
        done = {tally.job for tally in tallies}
        left = [number for number in range(arguments.jobs) if number not in done]
        lanes = [left[one :: arguments.lanes] for one in range(arguments.lanes)]
        children = [
            fork(lambda mine=mine: lane(place, mine, arguments, seed), root / "log")  # type: ignore[misc]
            for mine in lanes
        ]
        watch(place, children, tallies, arguments.jobs, keep)
        if len(tallies) < arguments.jobs or any(tally.wrong for tally in tallies):
            print((root / "log").read_text()[-4000:], file=sys.stderr)
    report = summary(tallies, arguments, seed)
    report["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(report, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
        arguments.json.with_suffix(".part").unlink()
    return 0 if report["passed"] else 1


def ready(base: Path) -> Resident | None:
    """What workers need, in memory, with nothing computed by more than one thread."""
    torch.set_num_threads(1)
    for kind in KINDS:
        make_optimizer([torch.nn.Parameter(torch.zeros(2, 2))], OptimizerSpec(kind=kind))
    return load_resident(base)


def summary(tallies: list[Tally], arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """All counts, and whether everything was as it must be."""
    wrong = [one for tally in tallies for one in tally.wrong]
    unequal = sum(any(" " not in one for one in tally.wrong) for tally in tallies)
    report: dict[str, Any] = {
        "seed": seed,
        "jobs": len(tallies),
        "kills": sum(tally.kills for tally in tallies),
        "kills_inside_saving": sum(tally.torn for tally in tallies),
        "jobs_with_equal_bytes": len(tallies) - unequal,
        "damaged_states": sum(tally.damages for tally in tallies),
        "damaged_states_noticed": sum(tally.noticed for tally in tallies),
        "wrong": wrong,
    }
    whole = (report["jobs"], report["kills"], report["damaged_states"])
    report["passed"] = not wrong and whole == (arguments.jobs, arguments.kills, arguments.damages)
    return report


if __name__ == "__main__":
    sys.exit(main())
