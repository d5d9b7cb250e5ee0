"""What /v1 answers: OpenAI's shapes, some of vLLM's fields, and ours under the key `specdec`."""

from typing import Literal

from pydantic import BaseModel, FiniteFloat

from server.answers import SpeculationFigures, TimingFigures
from server.messages import Exactness, FinishReason, Mode


class Model(BaseModel):
    """One name of the model; `root` is the first."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["specdec"] = "specdec"
    root: str
    parent: None = None
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


class PromptLogprob(BaseModel):
    """As in vLLM; `rank` is null for a byte of the prompt that is not among the likeliest."""

    logprob: FiniteFloat
    rank: int | None
    decoded_token: str


class CompletionChoice(BaseModel):
    """`bytes` is the output exactly, as base64; `text` the same with invalid UTF-8 replaced.

    `token_ids` are the output's, without an echoed prompt; `prompt_token_ids` come with the first
    chunk of a stream.  `prompt_logprobs` has the byte's id and the likeliest ones' for each byte of
    the prompt, none for the first.
    """

    index: int
    text: str
    bytes: str
    finish_reason: Literal["stop", "length"] | None
    logprobs: CompletionLogprobs | None = None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None
    prompt_logprobs: list[dict[int, PromptLogprob] | None] | None = None


class PromptTokensDetails(BaseModel):
    """`cached_tokens` bytes of the prompt were in a slot already and not consumed again."""

    cached_tokens: int


class CompletionUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ChoiceFigures(BaseModel):
    """`finish_reason` is this server's own: OpenAI's has no word for a timeout."""

    index: int
    seed: int
    utf8_valid: bool
    finish_reason: FinishReason
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
