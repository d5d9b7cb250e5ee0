// Products with packed weights.

#pragma once

#include "vectors.h"

namespace specdec {

// y = x Wᵀ, the weights in blocks of 32 outputs: [block][input][32].
template <class W> class Linear {
   public:
    void pack(const float* weight, int outputs, int inputs) {
        inputs_ = inputs;
        blocks_ = padded(outputs) / PAIR;
        data_ = Buffer<W>(size_t(blocks_) * inputs * stride<W>());
        for (int n = 0; n < outputs; ++n)
            for (int k = 0; k < inputs; ++k)
                put(at(n / PAIR) + size_t(k) * stride<W>(), n % PAIR, weight[size_t(n) * inputs + k]);
    }
    int blocks() const { return blocks_; }

    // Outputs of blocks [from, to) for `rows` rows, written or added.
    template <bool ADD>
    void run(const float* x, int ldx, int rows, float* y, int ldy, int from, int to) const {
        if (rows == 1) {
            for (; from + 4 <= to; from += 4) tile<1, 4, ADD>(x, ldx, y, ldy, from);
        } else if (rows == 2) {
            for (; from + 2 <= to; from += 2) tile<2, 2, ADD>(x, ldx, y, ldy, from);
        }
        for (; from < to; ++from)
            for (int row = 0; row < rows; row += MOST_ROWS)
                some<ADD>(std::min(MOST_ROWS, rows - row), x + size_t(row) * ldx, ldx,
                          y + size_t(row) * ldy, ldy, from);
    }

   private:
    W* at(int block) { return data_.data() + size_t(block) * inputs_ * stride<W>(); }
    const W* at(int block) const { return data_.data() + size_t(block) * inputs_ * stride<W>(); }

    template <bool ADD>
    void some(int rows, const float* x, int ldx, float* y, int ldy, int block) const {
        switch (rows) {
            case 1: return tile<1, 1, ADD>(x, ldx, y, ldy, block);
            case 2: return tile<2, 1, ADD>(x, ldx, y, ldy, block);
            case 3: return tile<3, 1, ADD>(x, ldx, y, ldy, block);
            case 4: return tile<4, 1, ADD>(x, ldx, y, ldy, block);
            case 5: return tile<5, 1, ADD>(x, ldx, y, ldy, block);
            case 6: return tile<6, 1, ADD>(x, ldx, y, ldy, block);
            case 7: return tile<7, 1, ADD>(x, ldx, y, ldy, block);
            case 8: return tile<8, 1, ADD>(x, ldx, y, ldy, block);
            case 9: return tile<9, 1, ADD>(x, ldx, y, ldy, block);
            case 10: return tile<10, 1, ADD>(x, ldx, y, ldy, block);
            case 11: return tile<11, 1, ADD>(x, ldx, y, ldy, block);
            default: return tile<12, 1, ADD>(x, ldx, y, ldy, block);
        }
    }

    template <int R, int B, bool ADD>
    void tile(const float* x, int ldx, float* y, int ldy, int block) const {
        vf sums[R][2 * B] = {};
        const W* weights[B];
        for (int b = 0; b < B; ++b) weights[b] = at(block + b);
        for (int k = 0; k < inputs_; ++k) {
#pragma GCC unroll 8
            for (int b = 0; b < B; ++b) {
                vf first, second;
                const W* at_k = weights[b] + size_t(k) * stride<W>();
                __builtin_prefetch(at_k + AHEAD * stride<W>());
                load(at_k, first, second);
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) {
                    float xs = x[size_t(r) * ldx + k];
                    sums[r][2 * b] += first * xs;
                    sums[r][2 * b + 1] += second * xs;
                }
            }
        }
        for (int r = 0; r < R; ++r)
            for (int b = 0; b < 2 * B; ++b) {
                vf* out = reinterpret_cast<vf*>(y + size_t(r) * ldy + block * PAIR + b * LANES);
                *out = ADD ? *out + sums[r][b] : sums[r][b];
            }
    }

    int inputs_ = 0, blocks_ = 0;
    Buffer<W> data_;
};

}  // namespace specdec
