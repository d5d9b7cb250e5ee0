"""What the server says of a finished request and of itself, field by field.

Makes answers of the engine's figures.  Knows nothing of how they travel.
"""

import base64

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


class TimingFigures(BaseModel):
    queue_s: float
    prefill_s: float
    decode_s: float
    bytes_per_second: float


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
    text = output.decode(errors="replace")
    rounds = finished.speculation.rounds
    count = finished.completion_tokens
    decode_s = finished.timing.decode_s
    return Answer(
        request_id=submission.request_id,
        model=info.model_name,
        text=text,
        bytes=base64.b64encode(output).decode(),
        utf8_valid=text.encode() == output,
        finish_reason=finished.reason,
        mode=submission.mode,
        seed=submission.seed,
        exactness=info.exactness,
        usage=Usage(prompt_tokens=len(submission.prompt), completion_tokens=count),
        speculation=SpeculationFigures(
            rounds=rounds,
            drafted=finished.speculation.drafted,
            accepted=finished.speculation.accepted,
            accepted_per_position=list(finished.speculation.accepted_per_position),
            mean_bytes_per_round=count / rounds if rounds else 0.0,
        ),
        timing=TimingFigures(
            queue_s=finished.timing.queue_s,
            prefill_s=finished.timing.prefill_s,
            decode_s=decode_s,
            bytes_per_second=count / decode_s if decode_s else 0.0,
        ),
    )
