"""The parameters that vLLM adds to OpenAI's completions, as far as they mean something for bytes.

Those with one meaning here are accepted at their neutral value and refused by name at any other.
"""

import math
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from server.fields import ByteList, NotYet, wrong
from server.schemas import MAX_LOGPROBS, DecodingRequest
from specdec.config import VOCAB_SIZE
from specdec.sampling import SamplingParams

_NO_EFFECT = "Accepted, and without any effect: no byte is a special token."


class VllmParameters(DecodingRequest):
    """A token is a byte, its id the byte's value."""

    top_k: int = Field(
        0, ge=-1, le=256, description="Choose among so many bytes; 0 and -1 are all."
    )
    stop_token_ids: ByteList | None = Field(
        None, description="Bytes that end the output and are left out of it, like those of stop."
    )
    include_stop_str_in_output: bool = Field(
        False, description="Leave the stop string or byte that ends the output in it."
    )
    allowed_token_ids: ByteList | None = Field(
        None, description="Choose among these bytes; left out, among all."
    )
    return_token_ids: bool = Field(
        False, description="Tell the bytes of prompt and output as lists of numbers too."
    )
    prompt_logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_LOGPROBS,
        description="Tell the log-probability of each byte of the prompt, and those of so many "
        "likeliest bytes. Not with stream.",
    )
    skip_special_tokens: bool = Field(True, description=_NO_EFFECT)
    spaces_between_special_tokens: bool = Field(True, description=_NO_EFFECT)
    add_special_tokens: bool = Field(True, description=_NO_EFFECT)
    use_beam_search: Annotated[Literal[False], NotYet] = False
    length_penalty: Annotated[Literal[1], NotYet] = 1
    priority: Annotated[Literal[0], NotYet] = 0
    truncate_prompt_tokens: Annotated[None, NotYet] = None
    detokenize: Annotated[Literal[True], NotYet] = True
    return_tokens_as_token_ids: Annotated[Literal[False], NotYet] = False
    bad_words: Annotated[Annotated[list[str], Field(max_length=0)] | None, NotYet] = None
    response_format: Annotated[
        Annotated[dict[Literal["type"], Literal["text"]], Field(min_length=1)] | None, NotYet
    ] = None

    @model_validator(mode="after")
    def _check_with_the_others(self) -> Self:
        if self.allowed_token_ids == b"":
            raise wrong("allowed_token_ids", "must name a byte, or nothing is left to choose from")
        if self.prompt_logprobs is not None and self.stream:
            raise wrong("prompt_logprobs", "does not go with stream")
        return self

    @property
    def stops(self) -> tuple[bytes, ...]:
        return super().stops + tuple(bytes([byte]) for byte in self.stop_token_ids or b"")

    @property
    def includes_stop(self) -> bool:
        return self.include_stop_str_in_output

    @property
    def tells_prompt(self) -> bool:
        return self.echo or self.prompt_logprobs is not None

    @property
    def alternatives(self) -> int | None:
        wanted = [n for n in (self.logprobs, self.prompt_logprobs) if n is not None]
        return max(wanted, default=None)

    @property
    def sampling(self) -> SamplingParams:
        params = super().sampling
        if self.allowed_token_ids is None:
            return params
        bias = dict(params.logit_bias) | {
            byte: -math.inf for byte in range(VOCAB_SIZE) if byte not in self.allowed_token_ids
        }
        return replace(params, logit_bias=tuple(bias.items()))
