"""Shapes of a model and of its prophet, as frozen records.

Knows what combinations are possible and refuses the others by field name.  Does not know files:
`specdec.checkpoint` turns Hugging Face's config.json into a `ModelConfig` and back.
"""

from dataclasses import dataclass

VOCAB_SIZE = 256

LONGEST_DRAFT = 16
"""The most bytes that any prophet drafts in one round."""

PROPHET_KINDS = ("autoregressive", "parallel")


def _require_positive(owner: str, **fields: float) -> None:
    for name, value in fields.items():
        if not value > 0:
            raise ValueError(f"{owner}.{name} must be above 0, not {value}")


@dataclass(frozen=True)
class BlockConfig:
    """Sizes of one Llama block: attention heads, feed-forward width and rotary base."""

    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        owner = type(self).__name__
        _require_positive(
            owner,
            hidden_size=self.hidden_size,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            intermediate_size=self.intermediate_size,
            rope_theta=self.rope_theta,
            rms_norm_eps=self.rms_norm_eps,
        )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{owner}.num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"{owner}.head_dim must be even for rotary positions")

    @property
    def query_groups(self) -> int:
        """Query heads that share one key-value head."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def qkv_heads(self) -> int:
        """Heads that the fused projection produces: queries, then keys, then values."""
        return self.num_attention_heads + 2 * self.num_key_value_heads


@dataclass(frozen=True)
class ModelConfig:
    """A byte-level Llama: 256 embeddings, `num_hidden_layers` blocks, a head over 256 bytes.

    `eos_token_id` is the end-of-document byte, where the model declares one.
    """

    block: BlockConfig
    num_hidden_layers: int
    max_position_embeddings: int
    tie_word_embeddings: bool = False
    eos_token_id: int | None = None

    def __post_init__(self) -> None:
        _require_positive(
            "ModelConfig",
            num_hidden_layers=self.num_hidden_layers,
            max_position_embeddings=self.max_position_embeddings,
        )
        if self.eos_token_id is not None and not 0 <= self.eos_token_id < VOCAB_SIZE:
            raise ValueError(f"ModelConfig.eos_token_id must be a byte, not {self.eos_token_id}")

    @property
    def hidden_size(self) -> int:
        return self.block.hidden_size


@dataclass(frozen=True)
class ProphetConfig:
    """A prophet: its own block sizes, depth and what it is fed.

    `kind` is autoregressive or parallel.  `leading_states` is s, the number of hidden states of
    the model that open its input: of the parallel kind, which has one block and sees a state at
    each place, 1.  `draft_length` is the γ that it was trained for; `state` names where the states
    are taken.
    """

    block: BlockConfig
    num_hidden_layers: int
    model_hidden_size: int
    kind: str = "autoregressive"
    leading_states: int = 2
    draft_length: int = 8
    state: str = "final_norm"

    def __post_init__(self) -> None:
        _require_positive(
            "ProphetConfig",
            num_hidden_layers=self.num_hidden_layers,
            model_hidden_size=self.model_hidden_size,
            leading_states=self.leading_states,
            draft_length=self.draft_length,
        )
        if self.kind not in PROPHET_KINDS:
            known = " and ".join(PROPHET_KINDS)
            raise ValueError(f"ProphetConfig.kind {self.kind!r} is not known: {known} are")
        if self.kind == "parallel":
            for name in ("num_hidden_layers", "leading_states"):
                if getattr(self, name) != 1:
                    raise ValueError(
                        f"ProphetConfig.{name} must be 1 for the parallel kind, "
                        f"not {getattr(self, name)}"
                    )
        if self.draft_length > LONGEST_DRAFT:
            raise ValueError(
                f"ProphetConfig.draft_length must be at most {LONGEST_DRAFT}, "
                f"not {self.draft_length}"
            )
        if self.state != "final_norm":
            raise ValueError(f"ProphetConfig.state {self.state!r} is not known: final_norm is")
