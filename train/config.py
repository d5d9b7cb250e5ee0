"""Everything that a training run is made of, as one frozen record.

Each default is stated here once; the command line is generated from it.  The record travels in
every save, and a run resumes only under the record that it was started with.
"""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from specdec.config import BlockConfig, ModelConfig, ProphetConfig
from train.limits import (
    flag,
    naming_flags,
    require_in_range,
    require_prophet_readable,
    require_readable,
)

PROPHET_LOSSES = ("cross_entropy", "kl", "tv", "lk", "coupled")
"""cross_entropy with the byte of the data; the others with the model's whole distribution."""


RESULT_STAYS = frozenset(
    ("test", "test_prompts", "evaluate_every", "save_every", "demonstrate_every", "tensorboard")
)
"""What a run may be resumed with other values of: no weight depends on it."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of model and prophet; the prophet is as wide as the model.

    `prophet_depth` and `leading_states` are the autoregressive kind's: the parallel one has one
    block, which sees a state at each place.
    """

    hidden_size: int = 256
    depth: int = 8
    heads: int = 4
    kv_heads: int = 2
    intermediate_size: int = 704
    context: int = 1024
    rope_theta: float = 10000.0
    prophet_kind: str = "autoregressive"
    prophet_depth: int = 1
    leading_states: int = 2
    draft_length: int = 8
    eos_byte: int = 0

    @property
    def block(self) -> BlockConfig:
        return BlockConfig(
            hidden_size=self.hidden_size,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.hidden_size // self.heads,
            intermediate_size=self.intermediate_size,
            rope_theta=self.rope_theta,
        )

    @property
    def model(self) -> ModelConfig:
        return ModelConfig(
            block=self.block,
            num_hidden_layers=self.depth,
            max_position_embeddings=self.context,
            eos_token_id=None if self.eos_byte < 0 else self.eos_byte,
        )

    @property
    def prophet(self) -> ProphetConfig:
        return ProphetConfig(
            block=self.block,
            num_hidden_layers=self.prophet_depth,
            model_hidden_size=self.hidden_size,
            kind=self.prophet_kind,
            leading_states=1 if self.prophet_kind == "parallel" else self.leading_states,
            draft_length=self.draft_length,
        )

    def require_exportable(self) -> None:
        """ValueError, by flag, where the checkpoint's reader would refuse the export."""
        for depth, check in (
            ("--depth", lambda: require_readable(self.model)),
            ("--prophet-depth", lambda: require_prophet_readable(self.prophet)),
        ):
            try:
                check()
            except ValueError as error:
                raise naming_flags(error, depth) from None


@dataclass(frozen=True)
class TrainConfig:
    """Data, schedule and optimizer of one run.

    A step takes `accumulate` batches of `batch` rows of the first of `windows` bytes; the steps go
    through the windows in order, each for its share of them, and rows are cut or added so that a
    step keeps its bytes.  `starts` is the share of offsets in a window at which the prophet is
    trained, 0 to train the model alone; `detach` keeps the prophet's gradient out of the model.
    `prophet_reach` weighs each drafted place by the probability that a round gets as far; in the
    first `prophet_curriculum` of the steps the places that are trained rise from one to all.
    All paths of `data` are one source, in the order in which they are named; with `mix`, one weight
    each, they are sources of their own.
    What `validation` files say chooses the best weights; the card's figures come from `test` files
    (the validation ones where there are none), acceptance from `test_prompts` prompts of each.
    `data_limit` bytes of each source are used, 0 for all, as where whole files are split off.
    `split` by fraction or by file; `separate` puts the end-of-document byte behind each file.
    `frozen` names a checkpoint whose model is kept as it is while a prophet is trained for it;
    `start_from` a run whose last weights and optimizer state this one begins with, or a checkpoint
    for its weights alone; a frozen run takes the prophet of one that holds both.  `dtype` auto
    takes what multiplies faster on the device; `compile` runs both through torch.compile.
    """

    data: tuple[str, ...] = ()
    mix: tuple[float, ...] = ()
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    test_prompts: int = 64
    validation_fraction: float = 0.05
    split: str = "fraction"
    separate: bool = False
    data_limit: int = 0
    frozen: str = ""
    start_from: str = ""
    steps: int = 2000
    batch: int = 24
    accumulate: int = 1
    windows: tuple[int, ...] = (256, 512, 1024)
    window_shares: tuple[float, ...] = (0.6, 0.3, 0.1)
    starts: float = 0.125
    detach: bool = True
    prophet_weight: float = 1.0
    prophet_loss: str = "kl"
    prophet_reach: bool = False
    prophet_curriculum: float = 0.0
    optimizer: str = "muon"
    muon_rate: float = 0.02
    muon_momentum: float = 0.95
    adam_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 50
    decay_fraction: float = 0.5
    clip: float = 1.0
    seed: int = 0
    dtype: str = "auto"
    compile: bool = False
    evaluate_every: int = 100
    save_every: int = 50
    demonstrate_every: int = 0
    tensorboard: bool = False
    validation_bytes: int = 65536
    shape: ModelShape = field(default_factory=ModelShape)

    def __post_init__(self) -> None:
        require_in_range({**vars(self.shape), **vars(self)})
        choices = {
            "dtype": ("auto", "bfloat16", "float32"),
            "optimizer": ("muon", "adamw", "adam"),
            "split": ("fraction", "file"),
            "prophet_loss": PROPHET_LOSSES,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{flag(name)}: must be one of {', '.join(allowed)}, not {getattr(self, name)}"
                )
        self.shape.require_exportable()
        if self.mix and len(self.mix) != len(self.data):
            raise ValueError(f"--mix: has {len(self.mix)} weights for {len(self.data)} data paths")
        if not self.windows or len(self.windows) != len(self.window_shares):
            raise ValueError("--windows, --window-shares: must name the same number of windows")
        if not sum(self.window_shares):
            raise ValueError("--window-shares: must not all be 0")
        if self.data_limit and self.split == "file" and not self.validation:
            raise ValueError(
                "--data-limit: cuts what is split by fraction: 0 where whole files are split off"
            )
        if self.separate and self.shape.eos_byte < 0:
            raise ValueError("--separate: needs an --eos-byte to put behind each file")
        if self.frozen and not self.starts:
            raise ValueError(
                "--starts: with a frozen model there is nothing to train but the prophet"
            )
        rate = self.muon_rate if self.optimizer == "muon" else self.adam_rate
        if self.optimizer != "adam" and rate * self.weight_decay > 1:
            raise ValueError(
                f"--weight-decay: {self.weight_decay} at a rate of {rate} would take more than "
                "the whole of a weight in a step"
            )
        # a frozen model has its own context, which is known once it is read
        if not self.frozen and max(self.windows) > self.shape.context:
            raise ValueError(
                f"--windows: {max(self.windows)} exceeds the --context of {self.shape.context}"
            )
        for name in ("draft_length", "leading_states"):
            if min(self.windows) <= getattr(self.shape, name):
                raise ValueError(
                    f"--windows: must exceed the {flag(name)} of {getattr(self.shape, name)}"
                )

    @property
    def sources(self) -> tuple[tuple[str, ...], ...]:
        """Arguments of `data` that are one source: all of them, or with `mix` each alone."""
        return tuple((path,) for path in self.data) if self.mix else (self.data,)

    def rows_of(self, length: int) -> int:
        """Rows of `length` bytes that hold as many as `batch` rows of the first window."""
        return max(1, self.batch * self.windows[0] // length)

    def window_at(self, step: int) -> tuple[int, int]:
        """Rows and bytes per row of a step, counted from 0."""
        done = (step + 0.5) / self.steps * sum(self.window_shares)
        passed = [share for share in accumulate(self.window_shares) if share < done]
        length = self.windows[min(len(passed), len(self.windows) - 1)]
        return self.rows_of(length), length

    def drafts_at(self, step: int) -> int:
        """Drafted places that are trained in a step, counted from 0."""
        rising = self.prophet_curriculum * self.steps
        gamma = self.shape.draft_length
        return gamma if step >= rising else 1 + int((gamma - 1) * step / rising)

    def rate_at(self, step: int) -> float:
        """Share of the full learning rate: linear warm-up, flat, then linear to zero."""
        rising = (step + 1) / max(1, self.warmup)
        falling = (self.steps - step) / max(1.0, self.steps * self.decay_fraction)
        return min(1.0, rising, falling)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "TrainConfig":
        """ValueError where the text is no configuration, or has fields that are not known here."""
        record = json.loads(text)
        shape = record.pop("shape")
        unknown = {*record} - {f.name for f in fields(cls)}
        unknown |= {*shape} - {f.name for f in fields(ModelShape)}
        if unknown:
            raise ValueError(
                f"was saved with settings that this version does not know: "
                f"{', '.join(sorted(unknown))}"
            )
        lists = {f.name for f in fields(cls) if str(f.type).startswith("tuple")}
        values: dict[str, Any] = {k: tuple(v) if k in lists else v for k, v in record.items()}
        return cls(shape=ModelShape(**shape), **values)

    def differing(self, now: "TrainConfig") -> dict[str, tuple[Any, Any]]:
        """Field → both values, where they differ and weights, or which are the best, may too.

        Of data and of a frozen model it is not the name that counts.
        """
        before, after = ({**vars(c), **vars(c.shape)} for c in (self, now))
        left_out = RESULT_STAYS | {"shape", "data", "validation", "frozen"}
        return {
            name: (value, after[name])
            for name, value in before.items()
            if name not in left_out and value != after[name]
        }

    def with_absolute_paths(self) -> "TrainConfig":
        def absolute(paths: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(str(Path.cwd() / path) for path in paths)

        def one(path: str) -> str:
            return str(Path.cwd() / path) if path else ""

        return replace(
            self,
            data=absolute(self.data),
            validation=absolute(self.validation),
            test=absolute(self.test),
            frozen=one(self.frozen),
            start_from=one(self.start_from),
        )


SEED = TrainConfig(
    data=(),
    mix=(),
    validation=(),
    test=(),
    test_prompts=64,
    validation_fraction=5 / 95,
    split="fraction",
    separate=False,
    data_limit=95_000_000,
    frozen="",
    start_from="",
    steps=100_000,
    batch=4,
    accumulate=4,
    windows=(512,),
    window_shares=(1.0,),
    starts=1.0,
    detach=False,
    prophet_weight=1.0,
    prophet_loss="cross_entropy",
    prophet_reach=False,
    prophet_curriculum=0.0,
    optimizer="adam",
    muon_rate=0.02,
    muon_momentum=0.95,
    adam_rate=1e-4,
    weight_decay=0.0,
    warmup=0,
    decay_fraction=0.0,
    clip=0.5,
    seed=0,
    dtype="auto",
    compile=False,
    evaluate_every=100,
    save_every=50,
    demonstrate_every=100,
    tensorboard=False,
    validation_bytes=65536,
    shape=ModelShape(
        hidden_size=512,
        depth=10,
        heads=8,
        kv_heads=8,
        intermediate_size=1408,
        context=512,
        rope_theta=10000.0,
        prophet_kind="autoregressive",
        prophet_depth=2,
        leading_states=2,
        draft_length=5,
        eos_byte=-1,
    ),
)
"""The recipe of lucidrains/speculative-decoding's prophet trainer, on a Llama block.

Every field is stated: a better default recipe must not change it.
"""

PRESETS = {"default": TrainConfig(), "seed": SEED}
