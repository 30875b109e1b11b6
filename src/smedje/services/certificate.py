"""The train/serve certificate: what a model was trained to read must be what it is asked with.

Beside a checkpoint lie the digests of its base model's tokenizer and template, its stop ids, and conversations of our
own with the ids that they had when the job ended; no training text. A deployment renders them again and refuses on any
difference: one other space in a template costs quality and says nothing. Knows no weights.
"""

import hashlib
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec

from smedje.chat.template import render_prompt
from smedje.chat.tokenizer import ChatTokenizer, load_chat_tokenizer
from smedje.domain.jobs import FineTuningJob
from smedje.errors import Conflict, InvalidRequest, NotFound
from smedje.modeling.folder import installed_folder
from smedje.services.context import Context

FILE = "certificate.json"
# Whatever families differ in: roles, white space at both ends, several turns, characters of several bytes, digits.
PROBES: tuple[tuple[dict[str, str], ...], ...] = (
    ({"role": "user", "content": "Hello"},),
    (
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": "  My 2 parcels are late, øl & 東京 🙂 "},
    ),
    (
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": " c "},
        {"role": "user", "content": "def f(x):\n    return x + 1"},
    ),
)


class Certificate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a checkpoint was trained with. today: the date that templates were told. prompts: ids of PROBES, in order;

    empty for one that the template refuses.
    """

    base_model: str
    tokenizer_sha256: str
    template_sha256: str
    bos: str | None
    stop_ids: tuple[int, ...]
    today: str
    prompts: tuple[tuple[int, ...], ...]
    version: int = 1


def certify(ctx: Context, job: FineTuningJob, checkpoint_key: str) -> Certificate:
    """Write the certificate of a job's checkpoint beside it. The same job gives the same bytes."""
    today = datetime.fromtimestamp(job.created_at, UTC).date()
    made = _certificate(ctx, job.request.base_model, today)
    content = msgspec.json.format(msgspec.json.encode(made), indent=1)
    ctx.objects.put(f"{checkpoint_key}/{FILE}", content)
    return made


def check_certificate(ctx: Context, base_model: str, adapter_key: str | None) -> None:
    """Compare the installed base model with the certificate of an adapter; one without a certificate passes.

    Raises Conflict (certificate_mismatch) naming what differs.
    """
    if adapter_key is None:
        return
    try:
        content = ctx.objects.get(f"{adapter_key}/{FILE}")
    except NotFound:
        return
    kept = msgspec.json.decode(content, type=Certificate)
    now = _certificate(ctx, base_model, date.fromisoformat(kept.today))
    for field in Certificate.__struct_fields__:
        was, found = getattr(kept, field), getattr(now, field)
        if was != found:
            raise Conflict(
                f"This model was trained with another {WORDS[field]} than the installed {base_model} has "
                f"({_shown(was)}, now {_shown(found)}), so it would answer worse without saying so. "
                f"Pull {kept.base_model} as it was, or train again.",
                code="certificate_mismatch",
                param=field,
            )


WORDS = {
    "base_model": "base model",
    "tokenizer_sha256": "tokenizer",
    "template_sha256": "chat template",
    "bos": "beginning-of-text token",
    "stop_ids": "set of tokens that end an answer",
    "today": "date",
    "prompts": "rendering of messages",
    "version": "kind of certificate",
}


def _certificate(ctx: Context, base_model: str, today: date) -> Certificate:
    folder = installed_folder(ctx.home, base_model)
    tokenizer = load_chat_tokenizer(folder, today=today)
    return Certificate(
        base_model=base_model,
        tokenizer_sha256=_digest(folder / "tokenizer.json"),
        template_sha256=hashlib.sha256(tokenizer.template.source.encode()).hexdigest(),
        bos=tokenizer.bos,
        stop_ids=tokenizer.stop_ids,
        today=today.isoformat(),
        prompts=tuple(_prompt(tokenizer, list(probe)) for probe in PROBES),
    )


def _prompt(tokenizer: ChatTokenizer, messages: list[dict[str, str]]) -> tuple[int, ...]:
    try:
        return tuple(render_prompt(tokenizer, messages))
    except InvalidRequest:
        return ()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "…"
