"""What /v1 answers: OpenAI's shapes, whole and in chunks, and ours under the key `specdec`."""

import codecs
import time
from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import BaseModel, FiniteFloat

from server.answers import SpeculationFigures, TimingFigures, is_utf8
from server.errors import ApiError
from server.messages import (
    EngineInfo,
    Exactness,
    Finished,
    FinishReason,
    Mode,
    Progress,
    Submission,
)
from server.streaming import OutputEncoder, server_sent_event
from specdec.logprobs import ByteLogprob


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["specdec"] = "specdec"
    max_model_len: int


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class CompletionLogprobs(BaseModel):
    """One entry a byte: ASCII as a character, other bytes as `bytes:\\x` and two digits; the
    index in the text of the character that it belongs to."""

    tokens: list[str]
    token_logprobs: list[FiniteFloat | None]
    top_logprobs: list[dict[str, FiniteFloat] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """`bytes` is the output exactly, as base64; `text` the same with invalid UTF-8 replaced."""

    index: int
    text: str
    bytes: str
    finish_reason: FinishReason | None
    logprobs: CompletionLogprobs | None = None


class CompletionUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChoiceFigures(BaseModel):
    index: int
    seed: int
    utf8_valid: bool
    speculation: SpeculationFigures
    timing: TimingFigures


class Extras(BaseModel):
    """What /generate says of a text, for each choice; `seed` gives its bytes again by itself."""

    request_id: str
    mode: Mode
    exactness: Exactness
    choices: list[ChoiceFigures]


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage | None = None
    specdec: Extras | None = None


class CompletionForm:
    """A request's answer, which is a completion or a stream of them.

    In a stream, each chunk has a piece of one choice, the last of it with its figures, and then
    comes a chunk with the usage if that is wanted.
    """

    def __init__(
        self, submissions: Sequence[Submission], n: int, info: EngineInfo, include_usage: bool
    ) -> None:
        """`n` submissions behind one another have the same prompt."""
        self._submissions = submissions
        self._n = n
        self._info = info
        self._include_usage = include_usage
        self._created = int(time.time())
        self._encoders = [OutputEncoder() for _ in submissions]
        self._offsets = [_Offsets() for _ in submissions]
        self._outputs = [bytearray() for _ in submissions]
        self._completion_tokens = 0

    def whole(self, outcome: Sequence[Finished]) -> Completion:
        choices = []
        figures = []
        for index, finished in enumerate(outcome):
            choices.append(self._choice(index, finished))
            figures.append(self._figures(index, finished, finished.output))
            self._completion_tokens += finished.completion_tokens
        return self._completion(choices, self._usage(), figures)

    def piece(self, choice: int, event: Progress | Finished) -> Iterator[bytes]:
        self._outputs[choice] += event.output
        if isinstance(event, Progress):
            yield self._chunk(self._completion([self._choice(choice, event)]))
            return
        self._completion_tokens += event.completion_tokens
        figures = self._figures(choice, event, bytes(self._outputs[choice]))
        last = self._choice(choice, event)
        yield self._chunk(self._completion([last], None, [figures]))

    def error(self, error: ApiError) -> Iterator[bytes]:
        yield server_sent_event(error.envelope)
        yield _DONE

    def end(self) -> Iterator[bytes]:
        if self._include_usage:
            yield self._chunk(self._completion([], self._usage()))
        yield _DONE

    def _chunk(self, completion: Completion) -> bytes:
        absent = {"specdec"} if completion.specdec is None else set()
        if not self._include_usage:
            absent.add("usage")
        return server_sent_event(completion.model_dump(mode="json", exclude=absent))

    def _completion(
        self,
        choices: list[CompletionChoice],
        usage: CompletionUsage | None = None,
        figures: list[ChoiceFigures] | None = None,
    ) -> Completion:
        first = self._submissions[0]
        extras = figures and Extras(
            request_id=first.request_id,
            mode=first.mode,
            exactness=self._info.exactness,
            choices=figures,
        )
        return Completion(
            id=f"cmpl-{first.request_id}",
            created=self._created,
            model=self._info.model_name,
            choices=choices,
            usage=usage,
            specdec=extras or None,
        )

    def _choice(self, index: int, event: Progress | Finished) -> CompletionChoice:
        finished = isinstance(event, Finished)
        encoded = self._encoders[index].encode(event.output, final=finished)
        return CompletionChoice(
            index=index,
            text=encoded["text"],
            bytes=encoded["bytes"],
            finish_reason=event.reason if isinstance(event, Finished) else None,
            logprobs=self._logprobs(index, event),
        )

    def _logprobs(self, index: int, event: Progress | Finished) -> CompletionLogprobs | None:
        if self._submissions[index].logprobs is None:
            return None
        return CompletionLogprobs(
            tokens=[_token(item.byte) for item in event.logprobs],
            token_logprobs=[item.logprob for item in event.logprobs],
            top_logprobs=[
                None if item.logprob is None else _by_token(item) for item in event.logprobs
            ],
            text_offset=[self._offsets[index].of(item.byte) for item in event.logprobs],
        )

    def _figures(self, index: int, finished: Finished, output: bytes) -> ChoiceFigures:
        return ChoiceFigures(
            index=index,
            seed=self._submissions[index].seed,
            utf8_valid=is_utf8(output),
            speculation=SpeculationFigures.of(finished),
            timing=TimingFigures.of(finished),
        )

    def _usage(self) -> CompletionUsage:
        prompts = sum(len(submission.prompt) for submission in self._submissions[:: self._n])
        written = self._completion_tokens
        return CompletionUsage(
            prompt_tokens=prompts, completion_tokens=written, total_tokens=prompts + written
        )


class _Offsets:
    """Where in a text the character of each byte is, byte by byte."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def of(self, byte: int) -> int:
        self._characters += len(self._decoder.decode(bytes([byte])))
        unfinished = bool(self._decoder.getstate()[0])
        return self._characters if unfinished else self._characters - 1


def _by_token(item: ByteLogprob) -> dict[str, float]:
    """The alternatives, and the byte itself where it is not among them, as OpenAI does it."""
    chosen = [] if item.logprob is None else [(item.byte, item.logprob)]
    return {_token(byte): logprob for byte, logprob in [*item.top, *chosen]}


def _token(byte: int) -> str:
    return chr(byte) if byte < 0x80 else f"bytes:\\x{byte:02x}"


_DONE = b"data: [DONE]\n\n"
