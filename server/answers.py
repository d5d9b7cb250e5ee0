"""What the server says of a finished request and of itself, field by field.

Makes answers of the engine's figures.  Knows nothing of how they travel.
"""

import base64
from typing import Self

from pydantic import BaseModel

from server.messages import (
    EngineInfo,
    Exactness,
    Finished,
    FinishReason,
    Mode,
    Progress,
    Submission,
)


class Usage(BaseModel):
    """`cached_tokens` bytes of the prompt were in a slot already and not consumed again."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class SpeculationFigures(BaseModel):
    """Rounds are passes of the model that wrote bytes; on the base path nothing is drafted.  What
    was looked up in the text is a part of what was drafted and accepted."""

    rounds: int
    drafted: int
    accepted: int
    accepted_per_position: list[int]
    lookup_drafted: int
    lookup_accepted: int
    mean_bytes_per_round: float

    @classmethod
    def of(cls, finished: Finished) -> Self:
        speculation, count = finished.speculation, finished.completion_tokens
        return cls(
            rounds=speculation.rounds,
            drafted=speculation.drafted,
            accepted=speculation.accepted,
            accepted_per_position=list(speculation.accepted_per_position),
            lookup_drafted=speculation.lookup_drafted,
            lookup_accepted=speculation.lookup_accepted,
            mean_bytes_per_round=count / speculation.rounds if speculation.rounds else 0.0,
        )


class TimingFigures(BaseModel):
    queue_s: float
    prefill_s: float
    decode_s: float
    bytes_per_second: float

    @classmethod
    def of(cls, finished: Finished) -> Self:
        timing, count = finished.timing, finished.completion_tokens
        return cls(
            queue_s=timing.queue_s,
            prefill_s=timing.prefill_s,
            decode_s=timing.decode_s,
            bytes_per_second=count / timing.decode_s if timing.decode_s else 0.0,
        )


class Alternative(BaseModel):
    byte: int
    logprob: float


class ByteScore(BaseModel):
    """A byte of the output; the first of a text has no log-probability.  `top`: likeliest first."""

    byte: int
    logprob: float | None
    top: list[Alternative]


class Piece(BaseModel):
    """More output in a stream: `text`, `bytes` and `logprobs` of all pieces of an index add up to
    the answer's."""

    index: int
    text: str
    bytes: str
    logprobs: list[ByteScore] | None = None


class Answer(BaseModel):
    """`bytes` is the output exactly, as base64; `text` the same with invalid UTF-8 replaced."""

    request_id: str
    index: int
    model: str
    text: str
    bytes: str
    logprobs: list[ByteScore] | None = None
    utf8_valid: bool
    finish_reason: FinishReason
    mode: Mode
    seed: int
    exactness: Exactness
    usage: Usage
    speculation: SpeculationFigures
    timing: TimingFigures


class Answers(BaseModel):
    """Where `n` is above 1."""

    choices: list[Answer]


class Version(BaseModel):
    """What is running: the software, the model and what it was loaded as."""

    version: str
    model: str
    device: str
    dtype: str
    exactness: Exactness
    context: int
    max_batch: int
    eos: int | None
    longest_draft: int
    longest_lookup: int
    parameters: int
    prophet_parameters: int
    cache_bytes: int


def answer_to(
    submission: Submission, index: int, info: EngineInfo, finished: Finished, output: bytes
) -> dict[str, object]:
    """The `Answer` whose whole output is `output`, that of `finished` included, ready for JSON; the
    log-probabilities are those of `finished`."""
    answer = Answer(
        request_id=submission.request_id,
        index=index,
        model=info.model_name,
        text=output.decode(errors="replace"),
        bytes=base64.b64encode(output).decode(),
        utf8_valid=is_utf8(output),
        finish_reason=finished.reason,
        mode=submission.mode,
        seed=submission.seed,
        exactness=info.exactness,
        usage=Usage(
            prompt_tokens=len(submission.prompt),
            completion_tokens=finished.completion_tokens,
            cached_tokens=finished.cached_tokens,
        ),
        speculation=SpeculationFigures.of(finished),
        timing=TimingFigures.of(finished),
    )
    return {**answer.model_dump(mode="json"), "logprobs": scores_of(submission, finished)}


def scores_of(submission: Submission, event: Progress | Finished) -> list[dict[str, object]] | None:
    """A `ByteScore` for each byte of an event's output, None where nobody wants them.

    There may be thousands with alternatives each: they are made without pydantic.
    """
    if submission.logprobs is None:
        return None
    return [
        {
            "byte": item.byte,
            "logprob": item.logprob,
            "top": [{"byte": byte, "logprob": logprob} for byte, logprob in item.top],
        }
        for item in event.logprobs
    ]


def token_text(byte: int) -> str:
    """A token as OpenAI writes it: ASCII as it is, other bytes by their values."""
    return chr(byte) if byte < 0x80 else f"bytes:\\x{byte:02x}"


def is_utf8(output: bytes | bytearray) -> bool:
    """Whether the text of an output says all of it."""
    return output.decode(errors="replace").encode() == output
