"""`smedje usage`: what was used and what it cost.

Knows the path of the costs; knows nothing of prices.
"""

from typing import Annotated

import typer

from smedje.cli.output import JsonFlag, print_json, print_table

COSTS = "/api/costs"
Days = Annotated[int, typer.Option("--days", min=1, max=400, help="The last so many days.")]


def usage(
    group_by: Annotated[
        str, typer.Option("--by", help="day, project_id, model, key_id, kind; several with commas.")
    ] = "model,kind",
    days: Days = 30,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what was used and what it cost, in all projects in which the key may read usage."""
    import sys
    import time

    from smedje.cli.client import open_client, segment

    query = f"?start_time={max(0, int(time.time()) - days * 86400)}&group_by={segment(group_by)}"
    with open_client() as client:
        if as_csv:
            sys.stdout.write(b"".join(client.download(f"{COSTS}{query}&format=csv")).decode())
            return
        found = client.get(COSTS + query)
    if as_json:
        print_json(found)
        return
    names = group_by.split(",")
    rows = [
        (*(one[name] for name in names), one["requests"], _tokens(one), f"{one['cost']:.6f} {one['currency']}")
        for one in found["data"]
    ]
    columns = (*(name.upper() for name in names), "REQUESTS", "TOKENS", "COST")
    print_table(columns, rows, empty="Nothing was used.")


def _tokens(one: dict[str, int]) -> int:
    return one["prompt_tokens"] + one["completion_tokens"] + one["trained_tokens"]
