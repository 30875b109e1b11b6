"""What commands print: tables, numbers in words, reports, a job's progress line."""

import time

import pytest

from smedje.cli.output import duration, print_fields, print_json_line, print_table, size, when
from smedje.cli.report import has_errors, print_report
from smedje.cli.watch import metrics_line, metrics_of


def test_a_table_in_a_pipe_keeps_every_value_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Long ids are never folded where a script reads them, markup in a value stays text, and None is a dash."""
    name = "ft:smollm2-135m-instruct:default:" + "x" * 64 + ":abcdefgh"
    print_table(("ID", "STATUS", "NOTE"), [(name, None, "[red]as typed[/red]")], empty="nothing")
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["ID", "STATUS", "NOTE"]
    assert row.split() == [name, "-", "[red]as", "typed[/red]"]


def test_an_empty_table_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing to list says so instead of printing a lonely heading."""
    print_table(("ID",), [], empty="No jobs yet.")
    assert capsys.readouterr().out == "No jobs yet.\n"


def test_fields_and_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Names are aligned; a JSON line is one line whatever its text holds, and keeps letters of all languages."""
    print_fields({"id": "x", "status": None})
    print_json_line({"text": "a\nbø"})
    assert capsys.readouterr().out == 'id      x\nstatus  -\n{"text":"a\\nbø"}\n'


def test_numbers_in_words() -> None:
    """Bytes in powers of a thousand, seconds as clock time, times in this machine's zone, anything else as nothing."""
    assert [size(n) for n in (0, 999, 1000, 173_049, 2_500_000_000)] == ["0 B", "999 B", "1.0 kB", "173.0 kB", "2.5 GB"]
    assert [duration(n) for n in (0, 59.6, 61, 3601, -5)] == ["0:00", "1:00", "1:01", "1:00:01", "0:00"]
    assert when(0) == time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(0))
    assert size(None) is duration("x") is when(None) is None


def test_a_step_in_words() -> None:
    """Only what an event carries is shown; a step of zero and a loss of zero are numbers like others."""
    assert metrics_line({"step": 0, "full_valid_loss": 0.0}) == "step 0  held-out loss 0.0000"
    data = {
        "step": 3,
        "total_steps": 30,
        "train_loss": 1.25,
        "train_mean_token_accuracy": 0.5,
        "learning_rate": 2e-4,
        "tokens_per_second": 1234.5,
        "eta_seconds": 62,
    }
    assert metrics_line(data) == "step 3/30  loss 1.2500  accuracy 0.500  lr 2.00e-04  tokens/s 1,234  1:02 left"


def test_only_metrics_events_carry_numbers() -> None:
    """A message with data is not taken for a step."""
    assert metrics_of({"type": "metrics", "data": {"step": 1}}) == {"step": 1}
    assert metrics_of({"type": "message", "data": {"step": 1}}) is None
    assert metrics_of({"object": "fine_tuning.job"}) is None


def test_a_report_shows_the_first_problems_and_counts_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    """The summary first, then problems with their remedies, then distributions in one line each."""
    problem = {
        "line": 4,
        "path": "$.messages[1].role",
        "code": "unknown_role",
        "severity": "error",
        "message": "The role is 'bot'.",
        "remedy": "Use assistant.",
    }
    turns = {"count": 9, "total": 30, "min": 2, "p10": 2, "median": 3, "mean": 3.3, "p90": 5, "max": 7}
    report = {
        "problems": [problem] * 3,
        "summary": "Not ready.",
        "statistics": {"examples": 9, "messages_per_example": turns, "messages_by_role": {"user": 9}, "tokens": None},
    }
    print_report(report, shown=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Not ready."
    assert "  messages per example: median 3, most between 2 and 5, longest 7" in lines
    assert "  messages by role: user 9" in lines
    assert not any("tokens" in line for line in lines)
    assert sum("Use assistant." in line for line in lines) == 2
    assert lines[2] == "line 4: error unknown_role at $.messages[1].role"
    assert "and 1 more; --json prints them" in lines
    assert has_errors(report)
    assert not has_errors({"problems": [{**problem, "severity": "warning"}]})
