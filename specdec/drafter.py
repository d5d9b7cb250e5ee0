"""What guesses bytes while decoding: the interface that `specdec.torch_round` drives.

A drafter cannot change what is decoded, only how fast: the model judges every byte.  It is told
what the model computed (`observe`) for every committed place of the rows that may draft, drafting
or not, so that it can start at any round.

c rows of a group, W rows verified for each, γ drafts, D width of the model.
"""

from typing import NamedTuple, Protocol

from torch import Tensor

ALL = 1 << 40
"""More bytes than any prompt has."""


class Following(NamedTuple):
    """What a table [256, 256] says of the byte behind each byte, for rows with such bytes [c]."""

    table: Tensor
    byte: Tensor

    def added(self, logits: Tensor) -> Tensor:
        """To logits [c, 256]."""
        return logits + self.table[self.byte]


class Picker(Protocol):
    """The byte rule with the rows' own noise: what of a `specdec.rule.TorchRule` a drafter uses."""

    def pick(self, step: int, logits: Tensor, following: Following | None = None) -> Tensor:
        """Bytes [c] for draft `step`, from 0, of logits [c, 256], with `following` added."""


class SlotDrafter(Protocol):
    """What a decoder needs to know of one, however its rounds are run."""

    longest: int
    """The most bytes that a row may be drafted at a time."""
    memory: int
    """Of a prompt it need be told of the last so many bytes."""

    def keep(self, slot: int) -> None:
        """Remembers what the slot knows now, for `copy`, whatever it observes from here on."""

    def copy(self, source: int, target: int, places: int) -> None:
        """Makes slot `target`, which may be `source` itself, know what was kept of `source`: the
        first `places` of a text."""


class Drafter(SlotDrafter, Protocol):
    def observe(
        self, slots: Tensor, start: Tensor, hidden: Tensor, tokens: Tensor, advance: Tensor
    ) -> None:
        """Takes the model's states hidden [c, W, D] of tokens [c, W], consumed by slots [c] from
        index start [c] on.

        Of row i the first advance[i] ≥ 1 are committed; the rest are rejected drafts.
        """

    def draft(
        self, slots: Tensor, last: Tensor, length: Tensor, gamma: int, rule: Picker
    ) -> Tensor:
        """Bytes [c, γ] that may follow last [c], the byte at index length [c] of each row."""
