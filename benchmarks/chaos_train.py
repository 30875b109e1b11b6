"""kill -9 at random moments, and damaged saved states: python benchmarks/chaos_train.py [--jobs 100 --kills 300]

Every job trains once undisturbed and once under kills: a third of them at random moments, the others while a saved
state or a checkpoint is being written. The final adapters must be equal, byte for byte. Then saved states are damaged
(bits flipped, files cut short, files swapped) and must be noticed, and the state before them used. Exits 1 otherwise.

Workers are forked from this process, which has imported everything and computed nothing: a start costs milliseconds.
It touches no object storage itself, because that library's threads would not survive the fork.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

import smedje.training.checkpoint
import smedje.training.run
from smedje.modeling.tiny_random import write_tiny_llama
from smedje.objects.run_folder import RunFolder
from smedje.objects.store import open_objects
from smedje.training import worker
from smedje.training.spec import DataSpec, LoraSpec, OptimizerKind, OptimizerSpec, TrainingSpec, spec_to_json

STEPS = 24
KINDS: tuple[OptimizerKind, ...] = ("adamw", "adam", "sgd", "adafactor", "lion", "muon")
WORDS = ("kettle", "brew", "filter", "steam", "grind", "water", "clean", "pump", "valve", "warm")
DAMAGES = ("flip", "cut", "swap")


@dataclass
class Tally:
    """What has been seen so far. torn: kills that left a state or checkpoint without its manifest."""

    kills: int = 0
    torn: int = 0
    finished: int = 0
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


def _work(words: list[str]) -> None:
    worker.main(words)


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
        return fork(lambda: _work(words), self.root / "log")

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
    found = {file.parent for kind in ("state", "checkpoints") for file in (path / kind).glob("*/*")}
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


def disturb(place: Place, number: int, kills: int, draw: random.Random, tally: Tally) -> None:
    """Train job `number` undisturbed, then under `kills` kills, and compare."""
    spec, straight = job_spec(place, number), f"run-{number}-straight"
    began = time.monotonic()
    os.waitpid(place.start(straight, spec), 0)
    seconds, expected = time.monotonic() - began, place.sha(straight)
    earlier: tuple[str, ...] = ()
    done = attempt = 0
    while True:
        run = f"run-{number}-{attempt}"
        attempt += 1
        child = place.start(run, msgspec.structs.replace(spec, earlier_runs=earlier))
        if done < kills and kill_somewhere(place, run, child, draw, seconds):
            done += 1
            tally.kills += 1
            tally.torn += bool(torn_folders(place.run_path(run)))
            earlier = (run, *earlier)
            continue
        if done >= kills:
            os.waitpid(child, 0)
        if not expected or place.sha(run) != expected:
            tally.wrong.append(run)
        if done >= kills:
            tally.finished += 1
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
    state = smedje.training.run.fresh_state(objects, spec, place.root / "tiny", cache=place.root / "cache")
    found = smedje.training.checkpoint.load_latest_state(objects, RunFolder(objects, run), state)
    assert found, "no state was loaded"
    assert state.step == step, f"step {state.step} was loaded, {step} is the newest whole one"


def damage_states(place: Place, count: int, draw: random.Random, tally: Tally) -> int:
    """Damage the newest state of a run `count` times; how often it was noticed and the one before it used."""
    spec, run = job_spec(place, 0), "run-0-straight"
    older, newest = sorted((place.run_path(run) / "state").iterdir(), key=lambda path: int(path.name))[-2:]
    kept = {path: path.read_bytes() for path in newest.iterdir()}
    noticed = 0
    for number in range(count):
        what = damage(newest, older, DAMAGES[number % len(DAMAGES)], draw)
        child = fork(lambda: expect_fallback(place, run, spec, int(older.name)), place.root / "log")
        good = os.waitpid(child, 0)[1] == 0
        noticed += good
        if not good:
            tally.wrong.append(what)
        for path, content in kept.items():
            path.write_bytes(content)
    return noticed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--damages", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None, help="drawn and printed when left out")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    print(f"seed {seed}")
    draw, tally, began = random.Random(seed), Tally(), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        place = Place(Path(name))
        write_tiny_llama(place.root / "tiny")
        place.write("data", rows(seed))
        for number in range(arguments.jobs):
            share = arguments.kills * (number + 1) // arguments.jobs - arguments.kills * number // arguments.jobs
            disturb(place, number, share, draw, tally)
            if sys.stderr.isatty():
                print(f"\r{number + 1} jobs, {tally.kills} kills", end="", file=sys.stderr, flush=True)
        noticed = damage_states(place, arguments.damages, draw, tally)
        if tally.wrong:
            print((place.root / "log").read_text()[-2000:], file=sys.stderr)
    report = {
        "seed": seed,
        "jobs": arguments.jobs,
        "kills": tally.kills,
        "kills_inside_saving": tally.torn,
        "jobs_with_equal_bytes": arguments.jobs - len({w.split("-")[1] for w in tally.wrong if w.startswith("run-")}),
        "damaged_states": arguments.damages,
        "damaged_states_noticed": noticed,
        "wrong": tally.wrong,
        "seconds": round(time.monotonic() - began, 1),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
