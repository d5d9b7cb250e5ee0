// Products with packed weights.

#pragma once

#include <vector>

#include "vectors.h"

namespace specdec {

// The weights of 32 outputs for one input.
template <class W> struct Weights {
    typedef float Input;
    static constexpr int INPUTS = 1, SIZE = stride<W>();

    explicit Weights(const W* at) { load(at, first, second); }
    void multiply(float x, vf& low, vf& high) const {
        low += first * x;
        high += second * x;
    }
    vf first, second;
};

#if defined(SPECDEC_PAIRS)
// The same for a pair of inputs in bfloat16.
struct Pairs {
    typedef uint32_t Input;
    static constexpr int INPUTS = 2, SIZE = PAIR;

    explicit Pairs(const uint32_t* at)
        : first((__m512bh)_mm512_loadu_si512(at)), second((__m512bh)_mm512_loadu_si512(at + LANES)) {}
    void multiply(uint32_t x, vf& low, vf& high) const {
        __m512bh both = (__m512bh)_mm512_set1_epi32(int(x));
        low = (vf)_mm512_dpbf16_ps((__m512)low, first, both);
        high = (vf)_mm512_dpbf16_ps((__m512)high, second, both);
    }
    // `count` numbers to bfloat16, in order; what the last vector lacks is 0.
    static void round(const float* x, int count, uint32_t* out) {
        for (; count > 0; count -= LANES, x += LANES, out += LANES / 2) {
            __mmask16 there = count < LANES ? __mmask16((1 << count) - 1) : __mmask16(0xffff);
            __m256bh half = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(there, x));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), (__m256i)half);
        }
    }
    __m512bh first, second;
};
template <class W> using Multiplied = std::conditional_t<std::is_same_v<W, float>, Weights<W>, Pairs>;
#else
template <class W> using Multiplied = Weights<W>;
#endif

// y = x Wᵀ, the weights in blocks of 32 outputs: [block][input][32].
//
// Built to multiply pairs of bfloat16 (SPECDEC_PAIRS), bfloat16 weights lie as [block][input / 2][32][2]
// and inputs are rounded to bfloat16 too; as Linear<W, Weights<W>> they are multiplied in float32.
template <class W, class K = Multiplied<W>> class Linear {
   public:
    void pack(const float* weight, int outputs, int inputs) {
        inputs_ = inputs;
        steps_ = (inputs + K::INPUTS - 1) / K::INPUTS;
        blocks_ = padded(outputs) / PAIR;
        data_ = Buffer<W>(size_t(blocks_) * steps_ * K::SIZE);
        for (int n = 0; n < outputs; ++n)
            for (int k = 0; k < inputs; ++k) {
                float value = weight[size_t(n) * inputs + k];
                if constexpr (K::INPUTS == 2)
                    reinterpret_cast<uint16_t*>(at(n / PAIR) + size_t(k / 2) * K::SIZE + n % PAIR)[k % 2] =
                        to_half(value);
                else
                    put(at(n / PAIR) + size_t(k) * K::SIZE, n % PAIR, value);
            }
    }
    int blocks() const { return blocks_; }

    // Outputs of blocks [from, to) for `rows` rows, written or added.
    template <bool ADD>
    void run(const float* x, int ldx, int rows, float* y, int ldy, int from, int to) const {
        if constexpr (K::INPUTS == 2) {
            thread_local std::vector<uint32_t> rounded;
            int ld = (steps_ + LANES - 1) / LANES * LANES;
            if (rounded.size() < size_t(rows) * ld) rounded.resize(size_t(rows) * ld);
            for (int r = 0; r < rows; ++r)
                K::round(x + size_t(r) * ldx, inputs_, &rounded[size_t(r) * ld]);
            blocks<ADD>(rounded.data(), ld, rows, y, ldy, from, to);
        } else {
            blocks<ADD>(x, ldx, rows, y, ldy, from, to);
        }
    }

   private:
    typedef typename K::Input Input;

    W* at(int block) { return data_.data() + size_t(block) * steps_ * K::SIZE; }
    const W* at(int block) const { return data_.data() + size_t(block) * steps_ * K::SIZE; }

    template <bool ADD>
    void blocks(const Input* x, int ldx, int rows, float* y, int ldy, int from, int to) const {
        // few rows: several blocks at once, or the sums would wait for one another
        if (rows == 1) {
            for (; from + 4 <= to; from += 4) tile<1, 4, ADD>(x, ldx, y, ldy, from);
            if (to - from == 3) return tile<1, 3, ADD>(x, ldx, y, ldy, from);
            if (to - from == 2) return tile<1, 2, ADD>(x, ldx, y, ldy, from);
        } else if (rows == 2) {
            for (; from + 2 <= to; from += 2) tile<2, 2, ADD>(x, ldx, y, ldy, from);
        } else if (rows == 3) {
            for (; from + 2 <= to; from += 2) tile<3, 2, ADD>(x, ldx, y, ldy, from);
        }
        int tiles = (rows + MOST_ROWS - 1) / MOST_ROWS;  // of nearly as many rows each
        for (; from < to; ++from)
            for (int t = 0, row = 0, end; t < tiles; ++t, row = end) {
                end = rows * (t + 1) / tiles;
                some<ADD>(end - row, x + size_t(row) * ldx, ldx, y + size_t(row) * ldy, ldy, from);
            }
    }

    template <bool ADD>
    void some(int rows, const Input* x, int ldx, float* y, int ldy, int block) const {
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
    void tile(const Input* x, int ldx, float* y, int ldy, int block) const {
        // every loop over sums unrolled, or the compiler keeps them in memory
        vf sums[R][2 * B];
        const W* weights[B];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int i = 0; i < 2 * B; ++i) sums[r][i] = vf{};
        for (int b = 0; b < B; ++b) weights[b] = at(block + b);
        for (int k = 0; k < steps_; ++k) {
#pragma GCC unroll 8
            for (int b = 0; b < B; ++b) {
                const W* here = weights[b] + size_t(k) * K::SIZE;
                for (int i = 0; i < K::SIZE; i += stride<W>())
                    __builtin_prefetch(here + AHEAD * stride<W>() + i);
                K w(here);
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r)
                    w.multiply(x[size_t(r) * ldx + k], sums[r][2 * b], sums[r][2 * b + 1]);
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int i = 0; i < 2 * B; ++i) {
                vf* out = reinterpret_cast<vf*>(y + size_t(r) * ldy + block * PAIR + i * LANES);
                *out = ADD ? *out + sums[r][i] : sums[r][i];
            }
    }

    int inputs_ = 0, steps_ = 0, blocks_ = 0;
    Buffer<W> data_;
};

}  // namespace specdec
