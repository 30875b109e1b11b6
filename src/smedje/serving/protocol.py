"""The lines between the API process and an engine process: one JSON object a line, one connection a completion.

Client: {"op":"generate","tokens":[ids],"sampling":{...},"max_tokens":n,"stop_ids":[ids],"adapter":key,"project":id,
"grammar":text},
or {"op":"ping"}.
Engine: {"t":[ids],"lp":[...]} a step, then {"finish":"stop","stop":id,"usage":{}}, or {"t":[id],"finish":"length",..}
when the token limit cut it; or one {"error":{...}}. A ping is answered with {"stats":{...}}. Closing the connection
cancels. Knows shapes only: neither end's behaviour.
"""

import msgspec

from smedje import errors
from smedje.domain.conversations import FinishReason, Sampling
from smedje.serving.engine import EngineStats, GenerationRequest, TokenChunk, TokenCounts, TokenLogprob

# A prompt of 128k tokens is under 1 MB; nothing longer than this is read.
MAX_LINE_BYTES = 16 * 2**20

# Errors cross by name. Classes with more than message, code and param stay on their own side.
ERRORS: dict[str, type[errors.SmedjeError]] = {
    kind.__name__: kind
    for kind in (
        errors.InvalidRequest,
        errors.UnsupportedField,
        errors.NotFound,
        errors.Conflict,
        errors.TooLarge,
        errors.LimitExceeded,
        errors.OutOfStorage,
        errors.Unavailable,
        errors.InternalError,
    )
}


class GenerateLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="generate"):
    """A GenerationRequest on the wire."""

    tokens: tuple[int, ...]
    sampling: Sampling
    max_tokens: int | None = None
    adapter: str | None = None
    stop_ids: frozenset[int] = frozenset()
    project: str = ""
    grammar: str | None = None


class PingLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="ping"):
    """Are you there, and how busy?"""


class ErrorBody(msgspec.Struct, frozen=True):
    """A SmedjeError on the wire; type is its class name."""

    type: str
    message: str
    code: str | None = None
    param: str | None = None


class ReplyLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """Anything an engine says."""

    t: tuple[int, ...] = ()
    lp: tuple[TokenLogprob, ...] | None = None
    finish: FinishReason | None = None
    stop: int | None = None
    usage: TokenCounts | None = None
    stats: EngineStats | None = None
    error: ErrorBody | None = None


_encoder = msgspec.json.Encoder()
_requests: msgspec.json.Decoder[GenerateLine | PingLine] = msgspec.json.Decoder(GenerateLine | PingLine)
_replies = msgspec.json.Decoder(ReplyLine)


def encode_line(line: GenerateLine | PingLine | ReplyLine) -> bytes:
    """One line with its newline."""
    return _encoder.encode(line) + b"\n"


def decode_request(line: bytes) -> GenerateLine | PingLine:
    """What a client asked. Raises InvalidRequest."""
    try:
        return _requests.decode(line)
    except msgspec.MsgspecError as wrong:
        raise errors.InvalidRequest(f"Not a request line: {wrong}.", code="invalid_line") from wrong


def decode_reply(line: bytes) -> ReplyLine:
    """What an engine said. Raises InternalError for a line that no engine of this version writes."""
    try:
        return _replies.decode(line)
    except msgspec.MsgspecError as wrong:
        raise errors.InternalError(f"The engine sent a line that cannot be read: {wrong}.") from wrong


def line_of_request(request: GenerationRequest) -> GenerateLine:
    """Wire shape of a request."""
    return GenerateLine(
        tokens=request.tokens,
        sampling=request.sampling,
        max_tokens=request.max_tokens,
        adapter=request.adapter,
        stop_ids=request.stop_ids,
        project=request.project,
        grammar=request.grammar,
    )


def request_of_line(line: GenerateLine) -> GenerationRequest:
    """Domain shape of a request."""
    return GenerationRequest(
        tokens=line.tokens,
        sampling=line.sampling,
        max_tokens=line.max_tokens,
        adapter=line.adapter,
        stop_ids=line.stop_ids,
        project=line.project,
        grammar=line.grammar,
    )


def line_of_chunk(chunk: TokenChunk) -> ReplyLine:
    """Wire shape of a chunk."""
    return ReplyLine(t=chunk.tokens, lp=chunk.logprobs, finish=chunk.finish, stop=chunk.stop_token, usage=chunk.usage)


def chunk_of_line(line: ReplyLine) -> TokenChunk:
    """Domain shape of a chunk."""
    return TokenChunk(tokens=line.t, logprobs=line.lp, finish=line.finish, stop_token=line.stop, usage=line.usage)


def line_of_error(error: errors.SmedjeError) -> ReplyLine:
    """Wire shape of an error."""
    kind = type(error).__name__
    body = ErrorBody(
        type=kind if kind in ERRORS else "InternalError", message=error.message, code=error.code, param=error.param
    )
    return ReplyLine(error=body)


def error_of_body(body: ErrorBody) -> errors.SmedjeError:
    """The error to raise on this side."""
    return ERRORS.get(body.type, errors.InternalError)(body.message, code=body.code, param=body.param)
