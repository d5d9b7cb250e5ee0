"""What a request means for the model that is loaded, and whether that is possible.

Decides all that the request leaves open; from here on nothing has a default.
"""

import math
import secrets

from server.errors import Impossible, InvalidField, NoSuchModel
from server.messages import EngineInfo, Mode, Submission
from server.schemas import DecodingRequest
from server.settings import Settings
from specdec.config import VOCAB_SIZE
from specdec.sampling import SamplingParams


def resolve(
    request: DecodingRequest, request_id: str, info: EngineInfo, settings: Settings
) -> list[Submission]:
    """A submission for each choice.  The first has the request's own id and seed, the others
    those behind it; `#` is in no id that a client gives."""
    check_model(request.wanted_model, info, settings)
    mode, draft_length, lookup_length = _decode_path(request, info, settings)
    timeout_s = _timeout(request, settings)
    prompts = _prompts(request, info)
    params, eos = request.sampling, None if request.ignore_eos else info.eos
    _check_choice(params, eos)
    seed = request.seed
    if seed is None:
        # all choices' seeds below 2^53, which JSON clients keep
        seed = secrets.randbelow(2**53 - len(prompts))
    return [
        Submission(
            request_id=f"{request_id}#{choice}" if choice else request_id,
            prompt=prompt,
            max_tokens=_max_tokens(request, len(prompt), info.context),
            params=params,
            seed=shifted_seed(seed, choice),
            mode=mode,
            draft_length=draft_length,
            eos=eos,
            stops=request.stops,
            include_stop=request.includes_stop,
            timeout_s=timeout_s,
            echo=request.tells_prompt,
            logprobs=request.alternatives,
            interval_s=request.stream_interval if request.stream else math.inf,
            lookup_length=lookup_length,
        )
        for choice, prompt in enumerate(prompts)
    ]


def check_model(name: str | None, info: EngineInfo, settings: Settings) -> None:
    """Refuses a request for another model by name."""
    names = settings.names_of(info.model_name)
    if name and name not in names:
        raise NoSuchModel(f"model: the model served here is {names[0]}", "model")


def shifted_seed(seed: int, choice: int) -> int:
    """The seed of a choice: the request's plus its index, modulo 2^64, as a signed number.

    >>> shifted_seed(2**63 - 1, 1) == -(2**63)
    True
    """
    return (seed + choice + 2**63) % 2**64 - 2**63


def _prompts(request: DecodingRequest, info: EngineInfo) -> list[bytes]:
    """The prompt of each choice, an empty one being the end-of-document byte."""
    if info.eos is None and not all(request.prompts):
        field = request.prompt_field
        message = "must not be empty: the model declares no end-of-document byte"
        raise InvalidField(f"{field}: {message}", field)
    return [
        prompt or bytes([info.eos or 0]) for prompt in request.prompts for _ in range(request.n)
    ]


def _check_choice(params: SamplingParams, eos: int | None) -> None:
    """Refuses what leaves nothing to choose from while the document may not end."""
    banned = {byte for byte, bias in params.logit_bias if bias == -math.inf}
    if params.min_tokens and eos is not None and len(banned | {eos}) == VOCAB_SIZE:
        message = "while the document may not end there is no byte left to choose"
        raise Impossible(f"min_tokens: {message}", "min_tokens")


def _max_tokens(request: DecodingRequest, prompt_tokens: int, context: int) -> int:
    room = context - prompt_tokens
    code = "context_length_exceeded"
    # clients look for these words
    limit = f"this model's maximum context length is {context} tokens, which are bytes"
    if room < (request.max_tokens != 0):
        message = f"{limit}; {prompt_tokens} of the prompt leave no room"
        raise Impossible(f"{request.prompt_field}: {message}", request.prompt_field, code)
    if request.max_tokens is None:
        chosen = min(request.default_max_tokens, room)
        if request.min_tokens > chosen:
            message = f"must not be above max_tokens, here {chosen}"
            raise Impossible(f"min_tokens: {message}", "min_tokens")
        return chosen
    if request.max_tokens > room:
        message = f"{limit}; behind the prompt's {prompt_tokens} there is room for {room}"
        raise Impossible(f"max_tokens: {message}", "max_tokens", code)
    return request.max_tokens


def _timeout(request: DecodingRequest, settings: Settings) -> float:
    if request.timeout_s is None:
        return settings.max_seconds
    if request.timeout_s > settings.max_seconds:
        message = f"must be at most {settings.max_seconds:g}, this server's limit"
        raise Impossible(f"timeout_s: {message}", "timeout_s")
    return request.timeout_s


def _decode_path(
    request: DecodingRequest, info: EngineInfo, settings: Settings
) -> tuple[Mode, int, int]:
    """The path taken, the most that its prophet drafts and the most that it looks up; where
    nothing can be drafted auto is base."""
    mode = request.mode or Mode(settings.mode)
    drafts, lookups, asked = info.longest_draft, info.longest_lookup, request.draft_length
    if mode is Mode.AUTO and not (drafts or lookups):
        mode = Mode.BASE
    if mode is Mode.BASE:
        if asked is not None:
            message = "nothing is drafted, for want of a prophet or by the default mode"
            raise Impossible(f"draft_length: {message}", "draft_length")
        return mode, 0, 0
    if mode is Mode.SPECULATIVE:
        if not drafts:
            raise Impossible("mode: this model has no prophet to draft with", "mode", "no_prophet")
        lookups = 0
    longest = max(drafts, lookups)
    if asked is not None and asked > longest:
        message = f"draft_length: must be at most {longest} with this model"
        raise Impossible(message, "draft_length")
    if asked is None:
        asked = settings.draft_length if mode is Mode.SPECULATIVE else longest
    return mode, min(asked, drafts), min(asked, lookups)
