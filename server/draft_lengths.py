"""How many bytes each row drafts that leaves it open: what gives the most bytes per second.

What a round costs was measured at start (`RoundCosts`) and is corrected by what rounds cost lately;
how many drafts are accepted is estimated for each row and case by position (`Acceptance`), from all
rows at first: of the prophet's as they are tried, of what is looked up also where it is not.  Rows
of a batch share a round, so they are decided together.  Estimates can be wrong; what drafting has
lost against plain rounds is added up from what was measured, and there is an end to it (`Budget`).
Plain Python, no tensors, no clock.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

from server.acceptance import Acceptance, Reached
from server.budget import Budget
from server.open_row import CASES, TRIALS, USUAL, Mean, OpenRow, Shares
from server.round_costs import Lately, RoundCosts
from specdec.lookup import NO_LOOKUP, Lookup
from specdec.round import MOST_ROUNDS, PLAIN, RowResult, Try

LENGTHS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
"""Draft lengths that are considered, of the prophet's drafts."""
LOOKUP_LENGTHS = (1, 2, 3, 5, 8, 16)
"""And of what is looked up."""


class Drafts(NamedTuple):
    """By slot what the prophet drafts, and what is looked up where its text repeats itself, of rows
    for which it may be; in so many rounds at most."""

    lengths: dict[int, int]
    lookups: dict[int, Lookup]
    rounds: int = MOST_ROUNDS


class DraftLengths:
    """Decides for all rows that leave it open, every few rounds."""

    EVERY = 256
    """Rounds between decisions, and eight more for each row: they cost time too."""
    FIRST = 16
    """Rounds until the second decision; then four times as many, and so on."""
    LEARNED = 500
    """After so many rounds with drafts the first decision is as good as later ones."""
    GAIN = 1.03
    """What another length has to bring at least, of a row's bytes in a case."""
    MARGIN = 1.04
    """What drafting has to promise over plain decoding: costs are believed that well, no better."""
    PROBE = 3
    """A row that does not draft tries so many bytes between decisions, if that may pay."""
    RESTING = 2
    """Decisions are so many times rarer while nobody drafts and nothing speaks for trying."""
    TOLD = 64
    """Among so many rows whose drafts could hardly pay one may draft all the same."""
    PLAIN_EVERY, PLAIN = 1600, 32
    """While rows draft, so many rounds among so many are plain: what they cost is the yardstick."""
    LEARN_EVERY = 3
    """From one of so many calls with drafts something is learned, while nothing is tried."""
    LOOK_EVERY = 64
    """While nobody drafts one call in so many rounds is observed."""
    FEW = 48
    """Where no row may write as many bytes more it is not decided again: it would hardly pay."""
    REMEMBERED = 800
    """Rounds at most from which is known how often texts repeat themselves."""
    SETTLING = 12
    """So many plain rounds behind those that drafted are not timed: they take longer."""

    def __init__(
        self,
        costs: RoundCosts,
        longest: int,
        repeats: Callable[[int], Mapping[Try, int]] = lambda slot: {},
    ) -> None:
        """`longest`: what the prophet drafts at most, 0 without one; `repeats`: `Decoder.repeats`,
        of slots that are among a plan's lookups."""
        self._costs, self._longest, self._repeats = costs, longest, repeats
        self._usual = [Acceptance(memory=400) for _ in range(CASES)]
        self._made = Acceptance(memory=400, at_first=1.0)
        self._met = [4.0] + [1.0] * (CASES - 1)
        self._rows: dict[int, OpenRow] = {}
        self._seen: dict[int, Lookup] = {}
        """Those whose repeats are seen, with nothing to look up."""
        self._among = 0
        """Rows for which it was decided."""
        self._gain = 1.0
        """Bytes per second where nothing is looked up, against plain rounds: the rows' mean."""
        self._age = 0
        self._wait = self.FIRST
        self._worth: dict[int, bool] = {}
        """Whether drafts may pay among so many rows, by what is known."""
        self._decided = self._drafting = self._trying = False
        self._rested = True
        """Whether the prophet has drafted for nobody, or not yet for all rows."""
        self._telling = False
        """Whether the first round that is over tells it what it has missed: it takes longer."""
        self._since_plain = self._plain_left = self._tried = 0
        self._settling = self._hopeless = self._unseen = self._learned = self._calls = 0
        self._host = Lately()
        """The host's part, by round, of calls in which nobody drafts."""
        self._one = costs.seconds(1, 0)
        self._budgets: dict[int, Budget] = {}
        """By how many rows share the round, roughly: what fails among many may pay for few."""

    def enter(self, slot: int, most: int, longest: int = 0) -> None:
        """A row begins to decode for which the prophet may draft up to `most` bytes a round, or up
        to `longest` may be looked up."""
        row = OpenRow(most, self._usual, self._met, self._made, longest)
        if self._rows and self._drafting:  # as the others until it is decided
            for index, case in enumerate(row.cases):
                lengths = [other.cases[index].length for other in self._rows.values()]
                most = min(case.most, max(set(lengths), key=lengths.count))
                known = self._costs.lookup_lengths if index else self._costs.lengths
                case.length = max(gamma for gamma in known if gamma <= most)
        elif not self._rows:
            self._decided, self._age, self._wait = False, 0, self.FIRST
        self._rows[slot] = row
        if row.may_look:
            self._seen[slot] = NO_LOOKUP
        self._rested = True

    def _budget(self, rows: int) -> Budget:
        one, size = self._one, rows.bit_length()
        if size not in self._budgets:
            self._budgets[size] = Budget(first=40 * one, again=10 * one, most=60 * one)
        return self._budgets[size]

    @property
    def rows(self) -> int:
        """How many there are to decide for."""
        return len(self._rows)

    def worth_watching(self, rows: int) -> bool:
        """Whether a row that begins to decode among so many may ever have the prophet draft.

        What a prophet has to be told costs a share of the prompt; where drafts could not pay even
        if they were as good as is still thinkable, only one row in `TOLD` pays it.
        """
        if rows not in self._worth:
            self._worth[rows] = self._may_pay(rows)
        if self._worth[rows]:
            return True
        self._hopeless += 1
        return self._hopeless % self.TOLD == 0

    def _may_pay(self, rows: int) -> bool:
        hoped, made = self._usual[USUAL].hoped(), self._made.hoped()
        least = self.MARGIN / self._costs.plain(rows)
        drafting = (gamma for gamma in self._costs.lengths if 0 < gamma <= self._longest)
        return any(hoped[g] > least * self._costs.seconds(rows, g, made[g] - 1) for g in drafting)

    def p_min(self, rows: int) -> float:
        """Below which chance of being kept drafts had better be omitted: a place takes time, in
        which other rounds would give bytes."""
        return min(1.0, self._gain * self._costs.p_min(rows))

    def leave(self, slot: int) -> None:
        self._rows.pop(slot, None)
        if self._seen.pop(slot, None):
            self._see_repeats(slot)
        if not self._rows:
            self._gain = 1.0

    def lie_behind(self, places: float) -> None:
        """From now on rows, of whatever mode, have so many bytes behind them, in the mean."""
        self._costs.lie_behind(places)

    def plan(self, fixed: Sequence[int], consuming: bool = False, left: float = math.inf) -> Drafts:
        """What each row drafts in the next rounds, beside rows whose lengths are fixed.

        While prompts are consumed more rows are about to come, so nothing is decided for those
        that there are.  None of them writes more than `left` bytes.
        """
        if not self._rows:
            return Drafts({}, {})
        count = len(self._rows) + len(fixed)
        changed = not self._decided or 3 * count >= 5 * self._among
        if 3 * count <= 2 * self._among:  # many fewer than when it was decided
            if count > 1:  # those that are left may end as soon
                self._wait = min(self._wait, self._age + self.FIRST)
            else:
                changed = True
        ending = self._decided and left < self.FEW and self._budget(count).open
        if not ending and (self._age >= self._wait or (changed and not consuming)):
            self._among = count
            # soon again at first: what was measured may be far off
            most = self.EVERY + 8 * len(self._rows)
            first = self.FIRST if self._learned < self.LEARNED else most
            self._wait = min(4 * self._wait, most) if self._decided else first
            self._age = 0
            self._decide(fixed)
            self._decided = True
            self._drafting = any(row.drafts for row in self._rows.values())
            self._trying = any(row.probe for row in self._rows.values())
            if not (self._drafting or self._trying):
                self._wait = self.RESTING * most
        self._age += 1
        if self._since_plain >= self.PLAIN_EVERY:
            self._since_plain, self._plain_left = 0, self.PLAIN
        wait = MOST_ROUNDS if ending else max(self.FIRST, self._wait - self._age + 1)
        rounds = self._plain_left or wait
        if self._plain_left or not (self._drafting or self._trying):
            return Drafts(dict.fromkeys(self._rows, 0), self._seen.copy(), rounds)
        lengths, lookups = {}, {}
        for slot, row in self._rows.items():
            lengths[slot], lookup = row.next_draft()
            if slot in self._seen:
                lookups[slot] = lookup
        return Drafts(lengths, lookups, TRIALS if self._trying else rounds)

    def over(self, lengths: Mapping[int, int], rounds: int) -> bool:
        """Rounds that were planned so are over.  Whether they are to be observed: looking takes
        time too."""
        self._age += rounds - 1
        drafting = any(lengths.values())
        self._telling, self._rested = drafting and self._rested, not drafting
        if self._plain_left:
            self._plain_left = max(0, self._plain_left - rounds)
        elif self._drafting and self._rows:
            self._since_plain += rounds
        if self._drafting or self._trying or drafting:
            return True
        self._unseen += rounds
        return self._unseen >= self.LOOK_EVERY

    def observe(
        self,
        results: Mapping[int, RowResult],
        seconds: Sequence[float],
        whole: float | None,
        left: Collection[int] = (),
    ) -> None:
        """Rounds are over: what they gave, by slot, how long each took, and all of them with the
        host's part; nothing of that where prompts were consumed.

        Of rows that had `left` when the round was read, under numbers that are no slot's, what they
        cost counts and nothing that they were given.
        """
        if not results:
            return
        count, rows = max(len(result.rounds) for result in results.values()), len(results)
        drafting = any(result.wanted for result in results.values())
        self._calls += 1
        # what is settled is looked at now and then: that takes time too
        unsettled = self._trying or self._wait < self.EVERY
        learning = unsettled or self._calls % self.LEARN_EVERY == 0
        if learning and drafting:
            self._learned += count
            self._learn(results, left)
        if self._trying:
            for row in self._rows.values():
                row.try_on(count)
            self._trying = any(row.probe for row in self._rows.values())
        if whole is None:
            return
        plain, spent = self._costs.plain(rows), sum(seconds)
        host = whole - spent
        if not drafting:
            passed, self._unseen = max(count, self._unseen), 0
            held_up, settled = seconds[: self._settling], seconds[self._settling :]
            self._settling = max(0, self._settling - count)
            self._host.observe(host / count, count)
            if settled:
                self._costs.observe_plain(rows, sum(settled) / len(settled), len(settled))
            usual = (passed - len(held_up)) * plain
            lost = min(sum(held_up), 2 * len(held_up) * plain)
            if self._rows or left:  # nothing is to be had of rows that never draft
                self._budget(rows).spend(passed * plain, usual + lost)
            return
        given = sum(len(r.output) for slot, r in results.items() if slot not in left) / rows
        if self._host.enough:  # calls with drafts are shorter, and each takes the host longer
            spent += max(0.0, host - given * self._host.mean)
        self._settling = self.SETTLING
        first = int(self._telling)
        if learning and len(seconds) > first:
            them = (result.rounds[first:] for result in results.values())
            # one that ended before the last of these rounds idled in the others
            self._costs.observe(zip_longest(*them, fillvalue=PLAIN), seconds[first:count])
        mine = self._rows.keys() | left
        if all(slot in mine or not result.wanted for slot, result in results.items()):
            # what rows that always draft cost is not this one's loss
            budget = self._budget(rows)
            budget.spend(plain * given, min(spent, 3 * plain * given))
            if not budget.open:
                self._age = self._wait  # decided again at once

    def _learn(self, results: Mapping[int, RowResult], left: Collection[int]) -> None:
        """What was accepted of the prophet's drafts, and how many were made."""
        self._worth.clear()
        for slot, result in results.items():
            if slot in left or not result.wanted:
                continue
            accepted, made = Reached(), Reached()
            for (drafted, kept, tier, omitted), times in result.tally.items():
                wanted = drafted + omitted
                if wanted and tier < 0:
                    accepted.add(wanted, kept, times)
                    made.add(wanted, drafted, times)
            if accepted.rounds:
                self._usual[USUAL].observe(accepted)
                self._made.observe(made)
                if row := self._rows.get(slot):
                    row.observe(accepted, made)

    def _see_repeats(self, slot: int, row: OpenRow | None = None) -> None:
        """What a text has repeated since that was last looked at."""
        without, matches = 0, defaultdict[int, Reached](Reached)
        for (drafted, right, tier, _), times in self._repeats(slot).items():
            if drafted:
                matches[1 + tier].add(drafted, right, times)
            else:
                without = times
        self._met[USUAL] += without
        for index, reached in matches.items():
            self._met[index] += reached.rounds
            self._usual[index].observe(reached)
        if row:
            row.observe_repeats(without, matches)

    def _decide(self, fixed: Sequence[int]) -> None:
        for slot in self._seen:
            self._see_repeats(slot, self._rows[slot])
        rows = list(self._rows.values())
        self._gain = 1.0
        self._worth.clear()
        count = len(rows) + len(fixed)
        if not self._budget(count).open:
            for row in rows:
                row.rest()
            return
        watched = sum(row.cases[USUAL].most > 0 for row in rows) + sum(n > 0 for n in fixed)
        shares = self._shares(count, watched)
        # what fixed rows will yield is not known here; they draft as others do
        usual, made = self._usual[USUAL].expected(), self._made.expected()
        beside = sum(self._costs.share(count, watched, n, made[n] - 1) for n in fixed)
        given = sum(usual[min(gamma, self._longest)] for gamma in fixed)
        for row in rows:
            row.weigh(shares)

        def others() -> list[Mean]:
            """Beside each row."""
            each = [row.mean(shares) for row in rows]
            gain = given + sum(own.gain for own in each)
            seconds = beside + sum(own.seconds for own in each)
            return [Mean(gain - own.gain, seconds - own.seconds) for own in each]

        times = self.GAIN if self._decided else 1.0
        # all at once, so that rows alike are treated alike: only what all do tells prices
        for _ in range(4):  # what is best for a row depends on what the others do
            them = others()
            answers = [
                row.answer(shares, mean, self.MARGIN, times)
                for row, mean in zip(rows, them, strict=True)
            ]
            if answers == [row.lengths for row in rows]:
                break
            for row, lengths in zip(rows, answers, strict=True):
                row.settle(lengths)
        else:
            them = others()
        gains = [row.wish(shares, mean, self.PROBE) for row, mean in zip(rows, them, strict=True)]
        self._gain = max(1.0, sum(gains) / len(gains))
        # what one finds others will believe; all at once would cost as many times as much
        trying = [row for row in rows if row.probe]
        for row in trying:
            if row is not trying[self._tried % len(trying)]:
                row.probe = 0
        self._tried += bool(trying)
        if sum(self._met) > self.REMEMBERED:  # what was met a while ago counts for less
            self._met = [n / 2 for n in self._met]

    def _shares(self, count: int, drafting: int) -> Shares:
        """Of one row among so many, of which the prophet may draft for some."""
        drafted = self._costs.shares(count, drafting)
        looked_up = self._costs.lookup_shares(count)
        # what could not pay if all of it were right is not looked for
        if not any((g + 1) * drafted[0] > seconds for g, seconds in looked_up.items()):
            looked_up = {}
        omitted = self._costs.share(count, drafting, 1, made=0.0)
        return Shares(drafted, looked_up, omitted)
