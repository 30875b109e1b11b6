"""Which repair step mends which problem or finding, and the exact command and call that do it. Knows names only."""

from collections.abc import Iterable, Mapping
from shlex import quote
from typing import Any

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


def command_for(step: str, name: str, *, out: str | None = None) -> str:
    """What to type. name: of the file on this machine; out: of the new one, None for one beside it."""
    stem, dot, ending = name.rpartition(".")
    new = out or f"{stem or name}.repaired{dot}{ending if stem else ''}"
    needs = f" {NEEDS[step][0]}" if step in NEEDS else ""
    return f"smedje data repair {quote(name)} --out {quote(new)} --step {step}{needs}"


def call_for(step: str, file_id: str) -> dict[str, str]:
    """What to send to the server and what to type for a file that is there."""
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
