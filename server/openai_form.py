"""From a finished or running request to OpenAI's shapes, whole or in chunks.

Knows nothing of how they travel.
"""

import codecs
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from server.answers import SpeculationFigures, TimingFigures, is_utf8, token_text
from server.errors import ApiError
from server.messages import EngineInfo, Finished, FinishReason, Progress, Submission
from server.openai_answers import (
    ChoiceFigures,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionUsage,
    Extras,
    PromptLogprob,
    PromptTokensDetails,
)
from server.openai_schemas import CompletionRequest
from server.streaming import OutputEncoder, server_sent_event
from specdec.logprobs import ByteLogprob


class CompletionForm:
    """A request's answer, which is a completion or a stream of them.

    In a stream, each chunk has a piece of one choice, the last of it with its figures, and then
    comes a chunk with the usage if that is wanted.
    """

    def __init__(
        self, submissions: Sequence[Submission], asked: CompletionRequest, info: EngineInfo
    ) -> None:
        """`asked.n` submissions behind one another have the same prompt."""
        self._submissions = submissions
        self._asked = asked
        self._info = info
        self._created = int(time.time())
        self._encoders = [OutputEncoder() for _ in submissions]
        self._offsets = [_Offsets() for _ in submissions]
        self._outputs = [bytearray() for _ in submissions]
        """What has been shown."""
        self._begun: set[int] = set()
        """Choices of which the prompt has been told."""
        self._written = [0 for _ in submissions]
        self._cached = [0 for _ in submissions]

    def whole(self, outcome: Sequence[Finished]) -> bytes:
        choices, figures = [], []
        for index, finished in enumerate(outcome):
            self._count(index, finished)
            prompt = self._submissions[index].prompt
            size = len(prompt) if self._asked.tells_prompt and finished.begun else 0
            choices.append(self._choice(index, finished, size))
            figures.append(self._figures(index, finished))
        completion = self._completion(choices, self._usage(), figures)
        return completion.model_dump_json(exclude_unset=True).encode()

    def piece(self, choice: int, event: Progress | Finished) -> Iterator[bytes]:
        self._count(choice, event)
        echoed = isinstance(event, Progress) and event.echo
        told = self._choice(choice, event, len(event.output) if echoed else 0)
        usage = self._usage() if self._asked.continuous_usage else None
        if isinstance(event, Progress):
            yield self._chunk(self._completion([told], usage))
            return
        figures = self._figures(choice, event)
        yield self._chunk(self._completion([told], usage, [figures]))

    def error(self, error: ApiError) -> Iterator[bytes]:
        yield server_sent_event(error.envelope)
        yield _DONE

    def end(self) -> Iterator[bytes]:
        if self._asked.include_usage:
            yield self._chunk(self._completion([], self._usage()))
        yield _DONE

    def _chunk(self, completion: Completion) -> bytes:
        # what nobody asked for is not set
        return server_sent_event(completion.model_dump(mode="json", exclude_unset=True))

    def _completion(
        self,
        choices: list[CompletionChoice],
        usage: CompletionUsage | None = None,
        figures: list[ChoiceFigures] | None = None,
    ) -> Completion:
        first = self._submissions[0]
        told: dict[str, Any] = {}
        if usage is not None or self._asked.include_usage:
            told["usage"] = usage
        if figures is not None:
            told["specdec"] = Extras(
                request_id=first.request_id,
                mode=first.mode,
                exactness=self._info.exactness,
                choices=figures,
            )
        return Completion(
            id=f"cmpl-{first.request_id}",
            object="text_completion",
            created=self._created,
            model=self._info.model_name,
            choices=choices,
            **told,
        )

    def _choice(self, index: int, event: Progress | Finished, prompt_size: int) -> CompletionChoice:
        """So many first bytes of an event's output are the prompt's."""
        asked, output, scores = self._asked, event.output, event.logprobs
        told: dict[str, Any] = {"index": index, "finish_reason": None}
        if asked.return_token_ids:
            first = index not in self._begun
            self._begun.add(index)
            told["prompt_token_ids"] = list(self._submissions[index].prompt) if first else None
            told["token_ids"] = list(output[prompt_size:])
        if (wanted := asked.prompt_logprobs) is not None:
            told["prompt_logprobs"] = [_prompt_logprob(s, wanted) for s in scores[:prompt_size]]
        if not asked.echo:
            output, scores = output[prompt_size:], scores[prompt_size:]
        self._outputs[index] += output
        told |= self._encoders[index].encode(output, final=isinstance(event, Finished))
        if isinstance(event, Finished):
            told["finish_reason"] = _finish_reason(event.reason)
        return CompletionChoice(logprobs=self._logprobs(index, scores), **told)

    def _logprobs(self, index: int, scores: Sequence[ByteLogprob]) -> CompletionLogprobs | None:
        wanted = self._asked.logprobs
        if wanted is None:
            return None
        return CompletionLogprobs(
            tokens=[token_text(item.byte) for item in scores],
            token_logprobs=[item.logprob for item in scores],
            top_logprobs=[
                None if item.logprob is None else _by_token(item, wanted) for item in scores
            ],
            text_offset=[self._offsets[index].of(item.byte) for item in scores],
        )

    def _figures(self, index: int, finished: Finished) -> ChoiceFigures:
        return ChoiceFigures(
            index=index,
            seed=self._submissions[index].seed,
            utf8_valid=is_utf8(self._outputs[index]),
            finish_reason=finished.reason,
            speculation=SpeculationFigures.of(finished),
            timing=TimingFigures.of(finished),
        )

    def _count(self, choice: int, event: Progress | Finished) -> None:
        if isinstance(event, Finished):
            self._written[choice] = event.completion_tokens
            self._cached[choice] = event.cached_tokens
        elif not event.echo:
            self._written[choice] += len(event.output)

    def _usage(self) -> CompletionUsage:
        """Of all choices so far; a prompt of several outputs counts once."""
        n = self._asked.n
        prompts = sum(len(submission.prompt) for submission in self._submissions[::n])
        written = sum(self._written)
        return CompletionUsage(
            prompt_tokens=prompts,
            completion_tokens=written,
            total_tokens=prompts + written,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(self._cached[::n])),
        )


def _finish_reason(reason: FinishReason) -> Literal["stop", "length"]:
    """OpenAI's word for it: whatever cut an output short is a limit."""
    return "stop" if reason is FinishReason.STOP else "length"


class _Offsets:
    """Where in a text the character of each byte is, byte by byte."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def of(self, byte: int) -> int:
        self._characters += len(self._decoder.decode(bytes([byte])))
        unfinished = bool(self._decoder.getstate()[0])
        return self._characters if unfinished else self._characters - 1


def _by_token(item: ByteLogprob, wanted: int) -> dict[str, float]:
    """So many alternatives, and the byte itself where it is not among them, as OpenAI does it."""
    chosen = [] if item.logprob is None else [(item.byte, item.logprob)]
    return {token_text(byte): logprob for byte, logprob in [*item.top[:wanted], *chosen]}


def _prompt_logprob(item: ByteLogprob, wanted: int) -> dict[int, PromptLogprob] | None:
    """The byte itself, then so many alternatives."""
    if item.logprob is None:
        return None
    ranks = {byte: rank for rank, (byte, _) in enumerate(item.top, start=1)}
    return {
        byte: PromptLogprob(logprob=logprob, rank=ranks.get(byte), decoded_token=token_text(byte))
        for byte, logprob in [(item.byte, item.logprob), *item.top[:wanted]]
    }


_DONE = b"data: [DONE]\n\n"
