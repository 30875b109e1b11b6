"""Names of base models, fine-tuned models and checkpoints."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smedje.domain.catalog import ModelName, check_base_name, fine_tuned_name, parse_model_name
from smedje.errors import InvalidRequest

JOB = "ftjob-AbCdEfGhIjKlMnOpQrStUvWx"


@pytest.mark.parametrize(
    ("suffix", "step", "name"),
    [
        ("support", None, "ft:phi-3-mini-4k-instruct:acme:support:QrStUvWx"),
        ("", None, "ft:phi-3-mini-4k-instruct:acme::QrStUvWx"),
        (None, None, "ft:phi-3-mini-4k-instruct:acme::QrStUvWx"),
        ("support", 90, "ft:phi-3-mini-4k-instruct:acme:support:QrStUvWx:ckpt-step-90"),
    ],
)
def test_form(suffix: str | None, step: int | None, name: str) -> None:
    """OpenAI's form: an empty suffix leaves a double colon, a checkpoint ends with its step."""
    assert fine_tuned_name("phi-3-mini-4k-instruct", "acme", suffix, JOB, step=step) == name


@given(
    base=st.from_regex(r"[a-z0-9][a-z0-9.-]{0,20}[a-z0-9]", fullmatch=True),
    project=st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True),
    suffix=st.from_regex(r"[A-Za-z0-9_.-]{0,64}", fullmatch=True),
    job=st.from_regex(r"[A-Za-z0-9]{24}", fullmatch=True),
    step=st.none() | st.integers(0, 10**9),
)
def test_parsing_undoes_naming(base: str, project: str, suffix: str, job: str, step: int | None) -> None:
    """Every name parses into the parts that it was made of."""
    name = fine_tuned_name(base, project, suffix, f"ftjob-{job}", step=step)
    parts = parse_model_name(name)
    assert parts == ModelName(base=base, project=project, suffix=suffix, job=job[-8:], step=step)
    assert parts.is_fine_tuned


def test_tuning_a_tuned_model_keeps_the_root() -> None:
    """A model that continues from a fine-tuned one is named after the base of both."""
    first = fine_tuned_name("smollm2-135m-instruct", "acme", "one", JOB, step=3)
    assert fine_tuned_name(first, "acme", "two", JOB) == "ft:smollm2-135m-instruct:acme:two:QrStUvWx"


def test_base_name_parses_to_itself() -> None:
    """A name without `ft:` is a base model's."""
    assert parse_model_name("phi-3-mini-4k-instruct") == ModelName(base="phi-3-mini-4k-instruct")
    assert not parse_model_name("phi-3-mini-4k-instruct").is_fine_tuned


@pytest.mark.parametrize("suffix", ["a:b", "æ", "a b", "x" * 65, "a\n", "../x"])
def test_bad_suffix(suffix: str) -> None:
    """A suffix that would make the name ambiguous is refused by field name."""
    with pytest.raises(InvalidRequest, match="suffix") as caught:
        fine_tuned_name("base", "acme", suffix, JOB)
    assert caught.value.param == "suffix"


@pytest.mark.parametrize(
    "name", ["ft:", "ft:a:b:c", "ft:a:b:c:short", "ft:a:b:c:12345678:step-3", "ft:a:b:c:12345678\n", "ft:a::c:12345678"]
)
def test_bad_fine_tuned_name(name: str) -> None:
    """Text that begins like a fine-tuned model's name and does not go on like one is refused."""
    with pytest.raises(InvalidRequest, match="not a fine-tuned model's name"):
        parse_model_name(name)


@pytest.mark.parametrize(
    "name", ["", "A", "a/b", "..", "a..b", ".a", "a.", "-a", "a:b", "a b", "x" * 64, "ft:x", "a\n", "con/../x"]
)
def test_bad_base_name(name: str) -> None:
    """A base model's name is also a folder's, so nothing that leads elsewhere is one."""
    with pytest.raises(InvalidRequest, match="cannot name a base model"):
        check_base_name(name)
