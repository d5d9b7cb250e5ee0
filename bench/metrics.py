"""`python -m bench.metrics`: what the metrics cost, against the shortest round there is.

The best of several timings of one call each: entering a round on the engine's thread, telling the
totals once a second, and an event of a request on the event loop.
"""

import argparse
import pickle
import timeit
from collections.abc import Callable

from server.ledger import Ledger
from server.messages import Mode, Progress, Submission
from server.metrics import Metrics, RequestMeter
from server.round_costs import RoundCosts
from server.tally import per_byte_tallies
from specdec.round import RowResult, Seconds
from specdec.sampling import SamplingParams

COSTS = RoundCosts({(1, 0): 2e-4, (1, 3): 3e-4, (8, 0): 9e-4, (8, 3): 2e-3})

Results = dict[int, RowResult]


def best(call: Callable[[], object], times: int) -> float:
    """Seconds of one call."""
    return min(timeit.repeat(call, number=times, repeat=7)) / times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--round-ms", type=float, default=0.3, help="a round to compare with")
    parser.add_argument("--times", type=int, default=50_000, help="calls in a timing")
    asked = parser.parse_args()
    ledger, spent = Ledger(COSTS), Seconds(5e-5, 2e-4, 3e-5)
    per_byte = per_byte_tallies()
    latency = per_byte[Mode.AUTO]
    for rows in (1, 8):
        results = {slot: RowResult(b"abc", 3, 2, ended=False) for slot in range(rows)}
        chosen = dict.fromkeys(results, 3)

        def enter(results: Results = results, chosen: dict[int, int] = chosen) -> None:
            ledger.enter(results, chosen, False, 3e-4, spent, drafting=1)
            for _ in results:
                latency.observe(1e-4, 3)

        cost = best(enter, asked.times)
        share = cost * 1e3 / asked.round_ms
        print(f"a round of {rows} rows: {cost * 1e6:.2f} us, {share:.2%} of {asked.round_ms} ms")
    told = best(lambda: pickle.dumps(ledger.figures(per_byte, 0, None, 1)), asked.times // 50)
    print(f"the totals, once a second: {told * 1e6:.1f} us")
    submission = Submission("a", b"a", 8, SamplingParams(), 1, Mode.AUTO, 3, None)
    meter, event = RequestMeter(Metrics(1), submission), Progress(b"abc")
    cost = best(lambda: meter.observe(event), asked.times)
    print(f"an event of a request, on the event loop: {cost * 1e6:.2f} us")


if __name__ == "__main__":
    main()
