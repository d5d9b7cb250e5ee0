// Ways to multiply packed weights: how PAIR outputs are kept for INPUTS inputs at a time.

#pragma once

#include "vectors.h"

namespace specdec {

// In float32.
template <class W> struct Weights {
    typedef float Input;
    typedef vf Sum;
    static constexpr int INPUTS = 1, SIZE = stride<W>();
    static constexpr bool IN_STEPS = false;

    explicit Weights(const W* at) { load(at, first, second); }
    void multiply(float x, vf& low, vf& high) const {
        low += first * x;
        high += second * x;
    }
    vf first, second;
};

#if defined(SPECDEC_PAIRS)
// Pairs of bfloat16: inputs are rounded to it, sums are float32.
struct Pairs {
    typedef uint32_t Input;
    typedef vf Sum;
    static constexpr int INPUTS = 2, SIZE = PAIR;
    static constexpr bool IN_STEPS = false;

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
#elif defined(SPECDEC_INTEGERS)
// Pairs of 16-bit integers: weights in steps of a 2047th of an output's largest one, inputs in steps
// that a row's largest one and the sums' 31 bits leave.  Sums are exact whatever their order.
struct Integers {
    typedef uint32_t Input;
    typedef vi Sum;
    static constexpr int INPUTS = 2, SIZE = PAIR, LARGEST = 2047;
    static constexpr bool IN_STEPS = true;

    explicit Integers(const uint32_t* at)
        : first(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))),
          second(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + LANES))) {}
    void multiply(uint32_t x, vi& low, vi& high) const {
        __m256i both = _mm256_set1_epi32(int(x));
        low += (vi)_mm256_madd_epi16(first, both);
        high += (vi)_mm256_madd_epi16(second, both);
    }
    // `count` numbers in steps, the largest in `most`, behind an odd number a zero; the size of a step,
    // NaN where one of the numbers is no finite one.
    static float round(const float* x, int count, int most, uint32_t* out) {
        vu tops = {};
        int i = 0;
        for (; i + LANES <= count; i += LANES) {
            vu part = *reinterpret_cast<const vu*>(x + i) & 0x7fffffffu;
            tops = tops > part ? tops : part;  // without their signs floats are ordered as integers
        }
        uint32_t top = 0;
        for (int lane = 0; lane < LANES; ++lane) top = std::max<uint32_t>(top, tops[lane]);
        for (; i < count; ++i) top = std::max(top, bits_of(x[i]) & 0x7fffffffu);
        float largest;
        std::memcpy(&largest, &top, 4);
        float steps = largest > 0 && std::isfinite(largest) ? float(most) / largest : 0.0f;
        int16_t* to = reinterpret_cast<int16_t*>(out);
        for (i = 0; i + PAIR <= count; i += PAIR) {
            __m256i a = _mm256_cvtps_epi32(_mm256_loadu_ps(x + i) * steps);
            __m256i b = _mm256_cvtps_epi32(_mm256_loadu_ps(x + i + LANES) * steps);
            __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), both);
        }
        for (; i < count; ++i) to[i] = int16_t(std::nearbyint(x[i] * steps));
        if (count % 2) to[count] = 0;
        return std::isfinite(largest) ? largest / float(most) : NAN;
    }
    __m256i first, second;
};
template <class W> using Multiplied = std::conditional_t<std::is_same_v<W, float>, Weights<W>, Integers>;
#else
template <class W> using Multiplied = Weights<W>;
#endif

}  // namespace specdec
