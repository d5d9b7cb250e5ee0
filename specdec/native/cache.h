// Keys and values of texts, and attention over them.  A text is a slot's, as one key-value head of a layer
// sees it.
//
// Keys are the weights of a product whose outputs are places, values of one whose inputs are: both lie
// as products.h wants them, [block of PAIR places][input][PAIR] and [place][part of PAIR numbers][PAIR],
// in pairs of inputs or of places where numbers are multiplied in pairs.  Kept in steps, each key and
// each value of a place has its own size of a step; those of values go into the weights of places, and
// both lie behind a block's keys, which are read first.
//
// A query's attention is by itself, whoever reads the same keys beside it: its own places, in order.

#pragma once

#include <cfloat>
#include <vector>

#include "products.h"

namespace specdec {

constexpr int TOGETHER = SUMS > 16 ? 8 : 6;  // queries that read a text's keys and values at once

template <class C> class Cache {
    typedef Multiplied<C> K;
    typedef typename K::Input Input;
    typedef typename K::Sum Sum;

   public:
    // What a thread needs for itself: of TOGETHER queries these, scores of places and, where they are
    // rounded, their weights, and of one key or value what it is rounded to.
    struct Scratch {
        std::vector<Input> queries;
        std::vector<float> scores;
        std::vector<Input> weights;
        std::vector<uint32_t> rounded;
    };

    Cache() = default;
    Cache(int64_t texts, int places, int head) : Cache(places, head) {
        keys_ = Buffer<C>(texts * key_size_);
        values_ = Buffer<C>(texts * value_size_);
    }

    // What a text takes.
    static size_t bytes(int places, int head) {
        Cache one(places, head);
        return (one.key_size_ + one.value_size_) * sizeof(C);
    }

    Scratch scratch() const {
        Scratch s;
        s.queries.assign(size_t(TOGETHER) * width_, 0);
        s.scores.assign(size_t(TOGETHER) * row_, 0);
        if constexpr (ROUNDED) {
            s.weights.assign(size_t(TOGETHER) * row_, 0);
            s.rounded.assign(width_, 0);
        }
        return s;
    }

    void copy(int64_t source, int64_t target, int places) {
        std::copy_n(keys(source), size_t(padded(places)) / PAIR * block_, keys(target));
        std::copy_n(values(source), size_t(inputs(places)) * width_ / PAIR * K::SIZE, values(target));
    }

    void put(int64_t text, int place, const float* key, const float* value, Scratch& scratch) {
        C* at = keys(text) + size_t(place / PAIR) * block_;
        C* to = values(text) + size_t(place / K::INPUTS) * width_ / PAIR * K::SIZE;
        if constexpr (ROUNDED) {
            typedef uint16_t __attribute__((may_alias)) Half;
            uint32_t* rounded = scratch.rounded.data();
            C* sizes = at + block_ - 2 * PAIR + place % PAIR;
            round(key, sizes, rounded);
            for (int i = 0; i < inputs(head_); ++i) at[size_t(i) * K::SIZE + place % PAIR] = rounded[i];
            round(value, sizes + PAIR, rounded);
            const Half* from = reinterpret_cast<const Half*>(rounded);
            Half* half = reinterpret_cast<Half*>(to) + place % 2;
            for (int i = 0; i < head_; ++i) half[2 * i] = from[i];
        } else {
            for (int i = 0; i < head_; ++i) K::put(at + size_t(i) * K::SIZE, place % PAIR, 0, key[i]);
            int i = 0;
            for (; i + PAIR <= head_; i += PAIR) store(to + size_t(i / PAIR) * K::SIZE, value + i);
            for (; i < head_; ++i) K::put(to + size_t(i / PAIR) * K::SIZE, i % PAIR, 0, value[i]);
        }
    }

    // `size` queries, TOGETHER at most, over each's first `places` of a text; what they get is kept as
    // N says.
    template <class N, int Q = TOGETHER>
    void attend(int64_t text, int size, const float* const* queries, const int* places,
                typename N::Kept* const* outs, Scratch& scratch) const {
        if constexpr (Q > 1)
            if (size < Q) return attend<N, Q - 1>(text, size, queries, places, outs, scratch);
        // at least eight sums hide the latency
        constexpr int B = 4 * Q <= TOGETHER ? 4 : 2 * Q <= TOGETHER ? 2 : 1;
        float scale = 1.0f / std::sqrt(float(head_)), scales[Q];
        Input* asked = scratch.queries.data();
        float* scores = scratch.scores.data();
        for (int q = 0; q < Q; ++q) {
            scales[q] = scale;
            if constexpr (K::IN_STEPS) {
                int steps = std::min<int>(INT16_MAX, INT32_MAX / (CACHED * head_));
                scales[q] *= K::round(queries[q], head_, steps, asked + q * width_);
            } else if constexpr (ROUNDED) {
                K::round(queries[q], head_, asked + q * width_);
            } else {
                std::copy_n(queries[q], head_, asked + q * width_);
            }
        }
        int most = *std::max_element(places, places + Q), blocks = (most + PAIR - 1) / PAIR, b = 0;
        for (; b + B <= blocks; b += B) score<Q, B>(text, asked, scales, scores, b);
        if constexpr (B > 2)
            for (; b + 2 <= blocks; b += 2) score<Q, 2>(text, asked, scales, scores, b);
        for (; b < blocks; ++b) score<Q, 1>(text, asked, scales, scores, b);
        Input* weights;
        if constexpr (ROUNDED)
            weights = scratch.weights.data();
        else
            weights = scores;
        for (int q = 0; q < Q; ++q) {
            float* own = scores + size_t(q) * row_;
            Input* rounded = weights + size_t(q) * row_;
            // beyond a query's own places weights are 0
            std::fill(own + places[q], own + blocks * PAIR, -INFINITY);
            if constexpr (K::IN_STEPS)
                scales[q] = weights_in_steps(own, keys(text), places[q], blocks, rounded);
            else
                scales[q] = exponentials(own, blocks * PAIR, rounded);
        }
        int parts = width_ / PAIR, part = 0;
        for (; part + B <= parts; part += B) weigh<N, Q, B>(text, most, weights, scales, outs, part);
        if constexpr (B > 2)
            for (; part + 2 <= parts; part += 2) weigh<N, Q, 2>(text, most, weights, scales, outs, part);
        for (; part < parts; ++part) weigh<N, Q, 1>(text, most, weights, scales, outs, part);
    }

   private:
    Cache(int places, int head) : head_(head), capacity_(padded(places)), width_(padded(head)) {
        row_ = capacity_ + PAIR;
        block_ = size_t(inputs(head_)) * K::SIZE + (K::IN_STEPS ? 2 * PAIR : 0);
        key_size_ = size_t(capacity_) / PAIR * block_;
        value_size_ = size_t(inputs(capacity_)) * width_ / PAIR * K::SIZE;
    }

    static constexpr int CACHED = 4095;  // steps of a key's or a value's largest number
    static constexpr bool ROUNDED = K::INPUTS == 2;  // else numbers are multiplied in float32

    static int inputs(int n) { return (n + K::INPUTS - 1) / K::INPUTS; }
    C* keys(int64_t text) { return keys_.data() + text * key_size_; }
    const C* keys(int64_t text) const { return keys_.data() + text * key_size_; }
    C* values(int64_t text) { return values_.data() + text * value_size_; }
    const C* values(int64_t text) const { return values_.data() + text * value_size_; }
    // Sizes of the steps of LANES keys (which = 0) or values (1) of a block, from lane `i` on.
    vf sizes(const C* block, int which, int i) const {
        return (vf)*reinterpret_cast<const vu*>(block + block_ - (2 - which) * PAIR + i);
    }

    // A key or a value as it is kept, and where that is in steps their size.
    void round(const float* x, C* size, uint32_t* out) const {
        if constexpr (K::IN_STEPS) {
            float each = K::round(x, head_, CACHED, out);
            std::memcpy(size, &each, sizeof each);
        } else {
            K::round(x, head_, out);
        }
    }

    // Scores of Q queries against N blocks of PAIR places, from block `at` on.
    template <int Q, int N>
    void score(int64_t text, const Input* queries, const float* scales, float* scores, int at) const {
        Sum sums[Q][2 * N];
        const C* first = keys(text) + at * block_;
        add_up<K, Q, N>(first, block_, K::SIZE, inputs(head_), N * block_, queries, width_, sums);
#pragma GCC unroll 8
        for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
            for (int i = 0; i < 2 * N; ++i) {
                vf value = __builtin_convertvector(sums[q][i], vf) * scales[q];
                if constexpr (K::IN_STEPS)
                    value *= sizes(first + i / 2 * block_, 0, i % 2 * LANES);
                *reinterpret_cast<vf*>(scores + size_t(q) * row_ + at * PAIR + i * LANES) = value;
            }
    }

    static float highest(const float* scores, int end) {
        vf best = vf{} - INFINITY;
        for (int i = 0; i < end; i += LANES) {
            vf score = *reinterpret_cast<const vf*>(scores + i);
            best = score > best ? score : best;  // what is no number is passed over, in any company
        }
        return largest(best);
    }

    // Scores to weights of places, rounded if need be; what those are to be multiplied by, to be 1 in
    // all.  `out` may be `scores` where they are not rounded.
    static float exponentials(const float* scores, int end, Input* out) {
        float top = highest(scores, end);
        vf total = {};
        for (int i = 0; i < end; i += LANES) {
            vf weight = vexp(*reinterpret_cast<const vf*>(scores + i) - top);
            total += weight;
            if constexpr (ROUNDED)
                K::round(reinterpret_cast<const float*>(&weight), LANES, out + i / 2);
            else
                *reinterpret_cast<vf*>(out + i) = weight;
        }
        return 1.0f / sum(total);
    }

    // The same, each times the size of its value's step, in steps: so many as the sums' 31 bits allow.
    float weights_in_steps(float* scores, const C* keys, int places, int blocks, Input* out) const {
        int end = blocks * PAIR;
        float top = highest(scores, end);
        vf total = {}, weighed = {}, most = {};
        for (int b = 0; b < blocks; ++b, keys += block_)
            for (int i = 0; i < PAIR; i += LANES) {
                vf* at = reinterpret_cast<vf*>(scores + b * PAIR + i);
                vf score = *at, weight = vexp(score - top), value = weight * sizes(keys, 1, i);
                total += weight;
                // what lies beyond a query's places may be of another text, and not finite
                value = score != -INFINITY ? value : vf{};
                weighed += value;
                most = most > value ? most : value;
                *at = value;
            }
        float all = sum(weighed), size = largest(most) / INT16_MAX;
        // to the nearest: half a step of each place, and what the sum of floats is off by
        float room = float(INT32_MAX / CACHED) - float(places) / 2 - 64;
        size = std::max(size, all / room);
        K::to_steps(scores, end, size >= FLT_MIN ? 1 / size : 0, out);
        return std::isfinite(all) ? size / sum(total) : NAN;
    }

    // B parts of PAIR numbers, from `part` on, of the values of a text's first places weighed for Q queries.
    template <class N, int Q, int B>
    void weigh(int64_t text, int places, const Input* weights, const float* scales,
               typename N::Kept* const* outs, int part) const {
        Sum sums[Q][2 * B];
        size_t apart = size_t(width_) / PAIR * K::SIZE;
        const C* first = values(text) + part * K::SIZE;
        int steps = places / K::INPUTS;
        add_up<K, Q, B>(first, K::SIZE, apart, steps, 16 / K::INPUTS * apart, weights, row_, sums);
        if constexpr (ROUNDED)
            if (places % 2)
#pragma GCC unroll 8
                for (int b = 0; b < B; ++b) {
                    K last(first + steps * apart + b * K::SIZE);
                    last.drop_second();  // of another text, perhaps no number: not even 0 times
#pragma GCC unroll 8
                    for (int q = 0; q < Q; ++q)
                        last.multiply(weights[q * row_ + steps], sums[q][2 * b], sums[q][2 * b + 1]);
                }
        int count = std::min(B * PAIR, head_ - part * PAIR);
#pragma GCC unroll 8
        for (int q = 0; q < Q; ++q) {
            alignas(64) typename N::Kept last[B * PAIR / N::EACH];
            typename N::Kept* out = outs[q] + part * PAIR / N::EACH;
            typename N::Kept* to = count == B * PAIR ? out : last;
#pragma GCC unroll 8
            for (int i = 0; i < 2 * B; ++i)
                N::keep(to, i * LANES, __builtin_convertvector(sums[q][i], vf) * scales[q]);
            if (to == last) std::copy_n(last, count / N::EACH, out);
        }
    }

    int head_ = 0, capacity_ = 0, width_ = 0;
    int row_ = 0;  // of scores and weights; powers of two would share the cache's lines
    size_t block_ = 0, key_size_ = 0, value_size_ = 0;
    Buffer<C> keys_, values_;
};

}  // namespace specdec
