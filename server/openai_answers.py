"""What /v1 answers: OpenAI's shapes, whole and in chunks, and ours under the key `specdec`."""

import time
from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import BaseModel

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


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["specdec"] = "specdec"
    max_model_len: int


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class CompletionChoice(BaseModel):
    """`bytes` is the output exactly, as base64; `text` the same with invalid UTF-8 replaced."""

    index: int
    text: str
    bytes: str
    finish_reason: FinishReason | None
    logprobs: None = None


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
        self, submissions: Sequence[Submission], info: EngineInfo, include_usage: bool
    ) -> None:
        self._submissions = submissions
        self._info = info
        self._include_usage = include_usage
        self._created = int(time.time())
        self._encoders = [OutputEncoder() for _ in submissions]
        self._outputs = [bytearray() for _ in submissions]
        self._completion_tokens = 0

    def whole(self, outcome: Sequence[tuple[Finished, bytes]]) -> Completion:
        choices = []
        figures = []
        for index, (finished, output) in enumerate(outcome):
            choices.append(self._choice(index, output, finished))
            figures.append(self._figures(index, finished, output))
            self._completion_tokens += finished.completion_tokens
        return self._completion(choices, self._usage(), figures)

    def piece(self, choice: int, event: Progress | Finished) -> Iterator[bytes]:
        self._outputs[choice] += event.output
        if isinstance(event, Progress):
            yield self._chunk(self._completion([self._choice(choice, event.output)]))
            return
        self._completion_tokens += event.completion_tokens
        figures = self._figures(choice, event, bytes(self._outputs[choice]))
        last = self._choice(choice, event.output, event)
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

    def _choice(
        self, index: int, output: bytes, finished: Finished | None = None
    ) -> CompletionChoice:
        encoded = self._encoders[index].encode(output, final=finished is not None)
        return CompletionChoice(
            index=index,
            text=encoded["text"],
            bytes=encoded["bytes"],
            finish_reason=finished.reason if finished else None,
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
        prompts = sum(len(submission.prompt) for submission in self._submissions)
        written = self._completion_tokens
        return CompletionUsage(
            prompt_tokens=prompts, completion_tokens=written, total_tokens=prompts + written
        )


_DONE = b"data: [DONE]\n\n"
