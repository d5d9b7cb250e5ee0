"""What the server says of a finished request and of itself, field by field.

Makes answers of the engine's figures.  Knows nothing of how they travel.
"""

import base64
from typing import Self

from pydantic import BaseModel

from server.messages import EngineInfo, Exactness, Finished, FinishReason, Mode, Submission


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class SpeculationFigures(BaseModel):
    """Rounds are passes of the model that wrote bytes; on the base path nothing is drafted."""

    rounds: int
    drafted: int
    accepted: int
    accepted_per_position: list[int]
    mean_bytes_per_round: float

    @classmethod
    def of(cls, finished: Finished) -> Self:
        speculation, count = finished.speculation, finished.completion_tokens
        return cls(
            rounds=speculation.rounds,
            drafted=speculation.drafted,
            accepted=speculation.accepted,
            accepted_per_position=list(speculation.accepted_per_position),
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


class Piece(BaseModel):
    """More output in a stream: `text` and `bytes` of all pieces add up to the answer's."""

    text: str
    bytes: str


class Answer(BaseModel):
    """`bytes` is the output exactly, as base64; `text` the same with invalid UTF-8 replaced."""

    request_id: str
    model: str
    text: str
    bytes: str
    utf8_valid: bool
    finish_reason: FinishReason
    mode: Mode
    seed: int
    exactness: Exactness
    usage: Usage
    speculation: SpeculationFigures
    timing: TimingFigures


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
    parameters: int
    prophet_parameters: int
    cache_bytes: int


def answer_to(
    submission: Submission, info: EngineInfo, finished: Finished, output: bytes
) -> Answer:
    """The answer whose whole output is `output`, that of `finished` included."""
    return Answer(
        request_id=submission.request_id,
        model=info.model_name,
        text=output.decode(errors="replace"),
        bytes=base64.b64encode(output).decode(),
        utf8_valid=is_utf8(output),
        finish_reason=finished.reason,
        mode=submission.mode,
        seed=submission.seed,
        exactness=info.exactness,
        usage=Usage(
            prompt_tokens=len(submission.prompt), completion_tokens=finished.completion_tokens
        ),
        speculation=SpeculationFigures.of(finished),
        timing=TimingFigures.of(finished),
    )


def is_utf8(output: bytes) -> bool:
    """Whether the text of an output says all of it."""
    return output.decode(errors="replace").encode() == output
