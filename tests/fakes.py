"""A model and drafters made by hand, for tests of the decoding rules without a network.

`HashModel` gives integer logits hashed from the whole context that its cache holds, so that any
byte written to a wrong place, or left over from a rejected draft, changes what follows.
"""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from specdec.attention import Groups
from specdec.drafter import ALL, Picker

WIDTH = 4
"""Width of the fake's hidden states."""


class HashModel:
    """logits = small integers from a hash of the bytes before; `vocabulary` bytes can win.

    `peak` is added to one hashed byte, so that text is partly predictable.
    """

    def __init__(
        self, slots: int, context: int, vocabulary: int = 256, spread: int = 8, peak: int = 6
    ) -> None:
        self.cache = torch.full((slots, context + 64), -1, dtype=torch.int64)
        self.vocabulary, self.spread, self.peak = vocabulary, spread, peak
        self.seen_groups: list[Groups] = []
        self._known: dict[bytes, Tensor] = {}

    def logits_after(self, text: list[int]) -> Tensor:
        assert min(text) >= 0, "a place of the cache that was never written is in view"
        key = bytes(text)
        if key not in self._known:
            self._known[key] = self._logits(key)
        return self._known[key]

    def _logits(self, text: bytes) -> Tensor:
        state = int.from_bytes(hashlib.blake2b(text, digest_size=7).digest())
        mixed = (torch.arange(256) * 2654435761 + state % (1 << 31)) * 40503 % 65521
        logits = (mixed % self.spread).float()
        logits[state // 7 % self.vocabulary] += self.peak
        logits[self.vocabulary :] = -1000.0
        return logits

    def forward(
        self, tokens: Tensor, slot: Tensor, position: Tensor, write_index: Tensor, groups: Groups
    ) -> tuple[Tensor, Tensor]:
        assert len(tokens) == sum(count * width for count, width in groups)
        assert torch.equal(position, write_index)
        self.seen_groups.append(groups)
        self.cache[slot, write_index] = tokens
        rows = zip(slot.tolist(), write_index.tolist(), strict=True)
        logits = torch.stack([self.logits_after(self.cache[s, : w + 1].tolist()) for s, w in rows])
        hidden = torch.stack((tokens, slot, position, write_index), 1).float()
        return hidden, logits

    def copy(self, source: int, target: int, places: int) -> None:
        self.cache[target] = -1
        self.cache[target, :places] = self.cache[source, :places]


Guess = Callable[[int, list[int]], int]
"""(the model's own choice, the text before it) → the byte to draft."""


def always_right(right: int, text: list[int]) -> int:
    return right


def always_wrong(right: int, text: list[int]) -> int:
    return (right + 1) % 256


def sometimes_right(right: int, text: list[int]) -> int:
    return right if sum(text) % 3 else (right + 7) % 256


def stubborn(right: int, text: list[int]) -> int:
    """Repeats the last byte whatever the model thinks."""
    return text[-1]


def ending(right: int, text: list[int]) -> int:
    """Drafts the byte 0 at every turn: an end-of-document byte that is mostly wrong."""
    return 0


GUESSES = (always_right, always_wrong, sometimes_right, stubborn, ending)


class FakeDrafter:
    """Drafts by a `Guess`, and checks all that it is told of the model's states."""

    longest, memory = 16, ALL

    def __init__(self, model: HashModel, guess: Guess) -> None:
        self.model, self.guess = model, guess
        self.observed: dict[int, list[int]] = {}
        self.kept: dict[int, list[int]] = {}

    def observe(
        self, slots: Tensor, start: Tensor, hidden: Tensor, tokens: Tensor, advance: Tensor
    ) -> None:
        assert hidden.shape == (*tokens.shape, WIDTH)
        for row, slot in enumerate(slots.tolist()):
            count = int(advance[row])
            assert 1 <= count <= tokens.shape[1]
            assert hidden[row, :, 0].tolist() == tokens[row].tolist()
            first = int(start[row])
            assert first == int(hidden[row, 0, 3])
            known = self.observed.setdefault(slot, [])
            assert len(known) >= first, "a committed place was never observed"
            known[first:] = tokens[row, :count].tolist()

    def keep(self, slot: int) -> None:
        self.kept[slot] = list(self.observed[slot])

    def copy(self, source: int, target: int, places: int) -> None:
        assert len(self.kept[source]) == places
        self.observed[target], self.kept[target] = list(self.kept[source]), self.kept[source]

    def draft(
        self, slots: Tensor, last: Tensor, length: Tensor, gamma: int, rule: Picker
    ) -> Tensor:
        texts = []
        for slot, m, byte in zip(slots.tolist(), length.tolist(), last.tolist(), strict=True):
            committed = self.model.cache[slot, :m].tolist()
            assert self.observed.get(slot, [])[:m] == committed
            texts.append([*committed, byte])
        drafts = []
        for step in range(gamma):
            logits = torch.stack([self.model.logits_after(text) for text in texts])
            right = rule.pick(step, logits).tolist()
            drafts.append([self.guess(b, text) for b, text in zip(right, texts, strict=True)])
            for text, byte in zip(texts, drafts[-1], strict=True):
                text.append(byte)
        return torch.tensor(drafts).T
