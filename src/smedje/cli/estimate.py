"""What a job would take, and what it took beside that, in words. Knows the answers' JSON shapes."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from smedje.cli.output import JsonFlag, duration, print_fields, print_json, say, size


def compare(
    job_id: Annotated[str, typer.Argument(metavar="JOB_ID", help="The job's id: ftjob-...")], as_json: JsonFlag = False
) -> None:
    """Show what was predicted for a job beside what it took."""
    from smedje.cli.client import open_client, segment

    with open_client() as client:
        found = client.get(f"/api/fine_tuning/jobs/{segment(job_id)}/comparison")
    if as_json:
        print_json(found)
        return
    say(found["summary"])
    if found["time_ratio"] is not None:
        inside = {True: "inside the error bar", False: "outside the error bar", None: "there was no error bar"}
        print_fields(
            {
                "time": f"{found['time_ratio']:.2f} of the prediction, {inside[found['within']]}",
                "memory": None if found["memory_ratio"] is None else f"{found['memory_ratio']:.2f} of the prediction",
            }
        )


def estimate_fields(estimate: Mapping[str, Any]) -> dict[str, object]:
    """An estimate in words."""
    rate = estimate["tokens_per_second"]
    low, high = duration(estimate["seconds_low"]), duration(estimate["seconds_high"])
    by_label = ", with their share of each label" if estimate["split_by_label"] else ""
    fields: dict[str, object] = {
        "examples": f"{estimate['rows']}, and {estimate['validation_rows']} held out{by_label}",
        "training": f"{estimate['n_epochs']} epochs, {estimate['steps']} steps of {estimate['batch_size']} examples",
        "learning rate": f"{estimate['learning_rate']:g}",
        "tokens": f"{estimate['trained_tokens']:,}, of which {estimate['labelled_tokens']:,} are learnt",
        "time": f"about {duration(estimate['seconds'])}, {low} to {high}, at {rate:,.0f} tokens/s",
        "which rests on": estimate["basis"],
        "memory": f"{size(estimate['memory_bytes'])}, {'fits' if estimate['fits'] else 'does not fit this machine'}",
        "disk": f"{size(estimate['disk_bytes'])} of {size(estimate['disk_free_bytes'])} that are free",
        "price": f"{estimate['price']:.4f} {estimate['currency']}",
    }
    if estimate["proposal"]:
        fields["would fit"] = estimate["proposal"]
    for room in estimate["quotas"]:
        state = "enough" if room["enough"] else "not enough: the job would be refused"
        fields[f"quota {room['name']}"] = (
            f"{room['left']:,} of {room['value']:,} left, needs {room['needed']:,}: {state}"
        )
        if room["enough"] and room["warning"]:
            fields[f"warning {room['name']}"] = room["warning"]
    return fields


def show_estimate(estimate: Mapping[str, Any], *, as_json: bool) -> None:
    """Print an estimate."""
    if as_json:
        print_json(estimate)
    else:
        print_fields(estimate_fields(estimate))
