// Products with packed weights.

#pragma once

#include <initializer_list>
#include <vector>

#include "products.h"
#include "team.h"

namespace specdec {

constexpr int MOST_ROWS = SUMS / 2;  // of a tile

// What becomes of a product: GATED ones are of a gate and of what it lets through in turns, LANES
// numbers each.
enum class Into { WRITTEN, ADDED, GATED };

// y = x Wᵀ, the weights in blocks of PAIR outputs: [block][input][PAIR], where they are multiplied in
// pairs [block][input / 2][PAIR][2].
//
// K says what weights and inputs are rounded to (products.h); Linear<W, Weights<W>> multiplies in
// float32.
template <class W, class K = Multiplied<W>> class Linear {
   public:
    typedef typename K::Kept Kept;

    void pack(const float* weight, int outputs, int inputs) {
        inputs_ = inputs;
        steps_ = (inputs + K::INPUTS - 1) / K::INPUTS;
        blocks_ = padded(outputs) / PAIR;
        data_ = Buffer<W>(size_t(blocks_) * steps_ * K::SIZE);
        if constexpr (K::LARGEST > 0) sizes_.assign(size_t(blocks_) * PAIR, 0.0f);
        int64_t most = 1;  // steps that an output's weights come to
        for (int n = 0; n < outputs; ++n) {
            const float* row = weight + size_t(n) * inputs;
            float size = 0;
            if constexpr (K::LARGEST > 0) {
                auto smaller = [](float a, float b) { return std::fabs(a) < std::fabs(b); };
                size = std::fabs(*std::max_element(row, row + inputs, smaller)) / K::LARGEST;
                sizes_[n] = size;
            }
            int64_t all = 0;
            for (int k = 0; k < inputs; ++k) {
                float value = row[k];
                if constexpr (K::LARGEST > 0) {
                    value = size > 0 ? std::nearbyint(value / size) : 0.0f;
                    all += std::abs(int(value));
                }
                W* here = at(n / PAIR) + size_t(k / K::INPUTS) * K::SIZE;
                K::put(here, n % PAIR, k % K::INPUTS, value);
            }
            most = std::max(most, all);
        }
        most_ = int(std::min<int64_t>(INT16_MAX, INT32_MAX / most));
    }
    int blocks() const { return blocks_; }

    // Outputs of spans of blocks for `rows` rows; inputs are rounded first.
    template <Into INTO, class Y>
    void run(const float* x, int ldx, int rows, Y* y, int ldy, std::initializer_list<Span> spans) const {
        Inputs inputs{};
        if constexpr (K::INPUTS == 2) {
            thread_local std::vector<uint32_t> rounded;
            thread_local std::vector<float> sizes;
            int ld = padded(steps_);
            if (rounded.size() < size_t(rows) * ld) rounded.resize(size_t(rows) * ld);
            if (sizes.size() < size_t(rows)) sizes.resize(rows);
            for (int r = 0; r < rows; ++r) {
                const float* row = x + size_t(r) * ldx;
                uint32_t* out = &rounded[size_t(r) * ld];
                if constexpr (K::IN_STEPS)
                    sizes[r] = K::round(row, inputs_, most_, out);
                else
                    K::round(row, inputs_, out);
            }
            inputs = {rounded.data(), ld, sizes.data()};
        } else {
            inputs = {x, ldx, nullptr};
        }
        for (Span span : spans) blocks<INTO>(inputs, rows, y, ldy, span.begin, span.end);
    }

    // The same of inputs that were kept as they are multiplied.
    template <Into INTO, class Y>
        requires(K::EACH == K::INPUTS && K::EACH > 1)
    void run(const Kept* x, int ldx, int rows, Y* y, int ldy, std::initializer_list<Span> spans) const {
        Inputs inputs{x, ldx, nullptr};
        for (Span span : spans) blocks<INTO>(inputs, rows, y, ldy, span.begin, span.end);
    }

   private:
    // Rows as they are multiplied, `ld` apart, and where they are in steps the size of each's.
    struct Inputs {
        const typename K::Input* x;
        int ld;
        const float* sizes;

        Inputs from(int row) const { return {x + size_t(row) * ld, ld, sizes + row}; }
    };

    W* at(int block) { return data_.data() + size_t(block) * steps_ * K::SIZE; }
    const W* at(int block) const { return data_.data() + size_t(block) * steps_ * K::SIZE; }

    template <Into INTO, class Y>
    void blocks(const Inputs& inputs, int rows, Y* y, int ldy, int from, int to) const {
        // few rows: several blocks at once, or the sums would wait for one another
        if (rows == 1) {
            for (; from + 4 <= to; from += 4) tile<1, 4, INTO>(inputs, y, ldy, from);
            if (to - from == 3) return tile<1, 3, INTO>(inputs, y, ldy, from);
            if (to - from == 2) return tile<1, 2, INTO>(inputs, y, ldy, from);
        } else if (rows == 2) {
            for (; from + 2 <= to; from += 2) tile<2, 2, INTO>(inputs, y, ldy, from);
        } else if (rows == 3 && SUMS > 3 * 4) {
            for (; from + 2 <= to; from += 2) tile<3, 2, INTO>(inputs, y, ldy, from);
        }
        int tiles = (rows + MOST_ROWS - 1) / MOST_ROWS;  // of nearly as many rows each
        for (; from < to; ++from)
            for (int t = 0, row = 0, end; t < tiles; ++t, row = end) {
                end = rows * (t + 1) / tiles;
                some<INTO>(end - row, inputs.from(row), y + size_t(row) * ldy, ldy, from);
            }
    }

    template <Into INTO, int R = MOST_ROWS, class Y>
    void some(int rows, const Inputs& inputs, Y* y, int ldy, int block) const {
        if constexpr (R > 1)
            if (rows < R) return some<INTO, R - 1>(rows, inputs, y, ldy, block);
        tile<R, 1, INTO>(inputs, y, ldy, block);
    }

    template <int R, int B, Into INTO, class Y>
    void tile(const Inputs& inputs, Y* y, int ldy, int block) const {
        typename K::Sum sums[R][2 * B];
        add_up<K, R, B>(at(block), size_t(steps_) * K::SIZE, K::SIZE, steps_, AHEAD / K::INPUTS * K::SIZE,
                        inputs.x, size_t(inputs.ld), sums);
        vf gated[INTO == Into::GATED ? R : 1][2 * B];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int i = 0; i < 2 * B; ++i) {
                int at = block * PAIR + i * LANES;
                vf value = product(sums[r][i], inputs, r, at);
                if constexpr (INTO == Into::GATED) {
                    gated[r][i] = value;
                } else {
                    vf* out = reinterpret_cast<vf*>(y + size_t(r) * ldy + at);
                    *out = INTO == Into::ADDED ? *out + value : value;
                }
            }
        if constexpr (INTO == Into::GATED) {
            // a loop of its own, or its constants take registers from the sums
            asm volatile("" : : "r"(gated) : "memory");
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 1
                for (int b = 0; b < B; ++b)
                    K::keep(y + size_t(r) * ldy, (block + b) * LANES,
                            swiglu(gated[r][2 * b], gated[r][2 * b + 1]));
        }
    }
    // Of row r and the outputs from `at` on.
    [[gnu::always_inline]] vf product(typename K::Sum sum, const Inputs& inputs, int r, int at) const {
        vf value = __builtin_convertvector(sum, vf);
        if constexpr (K::LARGEST > 0) value *= *reinterpret_cast<const vf*>(&sizes_[at]);
        if constexpr (K::IN_STEPS) value *= inputs.sizes[r];
        return value;
    }

    int inputs_ = 0, steps_ = 0, blocks_ = 0;
    int most_ = 0;              // steps of an input at most
    std::vector<float> sizes_;  // of the steps of each output's weights
    Buffer<W> data_;
};

// silu(gate x) · up x.
template <class W> class Gated {
   public:
    typedef typename Linear<W>::Kept Kept;

    // Rows of both matrices, [2 F, D]: those of the gate first.
    void pack(const float* gate_up, int outputs, int inputs) {
        int parts = padded(outputs) / LANES;
        // LANES rows of the gate's, then as many of the other's
        std::vector<float> both(size_t(parts) * PAIR * inputs, 0.0f);
        for (int n = 0; n < 2 * outputs; ++n) {
            int of = n % outputs, to = of / LANES * PAIR + n / outputs * LANES + of % LANES;
            std::copy_n(gate_up + size_t(n) * inputs, inputs, &both[size_t(to) * inputs]);
        }
        linear_.pack(both.data(), parts * PAIR, inputs);
    }
    int blocks() const { return linear_.blocks(); }

    // Blocks [from, to) of LANES outputs each for `rows` rows, as they are multiplied next.
    template <class X> void run(const X* x, int ldx, int rows, Kept* y, int ldy, Span span) const {
        linear_.template run<Into::GATED>(x, ldx, rows, y, ldy, {span});
    }

   private:
    Linear<W> linear_;
};

}  // namespace specdec
