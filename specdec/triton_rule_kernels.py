"""Triton kernels of the byte rule, its noise, and what follows from the bytes chosen.

The rule of `specdec.sampling`, in float64 as there, a program a row; sums are ordered otherwise, so
scores differ from its in their last bits and a process decodes by one or the other.  Noise is made
where it is added: none is kept, and nothing has to be ready before a round.

B rows of a bucket, W rows verified for each, V = 256 bytes.
"""

import triton
import triton.language as tl


@triton.jit
def gumbel(seed, position, byte):
    """The noise of bytes [V] at a position, both int64: `specdec.noise.gumbel`, the same bits where
    no product is fused with a sum."""
    low: tl.constexpr = 0xFFFFFFFF
    k0, k1 = (seed & low).to(tl.uint64), (seed >> 32 & low).to(tl.uint64)
    c0 = (byte >> 1).to(tl.uint64)
    c1 = (position & low).to(tl.uint64) + tl.zeros_like(c0)
    c2 = (position >> 32 & low).to(tl.uint64) + tl.zeros_like(c0)
    c3 = tl.zeros_like(c0)
    for _ in tl.static_range(10):
        one, two = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (two >> 32) ^ c1 ^ k0, two & low, (one >> 32) ^ c3 ^ k1, one & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    # the four words of a pair are two for each of its bytes
    first = (byte & 1) == 0
    word, rest = tl.where(first, c0, c2), tl.where(first, c1, c3)
    top = ((word << 20) | (rest >> 12)).to(tl.int64).to(tl.float64)
    return -_logarithm(-_logarithm(1.0 - (top + 0.5) * 2.220446049250313e-16))


@triton.jit
def _logarithm(x):
    """`specdec.noise.logarithm`."""
    bits = x.to(tl.int64, bitcast=True)
    exponent = (bits >> 52) - 1022
    mantissa = ((bits & 0xFFFFFFFFFFFFF) | (1022 << 52)).to(tl.float64, bitcast=True)
    low = mantissa < 0.70703125
    mantissa = tl.where(low, 2 * mantissa, mantissa)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square = s * s
    series = tl.full(x.shape, 2 / 21, tl.float64)
    for n in tl.static_range(9):
        series = series * square + 2 / (19 - 2 * n)
    series = series * square * s + 2 * s
    return (exponent - low.to(tl.int64)).to(tl.float64) * 0.6931471805599453 + series


@triton.jit
def begin_kernel(slots, watched, state_length, state_last, length, last, known, start, scratch):
    """For each of B rows: length and last of its slot, and what of it the drafter hears
    (`specdec.static_round.StaticRule.heard`), known and start."""
    row = tl.program_id(0)
    slot = tl.load(slots + row)
    place = tl.load(state_length + slot)
    heard = tl.load(watched + row) > 0
    tl.store(length + row, place)
    tl.store(last + row, tl.load(state_last + slot))
    tl.store(known + row, tl.where(heard, slot, scratch))
    tl.store(start + row, tl.where(heard, place, 0))


@triton.jit(do_not_specialize=["first", "row_stride", "place_stride"])
def choose_kernel(
    logits,
    table,
    before,
    tokens,
    chosen,
    slots,
    length,
    seed,
    counts,
    temperature,
    top_k,
    top_p,
    min_p,
    presence_penalty,
    frequency_penalty,
    repetition_penalty,
    bias,
    eos,
    allow_eos_from,
    first,
    row_stride,
    place_stride,
    VOCABULARY: tl.constexpr,
    FOLLOWING: tl.constexpr,
):
    """chosen [B, n] by logits [B, n, V] of places first..first+n-1 of the rows; with FOLLOWING
    what table [V, V] says of the bytes before, [B], is added to them.

    tokens, of such strides, are each row's last byte and its drafts, of which a place's first count
    as put out.  Everything else is a slot's.
    """
    row, offset = tl.program_id(0), tl.program_id(1)
    place = first + offset
    at = row * tl.num_programs(1) + offset
    slot = tl.load(slots + row)
    byte = tl.arange(0, VOCABULARY)
    position = tl.load(length + slot) + 1 + place
    logit = tl.load(logits + at * VOCABULARY + byte)
    if FOLLOWING:
        logit += tl.load(table + tl.load(before + row) * VOCABULARY + byte)
    score = logit.to(tl.float64)
    count = tl.load(counts + slot * VOCABULARY + byte)
    for draft in range(1, place + 1):
        put_out = tl.load(tokens + row * row_stride + draft * place_stride)
        count += (byte == put_out).to(tl.int64)

    seen = count > 0
    repetition = tl.load(repetition_penalty + slot)
    repeated = tl.where(score > 0, score / repetition, score * repetition)
    score = tl.where(seen, repeated, score)
    score -= tl.load(presence_penalty + slot) * seen.to(tl.float64)
    score -= tl.load(frequency_penalty + slot) * count.to(tl.float64)
    score += tl.load(bias + slot * VOCABULARY + byte)
    banned = position < tl.load(allow_eos_from + slot)
    score = tl.where(banned & (byte == tl.load(eos + slot)), float("-inf"), score)

    heat = tl.load(temperature + slot)
    if heat > 0:
        score = (score - tl.max(score, 0)) / heat
        most, mass = tl.load(top_k + slot), tl.load(top_p + slot)
        floor = tl.load(min_p + slot)
        if (most > 0) | (mass < 1) | (floor > 0):
            score = _filtered(score, most, mass, floor, VOCABULARY)
        score -= tl.log(tl.sum(tl.exp(score), 0))
        score += gumbel(tl.load(seed + slot), position, byte)
    tl.store(chosen + at, tl.argmax(score, 0, tie_break_left=True).to(tl.int64))


@triton.jit
def _filtered(score, most, mass, floor, VOCABULARY: tl.constexpr):
    """top_k, top_p and min_p of scores whose top is 0: `specdec.sampling.filter_top`."""
    rank = tl.arange(0, VOCABULARY)
    if most > 0:
        ordered = tl.sort(score, descending=True)
        threshold = tl.max(tl.where(rank == most - 1, ordered, float("-inf")), 0)
        score = tl.where(score < threshold, float("-inf"), score)
    if mass < 1:
        ordered = tl.sort(score, descending=True)
        weight = tl.exp(ordered)
        before = tl.cumsum(weight, 0) - weight
        enough = mass * tl.sum(weight, 0)
        kept = tl.sum(((before < enough) | (rank == 0)).to(tl.int32), 0)
        threshold = tl.max(tl.where(rank == kept - 1, ordered, float("-inf")), 0)
        # of those at the threshold the lowest bytes stay, as many as there is room for
        tied = score == threshold
        room = kept - tl.sum((score > threshold).to(tl.int32), 0)
        out = (score < threshold) | (tied & (tl.cumsum(tied.to(tl.int32), 0) > room))
        score = tl.where(out, float("-inf"), score)
    if floor > 0:
        score = tl.where(score < tl.log(floor), float("-inf"), score)
    return score


@triton.jit(do_not_specialize=["width"])
def settle_kernel(
    tokens,
    chosen,
    slots,
    drafts,
    length,
    last,
    end,
    eos,
    counts,
    result,
    committed,
    width,
    IDLE: tl.constexpr,
    WIDEST: tl.constexpr,
    VOCABULARY: tl.constexpr,
):
    """result [B, width + 3], committed [B]: see `specdec.static_round.StaticRule.settle`."""
    row = tl.program_id(0)
    slot, drafted = tl.load(slots + row), tl.load(drafts + row)
    place = tl.arange(0, WIDEST)
    choice = tl.load(chosen + row * width + place, place < width, -1)
    draft = tl.load(tokens + row * width + 1 + place, place < drafted, -1)
    agreed = tl.min(tl.where((draft == choice) & (place < drafted), WIDEST, place), 0)
    start = tl.load(length + slot)
    room = tl.load(end + slot) - start - 1
    count = tl.minimum(agreed.to(tl.int64) + 1, room)
    is_end = (choice == tl.load(eos + slot)) & (place < count)
    first_end = tl.min(tl.where(is_end, place, WIDEST), 0).to(tl.int64)
    ended = first_end < count
    count = tl.where(ended, first_end + 1, count)
    accepted = tl.minimum(agreed.to(tl.int64), count)
    # one that has ended idles too, as rounds may follow before the host knows
    working = (drafted != IDLE) & (room > 0)
    count = tl.where(working, count, 0)

    at = result + row * (width + 3)
    tl.store(at + place, choice, place < width)
    tl.store(at + width, count)
    tl.store(at + width + 1, tl.where(working, accepted, 0))
    tl.store(at + width + 2, tl.where(working & ended, 1, 0).to(tl.int64))
    tl.store(committed + row, tl.maximum(count, 1))
    if working:
        tl.store(length + slot, start + count)
        if ended:
            tl.store(end + slot, start + count + 1)
        tl.store(last + slot, tl.sum(tl.where(place == count - 1, choice, 0), 0))
        byte = tl.arange(0, VOCABULARY)
        total = tl.load(counts + slot * VOCABULARY + byte)
        for emitted in range(count):
            total += (byte == tl.load(chosen + row * width + emitted)).to(tl.int64)
        tl.store(counts + slot * VOCABULARY + byte, total)
