"""Letting work in: what a request or a job may use is taken from the quotas before it starts, and settled after.

Knows tokens, prices and limits; knows nothing of engines or training.
"""

import shutil
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from smedje.domain.jobs import FineTuningJob
from smedje.domain.prices import UNIT, millionths
from smedje.domain.projects import Project
from smedje.domain.quotas import MONTHLY, RATES, Limit
from smedje.domain.usage import UsageRecord
from smedje.errors import NotFound
from smedje.modeling.catalog import find_base_model
from smedje.services import finetuning, quotas
from smedje.services.context import Context
from smedje.services.costs import current_prices
from smedje.services.estimate import Estimate, estimate
from smedje.services.job_request import JobDraft
from smedje.services.rates import Entry, Full, RateMeter
from smedje.store import usage as usage_rows

# Of base models that only this machine knows.
LONGEST_CONTEXT = 131_072


@dataclass(frozen=True, kw_only=True)
class ChatWork:
    """What a request asks for. completion_tokens: at most, over all choices; None when only the context bounds it."""

    project_id: str
    deployment: str | None
    base_model: str
    prompt_tokens: int
    completion_tokens: int | None
    choices: int = 1


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """What was taken for a request. tokens: entries of the rate meter. reservation: of money, under a budget."""

    tokens: tuple[Entry, ...] = ()
    reservation: str | None = None


class Admission:
    """Owns the rates of one process."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._meter = RateMeter(now=ctx.now)

    def admit(self, work: ChatWork) -> Admitted:
        """Take a request, its tokens and its money from what is left.

        Raises LimitExceeded: `rate_limit_exceeded` with the seconds to wait, `quota_exceeded` when the budget is spent.
        """
        limits = quotas.limits_of(self._ctx, work.project_id)
        if not limits:
            return Admitted()
        reservation = None
        if ("", Limit.MONEY_PER_MONTH) in limits:
            reservation = quotas.reserve_for_request(self._ctx, work.project_id, self._highest_price(work))
        tokens = work.prompt_tokens + (work.completion_tokens or 0)
        wanted = {
            f"{work.project_id}/{deployment}/{name.value}": (1 if name is Limit.REQUESTS_PER_MINUTE else tokens, value)
            for (deployment, name), value in limits.items()
            if name in RATES and deployment in ("", work.deployment)
        }
        found = self._meter.admit(wanted)
        if isinstance(found, Full):
            if reservation is not None:
                with self._ctx.database.transaction() as tx:
                    quotas.release(tx, reservation)
            deployment, name = found.key.split("/")[1:]
            raise quotas.refusal(
                Limit(name),
                value=found.limit,
                used=found.used,
                more=wanted[found.key][0],
                deployment=deployment,
                wait=found.wait,
            )
        counted = [
            entry for key, entry in zip(wanted, found, strict=True) if key.endswith(f"/{Limit.TOKENS_PER_MINUTE.value}")
        ]
        return Admitted(tokens=tuple(counted), reservation=reservation)

    def settle(self, tx: Connection, admitted: Admitted, record: UsageRecord | None) -> None:
        """Write down what was used and give back what was not, in one transaction."""
        if record is not None:
            usage_rows.insert_usage(tx, record)
        if admitted.reservation is not None:
            quotas.release(tx, admitted.reservation)
        used = 0 if record is None else record.prompt_tokens + record.completion_tokens
        for entry in admitted.tokens:
            self._meter.correct(entry, used)

    def _highest_price(self, work: ChatWork) -> int:
        """The most that a request can cost, in millionths."""
        completion = work.completion_tokens
        if completion is None:
            try:
                context = find_base_model(work.base_model).context_tokens
            except NotFound:
                context = LONGEST_CONTEXT
            completion = max(0, context - work.prompt_tokens) * work.choices
        whole = UsageRecord(
            id="",
            project_id=work.project_id,
            key_id=None,
            kind="inference",
            model="",
            prompt_tokens=work.prompt_tokens,
            completion_tokens=completion,
        )
        return millionths(current_prices(self._ctx).cost(whole))


@dataclass(frozen=True, kw_only=True)
class Offer(Estimate):
    """The prediction of a job with what it costs, what is left for it, and whether it would be let in.

    price: in `currency`, at today's prices. disk_free_bytes: on the disk of the state folder. quotas: the limits that
    it meets, empty when the project has none. admitted: whether every one of them has room.
    """

    price: float
    currency: str
    disk_free_bytes: int
    quotas: tuple[quotas.Room, ...]
    admitted: bool


def create_job(ctx: Context, project: Project, draft: JobDraft) -> FineTuningJob:
    """A new job, with what it will use set aside when the project has a monthly limit.

    Raises what `finetuning.create_job` raises, and LimitExceeded (`quota_exceeded`) when not enough is left.
    """
    limits = quotas.limits_of(ctx, project.id)
    if not any(name in MONTHLY for _, name in limits):
        return finetuning.create_job(ctx, project, draft)
    # Drawn here, so that what is set aside is counted on the split that the job will have.
    draft = replace(draft, seed=finetuning.draw_seed() if draft.seed is None else draft.seed)
    holding, _ = _holding(ctx, estimate(ctx, project, draft))
    return finetuning.create_job(ctx, project, draft, holding=holding)


def offer(ctx: Context, project: Project, draft: JobDraft) -> Offer:
    """What the job would take, cost and meet. Makes nothing. Raises what `estimate` raises."""
    expected = estimate(ctx, project, draft)
    holding, cost = _holding(ctx, expected)
    met = quotas.room_for_job(ctx, project.id, holding)
    return Offer(
        **vars(expected),
        price=cost / UNIT,
        currency=current_prices(ctx).currency,
        disk_free_bytes=shutil.disk_usage(ctx.home).free,
        quotas=met,
        admitted=all(one.enough for one in met),
    )


def _holding(ctx: Context, expected: Estimate) -> tuple[quotas.Holding, int]:
    """What is set aside for a job, and its cost in units of 1e-12 of the currency."""
    cost = training_cost(ctx, tokens=expected.trained_tokens, seconds=expected.seconds)
    return quotas.Holding(tokens=expected.trained_tokens, money=millionths(cost)), cost


def training_cost(ctx: Context, *, tokens: int, seconds: float) -> int:
    """What training costs at today's prices, in units of 1e-12 of the currency."""
    record = UsageRecord(
        id="", project_id="", key_id=None, kind="training", model="", trained_tokens=tokens, seconds=seconds
    )
    return current_prices(ctx).cost(record)
