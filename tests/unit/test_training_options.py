"""The `smedje` options: each reaches the spec of the run, none is ignored beside another, all are documented."""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.api_server import TINY, install_tiny_model
from tests.store_rows import add_project

from smedje.domain.catalog import TrainingLimits
from smedje.domain.files import File, FilePurpose, FileStatus
from smedje.domain.jobs import FineTuningJob, JobRequest, JobStatus
from smedje.errors import InvalidRequest
from smedje.modeling.catalog import base_defaults
from smedje.objects.store import open_objects
from smedje.services.context import Context
from smedje.services.job_request import METHOD_HYPERPARAMETERS, check_method_options, check_options
from smedje.services.training_spec import Origin, build_spec
from smedje.store import files as file_rows
from smedje.store.database import Database
from smedje.training.options import TrainingOptions, parse_options
from smedje.training.spec import TrainingSpec

ROOT = Path(__file__).parents[2]

# One value for each option that differs from its default, with what it needs beside it.
VALUES: dict[str, tuple[Any, dict[str, Any]]] = {
    "learning_rate": (1e-3, {}),
    "tuning": ("full", {}),
    "lora_rank": (3, {}),
    "lora_alpha": (5.0, {}),
    "lora_dropout": (0.2, {}),
    "rslora": (True, {}),
    "lora_targets": (["q_proj"], {}),
    "lora_layers": (-1, {}),
    "dora": (True, {}),
    "precision": ("bf16", {}),
    "recompute": (True, {}),
    "loss": ("focal", {}),
    "label_smoothing": (0.3, {"loss": "label_smoothing"}),
    "focal_gamma": (1.0, {"loss": "focal"}),
    "class_weights": ("balanced", {}),
    "optimizer": ("adam", {}),
    "beta1": (0.5, {}),
    "beta2": (0.5, {}),
    "eps": (1e-4, {}),
    "momentum": (0.5, {"optimizer": "sgd"}),
    "weight_decay": (0.1, {}),
    "max_grad_norm": (0.5, {}),
    "scheduler": ("linear", {}),
    "scheduler_power": (3.0, {"scheduler": "polynomial"}),
    "warmup_ratio": (0.2, {}),
    "warmup_steps": (4, {}),
    "neftune_alpha": (5.0, {}),
    "max_tokens_per_example": (100, {}),
    "validation_fraction": (0.3, {}),
    "max_steps": (5, {}),
    "batch_size_multiplier": (2.0, {}),
    "gradient_accumulation_steps": (3, {}),
    "micro_batch_tokens": (64, {}),
    "share_prefixes": (False, {}),
    "eval_every_steps": (5, {}),
    "early_stopping_patience": (2, {}),
    "early_stopping_threshold": (0.1, {"early_stopping_patience": 2}),
    "checkpoint": ("best", {}),
    "checkpoint_every_epochs": (2, {}),
}


# Options that belong to one method.
METHOD_OF = {"class_weights": "classification"}


@pytest.fixture
def ctx(database: Database, tmp_path: Path) -> Context:
    """A context with the tiny base model installed."""
    install_tiny_model(tmp_path)
    objects = open_objects((tmp_path / "objects").as_uri())
    return Context(database=database, objects=objects, home=tmp_path, now=lambda: 1000.0)


def spec_of(ctx: Context, *option_sets: dict[str, Any], methods: Sequence[str] = ()) -> list[TrainingSpec]:
    """The specs that jobs with these options get."""
    with ctx.database.transaction() as tx:
        project = add_project(tx)
        file = File(
            id="file-1",
            project_id=project.id,
            filename="a.jsonl",
            purpose=FilePurpose.FINE_TUNE,
            bytes=1,
            sha256="0" * 64,
            status=FileStatus.PROCESSED,
            created_at=1,
        )
        file_rows.insert_file(tx, file)
    request = JobRequest(model=TINY, base_model=TINY, training_file=file.id)
    job = FineTuningJob(id="ftjob-1", project_id=project.id, request=request, status=JobStatus.QUEUED, created_at=1000)
    jobs = [
        replace(job, request=replace(request, options=options, method=method))
        for options, method in zip(option_sets, methods or repeat("supervised"), strict=False)
    ]
    return [build_spec(ctx, one, Origin(base_model=TINY), threads=1, earlier_runs=()) for one in jobs]


def test_every_option_reaches_the_run(ctx: Context) -> None:
    """Each option changes the spec that the worker reads, and nothing stays without a value in this test."""
    assert VALUES.keys() == set(TrainingOptions.__struct_fields__)
    sets = [options for name, (value, beside) in VALUES.items() for options in (beside, {**beside, name: value})]
    methods = [METHOD_OF.get(name, "supervised") for name in VALUES for _ in range(2)]
    specs = spec_of(ctx, *sets, methods=methods)
    for name, without, with_it in zip(VALUES, specs[0::2], specs[1::2], strict=True):
        assert without != with_it, f"{name} changes nothing"


def test_defaults_are_the_catalogs(ctx: Context) -> None:
    """Without options a job gets the base model's defaults."""
    (spec,) = spec_of(ctx, {})
    defaults = base_defaults(TINY)
    assert (spec.lora.rank, spec.lora.alpha) == (defaults.lora_rank, defaults.lora_alpha)
    assert spec.optimizer == msgspec.structs.replace(spec.optimizer, base_learning_rate=defaults.learning_rate)
    assert spec.objective.kind == "supervised"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"momentum": 0.5}, "momentum"),
        ({"optimizer": "sgd", "beta1": 0.5}, "beta1"),
        ({"optimizer": "lion", "eps": 1e-4}, "eps"),
        ({"label_smoothing": 0.1}, "label_smoothing"),
        ({"loss": "label_smoothing", "focal_gamma": 2.0}, "focal_gamma"),
        ({"scheduler_power": 2.0}, "scheduler_power"),
        ({"dora": True, "optimizer": "muon"}, "dora"),
        ({"warmup_ratio": 0.1, "warmup_steps": 3}, "warmup_ratio"),
        ({"early_stopping_threshold": 0.1}, "early_stopping_threshold"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(options: dict[str, Any], param: str) -> None:
    """An option that has no meaning beside another is a 400 that names it and says what to do."""
    with pytest.raises(InvalidRequest) as caught:
        parse_options(options)
    assert (caught.value.code, caught.value.param) == ("conflicting_fields", f"smedje.{param}")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"optimizer": "adamx"}, "optimizer"),
        ({"lora_targets": []}, "lora_targets"),
        ({"lora_layers": [-1]}, "lora_layers"),
        ({"lora_layers": 0}, "lora_layers"),
        ({"label_smoothing": 1.0, "loss": "label_smoothing"}, "label_smoothing"),
        ({"batch_size_multiplier": 0}, "batch_size_multiplier"),
        ({"checkpoint": "first"}, "checkpoint"),
        ({"neftune_alpha": 0}, "neftune_alpha"),
    ],
)
def test_an_option_out_of_bounds_is_refused_by_name(options: dict[str, Any], name: str) -> None:
    """Unknown options and values out of bounds name the option."""
    with pytest.raises(InvalidRequest) as caught:
        parse_options(options)
    assert (caught.value.code, caught.value.param) == ("invalid_option", f"smedje.{name}")


@pytest.mark.parametrize(
    ("options", "hyperparameters", "code"),
    [
        ({"batch_size_multiplier": 2}, {"batch_size": 8}, "conflicting_fields"),
        ({"learning_rate": 1e-3}, {"learning_rate_multiplier": 2.0}, "conflicting_fields"),
        ({"optimizer": "muon"}, {}, "missing_field"),
        ({"optimizer": "adamw", "learning_rate": 0.5}, {}, "invalid_value"),
    ],
)
def test_a_rate_or_batch_is_given_once(options: dict[str, Any], hyperparameters: dict[str, Any], code: str) -> None:
    """Absolute values exclude multipliers; an optimizer that the default rate is not made for needs one."""
    with pytest.raises(InvalidRequest) as caught:
        check_options(options, hyperparameters, TrainingLimits(max_tokens_per_example=400), base_defaults(TINY))
    assert caught.value.code == code
    good = {"optimizer": "sgd", "learning_rate": 0.5}
    assert check_options(good, {}, TrainingLimits(max_tokens_per_example=400), base_defaults(TINY)) == good


def test_options_that_need_other_data_are_refused() -> None:
    """A watch without validation rows and a loss beside dpo are refused when the job is made."""
    for options in ({"checkpoint": "best"}, {"early_stopping_patience": 2}, {"eval_every_steps": 5}):
        bare = {**options, "validation_fraction": 0}
        check_method_options(bare, method="supervised", validation_file=True)
        with pytest.raises(InvalidRequest, match="validation"):
            check_method_options(bare, method="supervised", validation_file=False)
    with pytest.raises(InvalidRequest, match="dpo"):
        check_method_options({"loss": "focal"}, method="dpo", validation_file=False)


def test_every_knob_is_in_the_table_with_a_test_that_exists() -> None:
    """docs/training.md has a row for each option and hyperparameter, naming a test of this repository."""
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\| `(tests/[\w/]+\.py)::(test_\w+)` \|$", page, re.M)
    expected = set(TrainingOptions.__struct_fields__) | set(METHOD_HYPERPARAMETERS["dpo"])
    assert expected <= {name for name, _, _ in rows}
    for name, file, test in rows:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{name}: {file}::{test}"
