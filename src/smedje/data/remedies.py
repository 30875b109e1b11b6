"""Which repair step mends which problem or finding, and the exact command and call that do it. Knows names only."""

from collections import Counter
from collections.abc import Iterable, Mapping
from shlex import quote
from typing import Any

from smedje.errors import InvalidRequest

# Codes of problems (docs/data-format.md) that another step mends than the last resort, dropping the line.
_STEPS: Mapping[str, str] = {
    "nul_character": "clean",
    "message_unrecognized_key": "clean",
    "weight_not_used": "clean",
    "control_token_in_content": "clean",
    "consecutive_user_messages": "merge",
    "wrong_role_order": "merge",
    "last_message_not_assistant": "trim",
    "duplicate_example": "drop_duplicates",
    "example_too_long": "drop_too_long",
    "blank_line": "drop_invalid",
}
# What no step can mend: there is too little, or the judgement is a person's.
_NONE = frozenset({"empty_file", "invalid_n_examples", "invalid_labels", "tool_arguments_not_json"})
# Steps that need another file or a base model to be named beside them.
NEEDS: Mapping[str, tuple[str, str]] = {
    "drop_leaks": ("--against OTHER", '"against": "OTHER_FILE_ID"'),
    "drop_too_long": ("--model MODEL", '"model": "MODEL"'),
}


def step_for(code: str, severity: str) -> str | None:
    """The step that mends a problem of a line, None when none can."""
    if code in _NONE:
        return None
    return _STEPS.get(code) or ("drop_invalid" if severity == "error" else None)


def command_for(step: str, name: str) -> str:
    """What to type for a file on this machine: a new one is written beside it."""
    stem, dot, ending = name.rpartition(".")
    if step == "resplit":
        return f"smedje data split {quote(name)} --out {quote((stem or name) + '-parts')} --shares 80/20"
    new = f"{stem or name}.repaired{dot}{ending if stem else ''}"
    needs = f" {NEEDS[step][0]}" if step in NEEDS else ""
    return f"smedje data repair {quote(name)} --out {quote(new)} --step {step}{needs}"


def call_for(step: str, file_id: str) -> dict[str, str]:
    """What to send to the server and what to type for a file that is there."""
    if step == "resplit":
        return {
            "call": f'POST /api/files/{file_id}/split {{"shares": "80/20"}}',
            "command": f"smedje files split {file_id} --shares 80/20",
        }
    needs, body = (f" {NEEDS[step][0]}", f", {NEEDS[step][1]}") if step in NEEDS else ("", "")
    return {
        "call": f'POST /api/files/{file_id}/repair {{"steps": ["{step}"]{body}}}',
        "command": f"smedje files repair {file_id} --step {step}{needs}",
    }


def repairs_of(report: Mapping[str, Any]) -> dict[str, list[str]]:
    """The steps that a report in its JSON shape speaks for, each with the codes that it mends, in the order found."""
    found: dict[str, list[str]] = {}
    told = [(one["code"], one["repair"]) for one in (report.get("insights") or {}).get("findings", ())]
    problems: Iterable[Mapping[str, Any]] = report.get("problems") or ()
    told += [(one["code"], step_for(one["code"], one["severity"])) for one in problems]
    for code, step in told:
        if step is not None and code not in found.setdefault(step, []):
            found[step].append(code)
    return found


def advice_of(report: Mapping[str, Any], *, most: int = 3) -> list[str]:
    """The things most worth mending, as sentences: errors first, by how often each stands, then the heaviest findings.

    report: in its JSON shape, with insights.
    """
    problems = [one for one in report.get("problems") or () if one["severity"] == "error"]
    counts = Counter({one["code"]: 0 for one in problems})
    for one in problems:
        counts[one["code"]] += 1
    told = (report.get("statistics") or {}).get("problem_codes") or counts
    firsts = {one["code"]: one for one in reversed(problems)}
    found = []
    for code, first in sorted(firsts.items(), key=lambda item: (-told.get(item[0], 1), item[1]["line"])):
        number = told.get(code, counts[code])
        where = "The file" if first["line"] == 0 else f"Line {first['line']}"
        more = f" (and {number - 1} more of {code})" if number > 1 else ""
        found.append(f"{where}{more}: {first['message']} {first['remedy']}")
    return [*found, *(report.get("insights") or {}).get("advice", ())][:most]


def told_repairs(
    report: Mapping[str, Any], *, name: str | None = None, file_id: str | None = None
) -> list[dict[str, Any]]:
    """For each step of `repairs_of`: what it mends, and the command (and call) for a file here or on the server."""
    return [
        {
            "step": step,
            "mends": codes,
            **({"command": command_for(step, name)} if name else call_for(step, file_id or "")),
        }
        for step, codes in repairs_of(report).items()
    ]


def advised(report: Mapping[str, Any]) -> list[str]:
    """The steps that the report speaks for and that need nothing beside the file.

    Raises InvalidRequest when there is none.
    """
    steps = [step for step in repairs_of(report) if step not in NEEDS and step != "resplit"]
    if not steps:
        raise InvalidRequest("The report speaks for no repair; name a step.", code="nothing_to_repair", param="steps")
    return steps
