"""Tiny training runs for tests: a random two-layer model with its own byte-level tokenizer, and chat rows."""

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from smedje.data.preference import SPELLINGS
from smedje.modeling.tiny_random import write_tiny_llama, write_tiny_phi3
from smedje.objects.run_folder import RunFolder
from smedje.objects.store import Objects, open_objects
from smedje.training.loop import Job, State, StepRecord, train
from smedje.training.run import prepare
from smedje.training.spec import DataSpec, LoraSpec, OptimizerSpec, ScheduleSpec, TrainingSpec, spec_to_json

WORDS = ("kettle", "brew", "filter", "steam", "grind", "water", "clean", "pump", "valve", "warm", "light", "code")


def chat_rows(count: int, *, seed: int = 0) -> bytes:
    """`count` short conversations as JSONL, every third with two turns, lengths ragged."""
    draw = random.Random(seed)

    def say(most: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, most)))

    lines = []
    for row in range(count):
        messages = [{"role": "system", "content": "Be brief."}]
        for _ in range(2 if row % 3 == 0 else 1):
            messages += [{"role": "user", "content": say(6)}, {"role": "assistant", "content": say(8)}]
        lines.append(json.dumps({"messages": messages}))
    return ("\n".join(lines) + "\n").encode()


@dataclass(frozen=True)
class Bench:
    """A place to run: object storage, a tiny base model, and the spec of a short run."""

    root: Path
    objects: Objects
    spec: TrainingSpec

    def with_spec(self, **changes: object) -> "Bench":
        """The same place with other numbers in the spec."""
        return replace(self, spec=msgspec.structs.replace(self.spec, **changes))

    def prepare(self) -> tuple[Job, State]:
        """Job and state of this spec, nothing trained yet."""
        return prepare(self.objects, self.spec, cache=self.root / "cache")

    def train(self) -> tuple[list[StepRecord], State]:
        """Train to the end in this process."""
        job, state = self.prepare()
        return list(train(job, state)), state

    def folder(self, run_id: str) -> RunFolder:
        """A run folder that holds this spec."""
        folder = RunFolder(self.objects, run_id)
        folder.write_spec(spec_to_json(self.spec))
        return folder


def bench(root: Path, *, rows: int = 24, family: str = "llama") -> Bench:
    """A bench below `root`: 24 rows, 2 epochs in batches of 4, one thread."""
    base = root / f"tiny-{family}"
    if not base.exists():
        (write_tiny_llama if family == "llama" else write_tiny_phi3)(base)
    objects = open_objects((root / "objects").as_uri())
    objects.put("data/train", chat_rows(rows))
    spec = TrainingSpec(
        job_id="ftjob-test",
        base_model=f"tiny-{family}",
        base_folder=str(base),
        seed=7,
        today="2026-01-31",
        data=DataSpec(training_key="data/train", validation_fraction=0.25, max_tokens=400),
        n_epochs=2,
        batch_size=4,
        lora=LoraSpec(rank=4, alpha=8.0),
        optimizer=OptimizerSpec(base_learning_rate=1e-2),
        schedule=ScheduleSpec(warmup_ratio=0.1),
        threads=1,
    )
    return Bench(root=root, objects=objects, spec=spec)


def preference_rows(count: int, *, seed: int = 0) -> bytes:
    """`count` preference pairs as JSONL: the better answer says words of the prompt, the other one does not."""
    draw = random.Random(seed)
    lines = []
    for row in range(count):
        words = [draw.choice(WORDS) for _ in range(draw.randint(1, 5))]
        better, other = {"role": "assistant", "content": f"{row} " + " ".join(words)}, draw.choice(WORDS[::-1])
        names = SPELLINGS[row % 2]
        prompt = {"messages": [{"role": "user", "content": " ".join(words)}]}
        line = {"input": prompt, names[0]: [better], names[1]: [{"role": "assistant", "content": f"no {other}"}]}
        lines.append(json.dumps(line))
    return ("\n".join(lines) + "\n").encode()


def labelled_rows(count: int, *, seed: int = 0) -> bytes:
    """`count` labelled texts as JSONL in three classes of different sizes, each with words of its own."""
    draw = random.Random(seed)
    lines = []
    for row in range(count):
        group = (0, 0, 0, 1, 1, 2)[row % 6]
        text = " ".join(draw.choice(WORDS[group * 4 : group * 4 + 4]) for _ in range(draw.randint(2, 5)))
        body = {"text": text} if row % 2 else {"messages": [{"role": "user", "content": text}]}
        lines.append(json.dumps({**body, "label": ("make", "care", "sign")[group]}))
    return ("\n".join(lines) + "\n").encode()
