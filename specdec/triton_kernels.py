"""Triton kernels of a Llama block over packed rows: a row's bits are its own by construction.

Rows come in tiles of 16, padded, whatever their number; every sum over inputs is one chain in order
(no split of it among programs), every sum over cached places is cut at places that depend on the
cache's size alone.  So what shares a pass, or where a row stands in it, is in no sum.  The shapes
of tiles are fixed for a process: others would order sums otherwise.  Nor is code specialised on the
number of rows, so that any number runs the same.

A norm is folded into the product behind it: with r = 1 / rms(x) the same for all inputs of a row,
(r·x·w) W = r·((x·w) W), so that the row is read once.  Norms and sums are float32, products take
their operands in the weights' type.

Knows tensors' layouts and nothing of modules: `specdec.triton_stack` does.  Imports Triton, so it
is imported where kernels are wanted and not before.

N rows, D inputs, H query heads, K key-value heads, d head width, F feed-forward width, C places.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows"])
def project_kernel(
    x,
    norm,
    weight,
    cos,
    sin,
    slot,
    position,
    index,
    query,
    keys,
    values,
    rows,
    eps,
    slot_stride,
    head_stride,
    FIRST_HEAD: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    ROW_TILE: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """x [N, D] float32 → query [N, H, d]; keys, values [S, K, C, d] at (slot, index).

    weight [(H + 2K)·d, D]; cos and sin [places, d] at `position`.  A program makes `PAIRS` pairs of
    a head, which a rotation turns together: outputs p and p + d/2.
    """
    head = FIRST_HEAD + tl.program_id(2)
    row = tl.program_id(0) * ROW_TILE + tl.arange(0, ROW_TILE)
    pair = tl.program_id(1) * PAIRS + tl.arange(0, PAIRS)
    real, inside = row < rows, pair < HEAD // 2
    first = tl.zeros((ROW_TILE, PAIRS), tl.float32)
    second = tl.zeros((ROW_TILE, PAIRS), tl.float32)
    square = tl.zeros((ROW_TILE,), tl.float32)
    for begin in range(0, WIDTH, BLOCK):
        k = begin + tl.arange(0, BLOCK)
        known = k < WIDTH
        part = tl.load(x + row[:, None] * WIDTH + k, real[:, None] & known, 0.0)
        square += tl.sum(part * part, 1)
        part = part * tl.load(norm + k, known, 0.0)
        part = part.to(weight.dtype.element_ty)
        at = weight + (head * HEAD + pair) * WIDTH + k[:, None]
        wanted = known[:, None] & inside
        low = tl.load(at, wanted, 0.0)
        high = tl.load(at + (HEAD // 2) * WIDTH, wanted, 0.0)
        first = tl.dot(part, low, first, input_precision="ieee")
        second = tl.dot(part, high, second, input_precision="ieee")
    scale = 1 / tl.sqrt(square / WIDTH + eps)
    first, second = first * scale[:, None], second * scale[:, None]
    written = real[:, None] & inside
    place = tl.load(index + row, real, 0)
    if head < HEADS + KV_HEADS:
        angle = tl.load(position + row, real, 0)[:, None] * HEAD + pair
        c = tl.load(cos + angle, written, 0.0)
        s = tl.load(sin + angle, written, 0.0)
        first, second = first * c - second * s, second * c + first * s
    if head < HEADS:
        at = query + (row[:, None] * HEADS + head) * HEAD + pair
    else:
        owner = tl.load(slot + row, real, 0)
        if head < HEADS + KV_HEADS:
            at = keys + (head - HEADS) * head_stride
        else:
            at = values + (head - HEADS - KV_HEADS) * head_stride
        at = at + (owner * slot_stride + place * HEAD)[:, None] + pair
    tl.store(at, first.to(query.dtype.element_ty), written)
    tl.store(at + HEAD // 2, second.to(query.dtype.element_ty), written)


@triton.jit
def attend_kernel(
    query,
    keys,
    values,
    slot,
    index,
    mixed,
    partial,
    weights,
    arrived,
    slot_stride,
    head_stride,
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    GROUP_TILE: tl.constexpr,
    PLACES: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """A program: the query heads of one row that share a key-value head, over one split of
    `SPLIT` places (Dao 2023, "Flash-Decoding").

    Where that is the only one mixed [N, H, d] is written.  Of several each leaves its sums,
    partial [N, H, SPLITS, d], and their largest score and weight, weights [N, H, SPLITS, 2]; the
    last to be counted in arrived [N, K], which begins as 0, joins them.
    """
    row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    last = tl.load(index + row)
    begin = split * SPLIT
    if begin <= last:
        member = tl.arange(0, GROUP_TILE)
        d = tl.arange(0, HEAD_TILE)
        head = kv_head * GROUP + member
        asked = (member < GROUP)[:, None] & (d < HEAD)
        q = tl.load(query + (row * HEADS + head[:, None]) * HEAD + d, asked, 0.0)
        base = tl.load(slot + row) * slot_stride + kv_head * head_stride
        top = tl.full((GROUP_TILE,), float("-inf"), tl.float32)
        total = tl.zeros((GROUP_TILE,), tl.float32)
        sums = tl.zeros((GROUP_TILE, HEAD_TILE), tl.float32)
        end = tl.minimum(begin + SPLIT, last + 1)
        for start in range(begin, end, PLACES):
            place = start + tl.arange(0, PLACES)
            seen = place < end
            at = base + place * HEAD
            k = tl.load(keys + at + d[:, None], seen & (d < HEAD)[:, None], 0.0)
            score = tl.dot(q, k, input_precision="ieee") * scale
            score = tl.where(seen, score, float("-inf"))
            # the first place of a split is seen, so the top is finite
            higher = tl.maximum(top, tl.max(score, 1))
            faded = tl.exp(top - higher)
            p = tl.exp(score - higher[:, None])
            total = total * faded + tl.sum(p, 1)
            v = tl.load(values + at[:, None] + d, seen[:, None] & (d < HEAD), 0.0)
            sums = tl.dot(p.to(v.dtype), v, sums * faded[:, None], input_precision="ieee")
            top = higher
        out = mixed + (row * HEADS + head[:, None]) * HEAD + d
        alone = (sums / total[:, None]).to(mixed.dtype.element_ty)
        if SPLITS == 1:
            tl.store(out, alone, asked)
        else:
            real, many = member < GROUP, last // SPLIT + 1
            if many == 1:
                tl.store(out, alone, asked)
            else:
                first = (row * HEADS + head) * SPLITS
                at = first + split
                tl.store(partial + at[:, None] * HEAD + d, sums, asked)
                tl.store(weights + at * 2, top, real)
                tl.store(weights + at * 2 + 1, total, real)
                tl.debug_barrier()  # all of this program's stores are before its arrival
                before = tl.atomic_add(arrived + row * KV_HEADS + kv_head, 1, sem="acq_rel")
                if before == many - 1:
                    result = _joined(partial, weights, first, many, d, asked, real, HEAD)
                    tl.store(out, result.to(mixed.dtype.element_ty), asked)


@triton.jit
def _joined(partial, weights, at, many, d, asked, real, HEAD: tl.constexpr):
    """Mixed [G, d] of `many` splits of some heads, the first ones at `at` [G], in order.

    Another program wrote them: they are read where all see the same.
    """
    top = tl.load(weights + at * 2, real, 0.0, cache_modifier=".cg")
    total = tl.load(weights + at * 2 + 1, real, 1.0, cache_modifier=".cg")
    sums = tl.load(partial + at[:, None] * HEAD + d, asked, 0.0, cache_modifier=".cg")
    for split in range(1, many):
        other = at + split
        their_top = tl.load(weights + other * 2, real, 0.0, cache_modifier=".cg")
        higher = tl.maximum(top, their_top)
        faded, theirs = tl.exp(top - higher), tl.exp(their_top - higher)
        more = tl.load(weights + other * 2 + 1, real, 0.0, cache_modifier=".cg")
        their_sums = tl.load(partial + other[:, None] * HEAD + d, asked, 0.0, cache_modifier=".cg")
        total = total * faded + more * theirs
        sums = sums * faded[:, None] + their_sums * theirs[:, None]
        top = higher
    return sums / total[:, None]


@triton.jit(do_not_specialize=["rows"])
def add_kernel(
    x,
    inputs,
    weight,
    out,
    rows,
    INPUTS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROW_TILE: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out [N, D] = x [N, D] + inputs [N, I] times weight [D, I]; `out` may be `x`."""
    row = tl.program_id(0) * ROW_TILE + tl.arange(0, ROW_TILE)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real, inside = row < rows, column < WIDTH
    sums = tl.zeros((ROW_TILE, COLUMNS), tl.float32)
    for begin in range(0, INPUTS, BLOCK):
        k = begin + tl.arange(0, BLOCK)
        known = k < INPUTS
        part = tl.load(inputs + row[:, None] * INPUTS + k, real[:, None] & known, 0.0)
        w = tl.load(weight + column * INPUTS + k[:, None], known[:, None] & inside, 0.0)
        sums = tl.dot(part, w, sums, input_precision="ieee")
    at, written = row[:, None] * WIDTH + column, real[:, None] & inside
    tl.store(out + at, tl.load(x + at, written, 0.0) + sums, written)


@triton.jit(do_not_specialize=["rows"])
def gate_kernel(
    x,
    norm,
    weight,
    out,
    embedding,
    tokens,
    seen,
    rows,
    eps,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    ROW_TILE: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    CELL: tl.constexpr,
):
    """out [N, F] = silu(gate)·up of the normed x [N, D]; weight [2F, D] is gate, then up.

    For a cell (`specdec.cell`) the input is x + embedding [256, D] at tokens [N], its norm has no
    weights, and the normed input is left in seen [N, D].
    """
    row = tl.program_id(0) * ROW_TILE + tl.arange(0, ROW_TILE)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real, inside = row < rows, column < INNER
    gate = tl.zeros((ROW_TILE, COLUMNS), tl.float32)
    up = tl.zeros((ROW_TILE, COLUMNS), tl.float32)
    square = tl.zeros((ROW_TILE,), tl.float32)
    if CELL:
        byte = tl.load(tokens + row, real, 0)
    for begin in range(0, WIDTH, BLOCK):
        k = begin + tl.arange(0, BLOCK)
        known = k < WIDTH
        given = real[:, None] & known
        part = tl.load(x + row[:, None] * WIDTH + k, given, 0.0)
        if CELL:
            part += tl.load(embedding + byte[:, None] * WIDTH + k, given, 0.0)
        square += tl.sum(part * part, 1)
        if not CELL:
            part = part * tl.load(norm + k, known, 0.0)
        part = part.to(weight.dtype.element_ty)
        at = weight + column * WIDTH + k[:, None]
        wanted = known[:, None] & inside
        gate = tl.dot(part, tl.load(at, wanted, 0.0), gate, input_precision="ieee")
        at += INNER * WIDTH
        up = tl.dot(part, tl.load(at, wanted, 0.0), up, input_precision="ieee")
    scale = (1 / tl.sqrt(square / WIDTH + eps))[:, None]
    gate, up = gate * scale, up * scale
    result = gate / (1 + tl.exp(-gate)) * up
    at = out + row[:, None] * INNER + column
    tl.store(at, result.to(out.dtype.element_ty), real[:, None] & inside)
    if CELL:
        # each program leaves its share of what was normed
        for begin in range(tl.program_id(1) * BLOCK, WIDTH, tl.num_programs(1) * BLOCK):
            k = begin + tl.arange(0, BLOCK)
            given = real[:, None] & (k < WIDTH)
            part = tl.load(x + row[:, None] * WIDTH + k, given, 0.0)
            part += tl.load(embedding + byte[:, None] * WIDTH + k, given, 0.0)
            tl.store(seen + row[:, None] * WIDTH + k, part * scale, given)


@triton.jit
def inputs_kernel(
    states,
    hidden,
    slots,
    start,
    tokens,
    advance,
    embedding,
    missing,
    before,
    x,
    each,
    place,
    MODEL: tl.constexpr,
    MODEL_TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_TILE: tl.constexpr,
    OBSERVES: tl.constexpr,
):
    """What the inputs of a parallel prophet's block are made of, at W places of rows [B] from start
    [B] on: slots each [B·W], places [B·W], the model's states before them, before [B·W, D], and x
    [B·W, P], to which their projections are to be added.

    The state before the first of them is its slot's, states [S, D], those before the others are
    hidden [B, W, D].  x is embedding [256, P] of tokens [B, W]; at place 0, where there is no
    state, missing [P] is in it already.  With OBSERVES the slots' states become those of the last
    of advance [B] places.
    """
    row, offset, width = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    slot, at, n = tl.load(slots + row), tl.load(start + row) + offset, row * width + offset
    tl.store(each + n, slot)
    tl.store(place + n, at)
    d, p = tl.arange(0, MODEL_TILE), tl.arange(0, WIDTH_TILE)
    if offset == 0:
        state = tl.load(states + slot * MODEL + d, d < MODEL, 0.0)
        if OBSERVES:  # read before it is written, element by element
            newest = (row * width + tl.load(advance + row) - 1) * MODEL
            after = tl.load(hidden + newest + d, d < MODEL, 0.0)
            tl.store(states + slot * MODEL + d, after, d < MODEL)
    else:
        state = tl.load(hidden + (n - 1) * MODEL + d, d < MODEL, 0.0)
    state = tl.where(at > 0, state, 0.0)
    tl.store(before + n * MODEL + d, state.to(before.dtype.element_ty), d < MODEL)
    value = tl.load(embedding + tl.load(tokens + n) * WIDTH + p, p < WIDTH, 0.0)
    value += tl.where(at > 0, 0.0, tl.load(missing + p, p < WIDTH, 0.0))
    tl.store(x + n * WIDTH + p, value, p < WIDTH)


@triton.jit(do_not_specialize=["rows"])
def head_kernel(
    x,
    norm,
    weight,
    hidden,
    logits,
    rows,
    eps,
    WIDTH: tl.constexpr,
    VOCABULARY: tl.constexpr,
    ROW_TILE: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """hidden [N, D] = the normed x [N, D], logits [N, V] of it; weight [V, D]; all float32."""
    row = tl.program_id(0) * ROW_TILE + tl.arange(0, ROW_TILE)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real = row < rows
    sums = tl.zeros((ROW_TILE, COLUMNS), tl.float32)
    square = tl.zeros((ROW_TILE,), tl.float32)
    for begin in range(0, WIDTH, BLOCK):
        k = begin + tl.arange(0, BLOCK)
        known = k < WIDTH
        part = tl.load(x + row[:, None] * WIDTH + k, real[:, None] & known, 0.0)
        square += tl.sum(part * part, 1)
        part = part * tl.load(norm + k, known, 0.0)
        w = tl.load(weight + column * WIDTH + k[:, None], known[:, None], 0.0)
        sums = tl.dot(part, w, sums, input_precision="ieee")
    scale = (1 / tl.sqrt(square / WIDTH + eps))[:, None]
    tl.store(logits + row[:, None] * VOCABULARY + column, sums * scale, real[:, None])
    for begin in range(tl.program_id(1) * BLOCK, WIDTH, tl.num_programs(1) * BLOCK):
        k = begin + tl.arange(0, BLOCK)
        given = real[:, None] & (k < WIDTH)
        part = tl.load(x + row[:, None] * WIDTH + k, given, 0.0)
        part = part * tl.load(norm + k, k < WIDTH, 0.0)
        tl.store(hidden + row[:, None] * WIDTH + k, part * scale, given)
