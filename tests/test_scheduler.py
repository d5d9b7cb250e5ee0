"""The scheduler by itself: no model, no thread, a clock that the test turns."""

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest

from server.draft_lengths import DraftLengths
from server.messages import (
    Failed,
    Finished,
    FinishReason,
    Mode,
    Progress,
    Speculation,
    Submission,
)
from server.round_costs import RoundCosts
from server.scheduler import LONGEST_SPAN_S, SPAN_S, Deliveries, Plan, Scheduler
from specdec.logprobs import ByteLogprob
from specdec.round import MOST_ROUNDS, RowResult, Try
from specdec.sampling import SamplingParams


def submission(name: str, **fields: object) -> Submission:
    base = Submission(
        request_id=name,
        prompt=b"p",
        max_tokens=8,
        params=SamplingParams(),
        seed=1,
        mode=Mode.SPECULATIVE,
        draft_length=3,
        eos=0,
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def emit(output: bytes, accepted: int = 0, ended: bool = False) -> RowResult:
    return RowResult(output, drafted=3, accepted=accepted, ended=ended)


def one_round(
    scheduler: Scheduler, results: Mapping[int, RowResult], now: float = 1.0
) -> tuple[Plan, Deliveries]:
    plan = scheduler.plan(now)
    return plan, scheduler.apply(plan, results, now)


def output_of(deliveries: Deliveries, name: str) -> bytes:
    return b"".join(
        event.output
        for request_id, event in deliveries
        if request_id == name and not isinstance(event, Failed)
    )


def test_first_come_first_served_and_slots_are_reused() -> None:
    scheduler = Scheduler(2, 128)
    for name in "abc":
        scheduler.submit(submission(name), 0.0)
    plan, _ = one_round(scheduler, {0: emit(b"12345678"), 1: emit(b"1")})
    assert [(slot, s.request_id) for slot, s in plan.open] == [(0, "a"), (1, "b")]
    assert (scheduler.running, scheduler.waiting) == (1, 1)
    plan = scheduler.plan(2.0)
    assert plan.close == (0,)
    assert [(slot, s.request_id) for slot, s in plan.open] == [(0, "c")]
    assert set(plan.drafts) == {0, 1}


def test_a_plan_may_be_applied_after_the_next_one_is_made() -> None:
    scheduler = Scheduler(2, 128)
    for name in "abc":
        scheduler.submit(submission(name, draft_length=0), 0.0)
    first = scheduler.plan(1.0)
    scheduler.cancel("a", 1.0)
    second = scheduler.plan(2.0)
    assert second.close == (0,)
    assert [(slot, s.request_id) for slot, s in second.open] == [(0, "c")]
    deliveries = scheduler.apply(first, {0: emit(b"a"), 1: emit(b"12345678")}, 3.0)
    assert {name for name, _ in deliveries} == {"b"}
    assert output_of(deliveries, "b") == b"12345678"
    third = scheduler.plan(4.0)
    assert (third.close, set(third.drafts)) == ((1,), {0})
    deliveries = scheduler.apply(second, {0: emit(b"c"), 1: emit(b"too much")}, 5.0)
    assert {name for name, _ in deliveries} == {"c"}
    assert output_of(deliveries, "c") == b"c"
    # of the second round only the row is left that the third one knows
    assert [name for name, _ in scheduler.fail_round(second, "broken")] == ["c"]
    assert scheduler.fail_round(third, "broken") == []


def test_prompts_are_consumed_in_chunks_beside_decoding_rows() -> None:
    scheduler = Scheduler(3, 100)
    scheduler.submit(submission("short"), 0.0)
    scheduler.submit(submission("long", prompt=b"x" * 151), 0.0)
    scheduler.submit(submission("later", prompt=b"y" * 81), 0.0)
    plan, _ = one_round(scheduler, {0: emit(b"a")})
    assert (plan.drafts, plan.chunks) == ({0: 3}, {1: 100})
    plan, _ = one_round(scheduler, {0: emit(b"b")})
    assert (plan.drafts, plan.chunks) == ({0: 3}, {1: 50, 2: 50})
    plan, _ = one_round(scheduler, {0: emit(b"c"), 1: emit(b"d")})
    assert (plan.drafts, plan.chunks) == ({0: 3, 1: 3}, {2: 30})


def test_what_is_being_consumed_is_not_consumed_again() -> None:
    """Plans that are made before the one before them is applied."""
    scheduler = Scheduler(2, 256)
    scheduler.submit(submission("a", prompt=b"x" * 301, echo=True, logprobs=0), 0.0)
    scheduler.submit(submission("b", prompt=b"y" * 101), 0.0)
    first, second, third = (scheduler.plan(0.0) for _ in range(3))
    assert [plan.chunks for plan in (first, second, third)] == [{0: 128, 1: 100}, {0: 128}, {0: 44}]
    assert [set(plan.drafts) for plan in (first, second, third)] == [set(), {1}, {1}]
    scheduler.cancel("b", 0.0)
    fourth = scheduler.plan(0.0)
    assert (fourth.chunks, set(fourth.drafts)) == ({}, {0})
    score = ByteLogprob(120, -1.0)
    for size, plan in ((128, first), (128, second), (44, third)):
        scored = RowResult(b"", 0, 0, ended=False, logprobs=(score,) * size)
        deliveries = scheduler.apply(plan, {0: scored, 1: emit(b"z")}, 1.0)
        assert bool(deliveries) == (plan is third)  # its prompt's scores are all there
    (_, echo), *_ = deliveries
    assert isinstance(echo, Progress)
    assert len(echo.logprobs) == 301
    assert output_of(scheduler.apply(fourth, {0: emit(b"q")}, 2.0), "a") == b"q"


def test_where_calls_are_short_a_first_byte_needs_none_of_its_own() -> None:
    for long_calls in (False, True):
        scheduler = Scheduler(1, 128, long_calls=long_calls)
        scheduler.submit(submission("a"), 0.0)
        assert (scheduler.plan(0.0).rounds == 1) == long_calls


def test_a_length_ends_with_all_bytes_and_the_figures() -> None:
    scheduler = Scheduler(1, 128)
    scheduler.submit(submission("a", prompt=b"abc", max_tokens=5), 1.0)
    one_round(scheduler, {}, 3.0)
    _, first = one_round(scheduler, {0: emit(b"xyz", accepted=2)}, 4.0)
    _, second = one_round(scheduler, {0: emit(b"uv", accepted=1)}, 6.0)
    assert output_of(first + second, "a") == b"xyzuv"
    (latency,) = (tally for tally in scheduler.per_byte.values() if tally.total)
    assert latency is scheduler.per_byte[Mode.SPECULATIVE]
    assert latency.total == pytest.approx(3.0)  # of two rounds: 3 bytes of a third, 2 of a whole
    assert [count for count in latency.counts if count] == [3, 2]
    finished = second[-1][1]
    assert isinstance(finished, Finished)
    assert finished.reason is FinishReason.LENGTH
    assert finished.completion_tokens == 5
    speculation = finished.speculation
    assert (speculation.rounds, speculation.drafted, speculation.accepted) == (2, 6, 3)
    assert speculation.accepted_per_position == (2, 1, 0)
    timing = finished.timing
    assert (timing.queue_s, timing.prefill_s, timing.decode_s) == (2.0, 0.0, 3.0)


def test_what_lies_behind_a_stop_string_counts_for_nothing() -> None:
    scheduler = Scheduler(1, 128)
    scheduler.submit(submission("a", stops=(b"##",)), 0.0)
    _, first = one_round(scheduler, {0: emit(b"ab#", accepted=2)})
    _, second = one_round(scheduler, {0: emit(b"#cde", accepted=3)})
    assert output_of(first, "a") == b"ab"
    finished = second[-1][1]
    assert isinstance(finished, Finished)
    assert output_of(first + second, "a") == b"ab"
    assert finished.reason is FinishReason.STOP
    assert finished.completion_tokens == 2
    assert finished.speculation.accepted == 3


def rounds(output: bytes, *tries: Try) -> RowResult:
    """What several rounds gave in one call."""
    drafted, accepted = sum(t.drafted for t in tries), sum(t.accepted for t in tries)
    return RowResult(output, drafted, accepted, ended=False, tries=tries)


def test_several_rounds_in_one_result() -> None:
    scheduler = Scheduler(1, 128)
    scheduler.submit(submission("a", prompt=b"abc", max_tokens=9), 0.0)
    one_round(scheduler, {})
    _, first = one_round(scheduler, {0: rounds(b"uvwxyz", Try(3, 2), Try(0, 0), Try(4, 1, 2))})
    _, second = one_round(scheduler, {0: rounds(b"123", Try(0, 0), Try(1, 1, 0))})
    assert output_of(first + second, "a") == b"uvwxyz123"
    finished = second[-1][1]
    assert isinstance(finished, Finished)
    assert finished.speculation == Speculation(5, 3, 8, 4, (3, 1, 0, 0), 5, 2)


def test_rounds_behind_a_stop_string_count_for_nothing() -> None:
    scheduler = Scheduler(1, 128)
    scheduler.submit(submission("a", stops=(b"##",), max_tokens=40), 0.0)
    one_round(scheduler, {})
    tries = Try(3, 3, 1), Try(2, 2), Try(0, 0), Try(5, 4)
    _, events = one_round(scheduler, {0: rounds(b"abcde##hijklm", *tries)})
    finished = events[-1][1]
    assert isinstance(finished, Finished)
    assert (output_of(events, "a"), finished.reason) == (b"abcde", FinishReason.STOP)
    assert finished.speculation == Speculation(2, 2, 5, 5, (2, 2, 1), 3, 3)


def test_a_stop_string_before_the_end_byte_counts_alike_in_one_call_and_in_several() -> None:
    told = []
    for calls in ([rounds(b"a#x\0", *[Try(0, 0)] * 4)], [emit(b"a"), emit(b"#"), emit(b"x")]):
        scheduler = Scheduler(1, 128)
        scheduler.submit(submission("a", stops=(b"#",), max_tokens=40, eos=0), 0.0)
        one_round(scheduler, {})
        events = [
            e
            for call in calls
            for _, e in one_round(scheduler, {0: replace(call, ended=call.output[-1:] == b"\0")})[1]
        ]
        (finished,) = (event for event in events if isinstance(event, Finished))
        told.append((finished.reason, finished.speculation.rounds))
    assert told == [(FinishReason.STOP, 2)] * 2


def test_a_first_byte_that_is_waited_for_comes_by_itself() -> None:
    scheduler = Scheduler(2, 128)
    scheduler.submit(submission("stream", prompt=b"a"), 0.0)
    scheduler.submit(submission("whole", prompt=b"b", interval_s=math.inf), 0.0)
    first, _ = one_round(scheduler, {0: emit(b"x"), 1: emit(b"y")})
    assert (first.rounds, scheduler.plan(0.0).rounds) == (1, MOST_ROUNDS)
    alone = Scheduler(1, 128)
    alone.submit(submission("whole", prompt=b"b", interval_s=math.inf), 0.0)
    assert alone.plan(0.0).rounds == MOST_ROUNDS


def test_a_call_lasts_as_long_as_nobody_wants_output() -> None:
    def span(*submissions: Submission) -> float:
        scheduler = Scheduler(4, 128)
        for each in submissions:
            scheduler.submit(each, 10.0)
        return scheduler.plan(10.0).span_s

    whole = submission("whole", prompt=b"a", interval_s=math.inf)
    assert span(whole) == LONGEST_SPAN_S
    assert span(whole, submission("stream", prompt=b"a")) == SPAN_S
    assert span(whole, submission("slow", prompt=b"a", interval_s=0.02)) == 0.02
    assert span(whole, submission("rare", prompt=b"a", interval_s=5.0)) == LONGEST_SPAN_S
    # a stop string is not seen by the core, nor is the time
    assert span(replace(whole, stops=(b"#",))) == SPAN_S
    assert span(replace(whole, timeout_s=0.03)) == pytest.approx(0.03)
    assert span(replace(whole, timeout_s=0.001)) == SPAN_S
    assert span(whole, submission("prompt", prompt=b"long", interval_s=0.02)) == 0.02


def test_a_refused_row_leaves_a_plan_whole() -> None:
    plan = Plan(drafts={0: 1, 1: 2}, chosen={0: 1, 1: 2}, lookups={1: (1, 1, 1, 1)})
    assert plan.without([1]) == Plan(drafts={0: 1}, chosen={0: 1})


def test_held_back_bytes_come_out_where_no_stop_string_follows() -> None:
    scheduler = Scheduler(1, 128)
    scheduler.submit(submission("a", stops=(b"##",), max_tokens=3), 0.0)
    _, deliveries = one_round(scheduler, {0: emit(b"ab#")})
    assert output_of(deliveries, "a") == b"ab#"


def test_the_end_of_document_byte_is_left_out() -> None:
    scheduler = Scheduler(1, 128)
    scheduler.submit(submission("a"), 0.0)
    _, deliveries = one_round(scheduler, {0: emit(b"ab\x00", accepted=2, ended=True)})
    finished = deliveries[-1][1]
    assert isinstance(finished, Finished)
    assert output_of(deliveries, "a") == b"ab"
    assert (finished.reason, finished.completion_tokens) == (FinishReason.STOP, 2)


def test_an_end_of_document_byte_at_once_gives_an_empty_output() -> None:
    scheduler = Scheduler(1, 128)
    scheduler.submit(submission("a"), 0.0)
    _, deliveries = one_round(scheduler, {0: emit(b"\x00", ended=True)})
    assert len(deliveries) == 1
    assert output_of(deliveries, "a") == b""


def test_cancelling_frees_the_slot_waiting_or_running() -> None:
    scheduler = Scheduler(1, 128)
    scheduler.submit(submission("a"), 0.0)
    scheduler.submit(submission("b"), 0.0)
    scheduler.submit(submission("c"), 0.0)
    one_round(scheduler, {0: emit(b"x")})
    for name in "ab":
        ((request_id, event),) = scheduler.cancel(name, 2.0)
        assert request_id == name
        assert isinstance(event, Finished)
        assert event.reason is FinishReason.CANCELLED
    plan = scheduler.plan(3.0)
    assert plan.close == (0,)
    assert [s.request_id for _, s in plan.open] == ["c"]
    assert scheduler.cancel("never", 4.0) == []


def test_what_reaches_its_deadline_leaves_with_what_it_has() -> None:
    scheduler = Scheduler(1, 4)
    scheduler.submit(submission("writing", timeout_s=5.0, stops=(b"##",)), 1.0)
    scheduler.submit(submission("waiting", timeout_s=3.0), 2.0)
    scheduler.submit(submission("patient"), 2.0)
    one_round(scheduler, {0: emit(b"ab#")}, 2.0)
    assert scheduler.expire(4.9) == []
    ((request_id, event),) = scheduler.expire(5.0)
    assert isinstance(event, Finished)
    assert (request_id, event.reason, event.output) == ("waiting", FinishReason.TIMEOUT, b"")
    assert (event.timing.queue_s, event.timing.decode_s) == (3.0, 0.0)
    ((request_id, event),) = scheduler.expire(6.0)
    assert isinstance(event, Finished)
    assert (request_id, event.output, event.completion_tokens) == ("writing", b"#", 3)
    plan = scheduler.plan(7.0)
    assert plan.close == (0,)
    assert [s.request_id for _, s in plan.open] == ["patient"]
    assert scheduler.expire(1e9) == []


def test_a_first_byte_is_there_when_its_round_is_over() -> None:
    scheduler = Scheduler(1, 128)
    for name in ("a", "late"):
        scheduler.submit(submission(name, max_tokens=3, interval_s=math.inf, timeout_s=8.0), 1.0)
    plan = scheduler.plan(2.0)
    result = RowResult(b"xyz", 0, 0, ended=False, tries=(Try(0, 0),) * 3)
    deliveries = scheduler.apply(plan, {0: result}, 6.0, 4.0, (2.0, 0.5, 0.5))
    end = deliveries[-1][1]
    assert isinstance(end, Finished)
    assert (end.begun, end.timing.first_byte_s) == (True, 4.0)
    ((_, late),) = scheduler.expire(9.0)
    assert isinstance(late, Finished)
    assert (late.begun, late.timing.first_byte_s, late.timing.queue_s) == (False, None, 8.0)


def test_a_deadline_in_the_prompt_leaves_no_time_for_decoding() -> None:
    scheduler = Scheduler(1, 4)
    scheduler.submit(submission("a", prompt=b"x" * 20, timeout_s=5.0), 0.0)
    one_round(scheduler, {}, 1.0)
    ((_, event),) = scheduler.expire(5.0)
    assert isinstance(event, Finished)
    timing = event.timing
    assert (timing.queue_s, timing.prefill_s, timing.decode_s) == (1.0, 4.0, 0.0)
    # an earlier request's deadline is forgotten with it
    scheduler.submit(submission("b", timeout_s=10.0), 6.0)
    assert scheduler.expire(15.0) == []
    assert [request_id for request_id, _ in scheduler.expire(16.0)] == ["b"]


def test_failing_rows_leave_and_the_others_stay() -> None:
    scheduler = Scheduler(2, 128)
    scheduler.submit(submission("a"), 0.0)
    scheduler.submit(submission("b"), 0.0)
    scheduler.plan(1.0)
    assert scheduler.fail([0], "broken") == [("a", Failed("broken"))]
    assert (scheduler.running, scheduler.waiting) == (1, 0)
    scheduler.submit(submission("c"), 2.0)
    assert dict(scheduler.fail_all("over")) == {"b": Failed("over"), "c": Failed("over")}
    assert (scheduler.running, scheduler.waiting) == (0, 0)


def test_an_idle_scheduler_plans_nothing() -> None:
    assert Scheduler(1, 128).plan(0.0).empty


def test_rows_with_a_prompt_in_common_consume_it_once() -> None:
    scheduler = Scheduler(4, 100)
    prompt = b"x" * 151
    for name in ("a", "b", "c"):
        scheduler.submit(submission(name, prompt=prompt), 0.0)
    scheduler.submit(submission("other", prompt=b"y" * 151), 0.0)
    plan, _ = one_round(scheduler, {}, 1.0)
    assert (plan.chunks, plan.forks) == ({0: 100}, ())
    plan, _ = one_round(scheduler, {}, 2.0)
    assert (plan.chunks, plan.forks) == ({0: 50, 3: 50}, ())
    plan, deliveries = one_round(scheduler, {slot: emit(b"12345678") for slot in range(3)}, 3.0)
    assert plan.forks == ((1, 0), (2, 0))
    assert (plan.drafts, plan.chunks) == ({0: 3, 1: 3, 2: 3}, {3: 100})
    ends = {name: event for name, event in deliveries if isinstance(event, Finished)}
    assert {name: end.cached_tokens for name, end in ends.items()} == {"a": 0, "b": 150, "c": 150}
    assert {end.timing.prefill_s for end in ends.values()} <= {1.0, 2.0}


def test_a_row_consumes_its_prompt_itself_where_the_other_is_gone() -> None:
    for gone in ("cancelled", "failed", "done"):
        scheduler = Scheduler(2, 100)
        for name in ("a", "b"):
            scheduler.submit(submission(name, prompt=b"x" * 151), 0.0)
        one_round(scheduler, {})
        if gone == "done":
            one_round(scheduler, {})
        if gone == "failed":
            scheduler.fail([0], "no")
        else:
            scheduler.cancel("a", 1.0)
        plan = scheduler.plan(2.0)
        # what has been consumed stays in the slot
        assert plan.forks == (((1, 0),) if gone == "done" else ())
        assert plan.chunks == ({} if gone == "done" else {1: 100})


def test_outputs_of_one_prompt_consume_it_once_whenever_they_get_a_slot() -> None:
    scheduler = Scheduler(2, 100)
    for name in ("a", "b", "c", "d"):
        scheduler.submit(submission(name, prompt=b"x" * 51, max_tokens=4), 0.0)
    consumed = 0
    ends: list[str] = []
    while len(ends) < 4:
        plan = scheduler.plan(0.0)
        consumed += sum(plan.chunks.values())
        # b and d get ahead: their slots go to c and to nobody
        results = {slot: emit(b"12" if slot else b"1234") for slot in plan.drafts}
        deliveries = scheduler.apply(plan, results, 0.0)
        ends += [name for name, event in deliveries if isinstance(event, Finished)]
    assert consumed == 50
    assert sorted(ends) == ["a", "b", "c", "d"]


def test_a_slot_whose_prompt_is_wanted_is_the_one_that_is_taken() -> None:
    scheduler = Scheduler(3, 100)
    for name, letter in (("a", b"x"), ("b", b"y")):
        scheduler.submit(submission(name, prompt=letter * 51, max_tokens=1), 0.0)
    for _ in range(2):
        one_round(scheduler, {slot: emit(b"1") for slot in range(2)})
    assert scheduler.running == 0
    scheduler.submit(submission("again", prompt=b"y" * 51), 0.0)
    scheduler.submit(submission("other", prompt=b"z" * 51), 0.0)
    plan = scheduler.plan(0.0)
    assert [slot for slot, _ in plan.open] == [1, 0]
    assert (plan.forks, plan.chunks) == (((1, 1),), {0: 50})


def test_several_outputs_of_a_prompt_that_a_slot_holds_consume_it_no_more() -> None:
    scheduler = Scheduler(4, 100)
    scheduler.submit(submission("before", prompt=b"x" * 51, max_tokens=1), 0.0)
    for _ in range(2):
        one_round(scheduler, {0: emit(b"1")})
    assert scheduler.running == 0
    for name in "abc":
        scheduler.submit(submission(name, prompt=b"x" * 51), 0.0)
    scheduler.submit(submission("other", prompt=b"y" * 51), 0.0)
    plan = scheduler.plan(0.0)
    assert (plan.forks, plan.chunks) == (((0, 0), (1, 0), (2, 0)), {3: 50})
    assert plan.drafts.keys() == {0, 1, 2}


def test_a_slot_that_failed_holds_nothing() -> None:
    scheduler = Scheduler(1, 100)
    for name in ("a", "b"):
        scheduler.submit(submission(name, prompt=b"x" * 51), 0.0)
    one_round(scheduler, {})
    scheduler.fail([0], "no")
    plan = scheduler.plan(0.0)
    assert (plan.forks, plan.chunks) == ((), {0: 50})


def scores(content: bytes, start: float) -> tuple[ByteLogprob, ...]:
    return tuple(ByteLogprob(byte, start - i) for i, byte in enumerate(content))


def test_a_prompt_is_scored_once_for_all_that_want_as_many_scores() -> None:
    scheduler = Scheduler(4, 200)
    scored = {"prompt": b"x" * 51, "echo": True, "max_tokens": 0}
    scheduler.submit(submission("a", prompt=b"x" * 51), 0.0)
    scheduler.submit(submission("b", **scored, logprobs=0), 0.0)
    scheduler.submit(submission("c", **scored, logprobs=1), 0.0)
    scheduler.submit(submission("d", **scored, logprobs=0), 0.0)
    found = scores(b"x" * 50, -1.0)
    results = {slot: RowResult(b"", 0, 0, ended=False, logprobs=found) for slot in (1, 2)}
    plan, first = one_round(scheduler, results)
    assert (plan.chunks, plan.forks) == ({0: 50, 1: 50, 2: 50}, ())
    plan, second = one_round(scheduler, {0: emit(b"1")})
    assert (plan.chunks, plan.forks) == ({}, ((3, 1),))
    whole = (ByteLogprob(ord("x"), None), *found)
    echoes = {
        name: event.logprobs
        for name, event in first + second
        if isinstance(event, Progress) and event.echo
    }
    assert echoes == {"b": whole, "c": whole, "d": whole}


def test_an_echo_comes_first_with_its_scores() -> None:
    scheduler = Scheduler(1, 2)
    scheduler.submit(
        submission("a", prompt=b"abcd", max_tokens=2, echo=True, logprobs=0, stops=(b"zz",)), 0.0
    )
    plan, first = one_round(scheduler, {0: RowResult(b"", 0, 0, False, scores(b"bc", -1.0))})
    assert (plan.chunks, first) == ({0: 2}, [])
    _, second = one_round(scheduler, {0: RowResult(b"", 0, 0, False, scores(b"d", -3.0))})
    assert second == [
        (
            "a",
            Progress(b"abcd", echo=True, logprobs=(ByteLogprob(97, None), *scores(b"bcd", -1.0))),
        )
    ]
    _, third = one_round(scheduler, {0: RowResult(b"xz", 3, 1, False, scores(b"xz", -7.0))}, 2.0)
    assert output_of(third, "a") == b"xz"
    events = [event for _, event in third if isinstance(event, Progress | Finished)]
    assert [item for event in events for item in event.logprobs] == list(scores(b"xz", -7.0))
    assert isinstance(events[-1], Finished)
    assert events[-1].completion_tokens == 2


def test_nothing_but_an_echo() -> None:
    for prompt, rounds in ((b"abcd", 2), (b"a", 1)):
        scheduler = Scheduler(1, 2)
        scheduler.submit(submission("a", prompt=prompt, max_tokens=0, echo=True), 0.0)
        deliveries: Deliveries = []
        for _ in range(rounds):
            assert not deliveries
            plan, deliveries = one_round(scheduler, {})
            assert not plan.drafts
        assert output_of(deliveries, "a") == prompt
        finished = deliveries[-1][1]
        assert isinstance(finished, Finished)
        assert (finished.completion_tokens, finished.reason) == (0, FinishReason.LENGTH)
        assert scheduler.running == 0


def test_scores_are_held_back_with_what_may_be_a_stop_string() -> None:
    scheduler = Scheduler(1, 128)
    scheduler.submit(submission("a", logprobs=0, stops=(b"##",)), 0.0)
    _, first = one_round(scheduler, {0: RowResult(b"ab#", 3, 2, False, scores(b"ab#", 0.0))})
    _, second = one_round(scheduler, {0: RowResult(b"c#", 3, 1, False, scores(b"c#", -3.0))})
    _, third = one_round(scheduler, {0: RowResult(b"#d", 3, 1, False, scores(b"#d", -5.0))})
    events = [e for _, e in first + second + third if isinstance(e, Progress | Finished)]
    told = [(e.output, [s.logprob for s in e.logprobs]) for e in events]
    assert told == [(b"ab", [0.0, -1.0]), (b"#c", [-2.0, -3.0]), (b"", [])]


def test_a_row_that_could_not_draft_with_profit_stays_plain() -> None:
    costs = RoundCosts({(b, gamma): 1.0 + 9 * b * gamma for b in (1, 2) for gamma in (0, 4)})
    scheduler = Scheduler(2, 100, DraftLengths(costs, 4))
    for name in ("a", "b"):
        scheduler.submit(submission(name, mode=Mode.AUTO, draft_length=4, max_tokens=3), 0.0)
    scheduler.submit(submission("c", mode=Mode.SPECULATIVE, draft_length=4), 0.0)
    plan = scheduler.plan(0.0)
    assert [opened.draft_length for _, opened in plan.open] == [0, 0]
    assert [opened.mode for _, opened in plan.open] == [Mode.AUTO, Mode.AUTO]
    assert plan.drafts == plan.chosen == {0: 0, 1: 0}


def test_prices_are_those_of_what_lies_behind_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = RoundCosts({(b, gamma): 1.0 + 0.1 * gamma for b in (1, 2) for gamma in (0, 4)})
    told: list[float] = []
    monkeypatch.setattr(costs, "lie_behind", told.append)
    scheduler = Scheduler(2, 100, DraftLengths(costs, 4))
    scheduler.submit(submission("a", mode=Mode.AUTO, draft_length=4, prompt=b"p" * 41), 0.0)
    scheduler.submit(submission("b", prompt=b"p"), 0.0)
    one_round(scheduler, {0: RowResult(b"", 0, 0, False), 1: emit(b"xyz")})
    one_round(scheduler, {0: emit(b"x"), 1: emit(b"x")})
    assert told == [1, (41 + 4) / 2]


def test_how_likely_drafts_must_be_is_given_or_what_pays() -> None:
    costs = RoundCosts({(b, g): 1 + 0.25 * g for b in (1, 4) for g in (0, 1, 5)})
    for given, expected in ((None, 0.25), (0.0, 0.0), (0.7, 0.7)):
        scheduler = Scheduler(2, 100, DraftLengths(costs, 5), given)
        scheduler.submit(submission("a"), 0.0)
        scheduler.submit(submission("b", draft_length=5), 0.0)
        assert scheduler.plan(0.0).p_min == expected
    scheduler = Scheduler(2, 100)
    scheduler.submit(submission("a"), 0.0)
    assert scheduler.plan(0.0).p_min == 0.0  # nothing was measured
