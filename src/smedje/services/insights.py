"""What an uploaded file is like - by itself, for a base model, beside its validation file - and its lines one by one.

Insights are objects beside the file's report. Knows files of a project; the judgements are in smedje.data.
"""

from dataclasses import replace
from itertools import islice
from typing import Any

import msgspec

from smedje.chat.tokenizer import ChatTokenizer, load_chat_tokenizer
from smedje.data.counting import count_tokens
from smedje.data.forms import read_items
from smedje.data.insights import Insights, by_weight, insights_to_dict, look_at, with_token_bars
from smedje.data.page import report_page
from smedje.data.parts import compare_sides
from smedje.data.remedies import advice_of, told_repairs
from smedje.data.view import LineView, view_line
from smedje.domain.files import File, FilePurpose, insights_key, report_key
from smedje.domain.projects import Project
from smedje.errors import NotFound
from smedje.modeling.catalog import base_defaults
from smedje.modeling.folder import installed_folder
from smedje.services import files as file_service
from smedje.services.context import Context

SHOWN_ROWS = 3


def read_insights(
    ctx: Context, project: Project, file_id: str, *, model: str | None = None, validation: str | None = None
) -> bytes:
    """What the file is like, as JSON. model: an installed base model for token bars; validation: look for leaks there.

    What needs neither is made once and kept. Raises NotFound for files that are not this project's.
    """
    file = training_file(ctx, project, file_id)
    path, insights = file_service.local_bytes(ctx, file), _seen(ctx, file)
    body: dict[str, Any] = {}
    report = msgspec.json.decode(ctx.objects.get(report_key(file.id)))
    if validation is not None:
        other = training_file(ctx, project, validation)
        held = file_service.local_bytes(ctx, other)
        sides = compare_sides(path, held, (insights, _seen(ctx, other)))
        insights = replace(insights, findings=by_weight([*insights.findings, *sides.findings]))
        body["pair"] = {"labels": dict(sides.labels), "languages": dict(sides.languages)}
    if model is not None:
        most = token_limit(model)
        counted = count_tokens(path, tokenizer(ctx, model), max_tokens=most)
        insights = with_token_bars(insights, counted.statistics)
        body["tokens"] = msgspec.to_builtins(counted.statistics)
        report["problems"] += [msgspec.to_builtins(problem) for problem in counted.problems]
    told = insights_to_dict(insights)
    told["advice"] = advice_of({**report, "insights": told})
    repairs = told_repairs({"insights": told, "problems": report["problems"]}, file_id=file.id)
    return msgspec.json.encode({**told, **body, "repairs": repairs})


def read_page(
    ctx: Context, project: Project, file_id: str, *, model: str | None = None, validation: str | None = None
) -> str:
    """Report and insights as one HTML page. Raises NotFound for files that are not this project's."""
    file = training_file(ctx, project, file_id)
    report = msgspec.json.decode(ctx.objects.get(report_key(file.id)))
    told = msgspec.json.decode(read_insights(ctx, project, file_id, model=model, validation=validation))
    path, views = file_service.local_bytes(ctx, file), []
    if model is not None:
        report["statistics"]["tokens"] = told["tokens"]
        lines = islice((item.line for item in read_items(path) if item.example is not None), SHOWN_ROWS)
        views = [msgspec.to_builtins(view_line(path, line, tokenizer(ctx, model))) for line in lines]
    whole = {**report, "insights": told, "repairs": told["repairs"], "pair": told.get("pair")}
    if validation is not None:
        other = training_file(ctx, project, validation)
        seen = msgspec.json.decode(read_insights(ctx, project, validation, model=model))
        held = msgspec.json.decode(ctx.objects.get(report_key(other.id)))
        whole["validation"] = {**held, "insights": seen, "repairs": seen["repairs"]}
    return report_page(whole, title=file.filename, views=views)


def read_row(ctx: Context, project: Project, file_id: str, row: int, *, model: str) -> LineView:
    """Line `row` (from 1) token by token. Raises NotFound; InvalidData when the line is no example."""
    file = training_file(ctx, project, file_id)
    return view_line(file_service.local_bytes(ctx, file), row, tokenizer(ctx, model))


def training_file(ctx: Context, project: Project, file_id: str) -> File:
    """Raises NotFound when this project has no such file, or when it is not one to train on."""
    file = file_service.get_file(ctx, project, file_id)
    if file.purpose is not FilePurpose.FINE_TUNE:
        raise NotFound(
            f"{file_id} has the purpose {file.purpose.value}; only training files are looked at.",
            code="report_not_found",
            param="id",
        )
    return file


def tokenizer(ctx: Context, model: str) -> ChatTokenizer:
    """Of an installed base model. Raises NotFound."""
    return load_chat_tokenizer(installed_folder(ctx.home, model))


def token_limit(model: str) -> int:
    """The most tokens that an example may have by a base model's default, as jobs have it."""
    return base_defaults(model).max_tokens_per_example


def _seen(ctx: Context, file: File) -> Insights:
    """What the file is like by itself: made once and kept."""
    key = insights_key(file.id)
    try:
        return msgspec.json.decode(ctx.objects.get(key), type=Insights)
    except NotFound:
        insights = look_at(file_service.local_bytes(ctx, file))
        ctx.objects.put(key, msgspec.json.encode(insights))
        return insights
