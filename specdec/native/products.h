// Ways to multiply packed weights: how PAIR outputs are kept for INPUTS inputs at a time.
//
// Rows that are written for a product's inputs lie as `keep` puts them, EACH numbers in one: rounded
// already where a number's rounding hangs on nothing else.
//
// With LARGEST, weights are kept in steps of which an output's largest one has so many, and IN_STEPS
// says whether inputs are in steps too: of a size for each row, so small as the sums' 31 bits allow.
// Sums of steps are exact whatever their order.

#pragma once

#include "vectors.h"

namespace specdec {

// Whether weights, keys and values are asked for before they are needed.  AMD's processors, for which
// pairs are taken, fetch them sooner by themselves.
#if defined(SPECDEC_PAIRS)
constexpr bool ASKS = false;
#else
constexpr bool ASKS = true;
#endif

// In float32.
template <class W> struct Weights : Plain {
    typedef float Input;
    typedef vf Sum;
    static constexpr int INPUTS = 1, SIZE = stride<W>(), LARGEST = 0;
    static constexpr bool IN_STEPS = false;

    static void put(W* at, int output, int, float value) { specdec::put(at, output, value); }
    explicit Weights(const W* at) {
        load(at, first, second);
        hold(first, second);
    }
    void multiply(float x, vf& low, vf& high) const {
        low += first * x;
        high += second * x;
    }
    vf first, second;

   protected:
    Weights(vf first, vf second) : first(first), second(second) {}
};

#if defined(SPECDEC_PAIRS)
// Pairs of bfloat16: inputs are rounded to it, sums are float32.
struct Pairs {
    typedef uint32_t Input;
    typedef uint32_t Kept;
    typedef vf Sum;
    static constexpr int INPUTS = 2, EACH = 2, SIZE = PAIR, LARGEST = 0;
    static constexpr bool IN_STEPS = false;

    static void put(uint32_t* at, int output, int input, float value) {
        reinterpret_cast<uint16_t*>(at + output)[input] = to_half(value);
    }
    explicit Pairs(const uint32_t* at)
        : first((__m512bh)_mm512_loadu_si512(at)), second((__m512bh)_mm512_loadu_si512(at + LANES)) {
        hold(first, second);
    }
    void multiply(uint32_t x, vf& low, vf& high) const {
        __m512bh both = (__m512bh)_mm512_set1_epi32(int(x));
        low = (vf)_mm512_dpbf16_ps((__m512)low, first, both);
        high = (vf)_mm512_dpbf16_ps((__m512)high, second, both);
    }
    // Of each pair's inputs.
    void drop_second() {
        first = (__m512bh)((vi)first & 0xffff);
        second = (__m512bh)((vi)second & 0xffff);
    }
    static void keep(uint32_t* row, int i, vf x) {
        __m256i half = (__m256i)_mm512_cvtneps_pbh((__m512)x);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + i / 2), half);
    }
    static void keep(uint32_t* row, int i, const float* x, int count) { round(x, count, row + i / 2); }
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
typedef Pairs Halves;
#elif defined(SPECDEC_INTEGERS)
// Vectors of 16-bit integers, and what AVX2 and AVX-512 call the same.
#if defined(__AVX512F__)
typedef __m512i Whole;
inline Whole whole(const void* at) { return _mm512_loadu_si512(at); }
inline Whole wide(const int8_t* at) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
}
inline Whole each(uint32_t pair) { return _mm512_set1_epi32(int(pair)); }
inline vi add_pairs(vi sums, Whole a, Whole b) {
#if defined(__AVX512VNNI__)
    return (vi)_mm512_dpwssd_epi32((Whole)sums, a, b);
#else
    return sums + (vi)_mm512_madd_epi16(a, b);
#endif
}
inline int largest(vi x) { return _mm512_reduce_max_epi32((Whole)x); }
// PAIR numbers to the nearest integer, which has 16 bits.
inline void to_integers(vf first, vf second, int16_t* out) {
    auto put = [](vf x, int16_t* at) {
        __m256i half = _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32((__m512)x));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), half);
    };
    put(first, out);
    put(second, out + LANES);
}
#else
typedef __m256i Whole;
inline Whole whole(const void* at) { return _mm256_loadu_si256(reinterpret_cast<const Whole*>(at)); }
inline Whole wide(const int8_t* at) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}
inline Whole each(uint32_t pair) { return _mm256_set1_epi32(int(pair)); }
inline vi add_pairs(vi sums, Whole a, Whole b) { return sums + (vi)_mm256_madd_epi16(a, b); }
inline int largest(vi x) {
    __m128i half = _mm_max_epi32(_mm256_castsi256_si128((Whole)x), _mm256_extracti128_si256((Whole)x, 1));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1));
    return _mm_cvtsi128_si32(half);
}
inline void to_integers(vf first, vf second, int16_t* out) {
    Whole a = _mm256_cvtps_epi32((__m256)first), b = _mm256_cvtps_epi32((__m256)second);
    Whole both = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<Whole*>(out), both);
}
#endif

// Pairs of 16-bit integers; what is multiplied is in steps of a row's own, so kept as it is.
struct Integers : Plain {
    typedef uint32_t Input;
    typedef vi Sum;
    static constexpr int INPUTS = 2, SIZE = PAIR, LARGEST = 2047;
    static constexpr bool IN_STEPS = true;

    static void put(uint32_t* at, int output, int input, float steps) {
        reinterpret_cast<int16_t*>(at + output)[input] = int16_t(steps);
    }
    explicit Integers(const uint32_t* at) : first(whole(at)), second(whole(at + LANES)) {
        hold(first, second);
    }
    void multiply(uint32_t x, vi& low, vi& high) const {
        Whole both = each(x);
        low = add_pairs(low, first, both);
        high = add_pairs(high, second, both);
    }
    // Of each pair's inputs.
    void drop_second() {
        first = (Whole)((vi)first & 0xffff);
        second = (Whole)((vi)second & 0xffff);
    }
    // `count` numbers in steps, the largest in `most`, behind an odd number a zero; the size of a step, NaN
    // where one of the numbers is no finite one.
    static float round(const float* x, int count, int most, uint32_t* out) {
        vi tops = {};
        int i = 0;
        for (; i + LANES <= count; i += LANES) {
            // without their signs floats are ordered as integers
            vi part = *reinterpret_cast<const vi*>(x + i) & INT32_MAX;
            tops = part > tops ? part : tops;
        }
        uint32_t top = uint32_t(largest(tops));
        for (; i < count; ++i) top = std::max(top, bits_of(x[i]) & 0x7fffffffu);
        float largest;
        std::memcpy(&largest, &top, 4);
        float steps = float(most) / largest;
        to_steps(x, count, std::isfinite(steps) ? steps : 0, out);
        return std::isfinite(largest) ? largest / float(most) : NAN;
    }
    // `count` numbers times `steps`, to the nearest; behind an odd number a zero.
    static void to_steps(const float* x, int count, float steps, uint32_t* out) {
        typedef int16_t __attribute__((may_alias)) Step;
        Step* to = reinterpret_cast<Step*>(out);
        int i = 0;
        auto times = [&](const float* from) { return *reinterpret_cast<const vf*>(from) * steps; };
        for (; i + PAIR <= count; i += PAIR) to_integers(times(x + i), times(x + i + LANES), to + i);
        for (; i < count; ++i) to[i] = int16_t(std::nearbyint(x[i] * steps));
        if (count % 2) to[count] = 0;
    }
    Whole first, second;

   protected:
    Integers(Whole first, Whole second) : first(first), second(second) {}
};

// The same with weights of eight bits.
struct Bytes : Integers {
    static constexpr int SIZE = 2 * PAIR, LARGEST = INT8_MAX;

    static void put(int8_t* at, int output, int input, float steps) {
        at[2 * output + input] = int8_t(steps);
    }
    explicit Bytes(const int8_t* at) : Integers(wide(at), wide(at + PAIR)) {}
};
typedef Integers Halves;
#else
typedef Weights<uint32_t> Halves;
#endif

#if !defined(SPECDEC_INTEGERS)
// Weights of eight bits, multiplied in float32.
struct Bytes : Weights<float> {
    static constexpr int SIZE = PAIR, LARGEST = INT8_MAX;

    static void put(int8_t* at, int output, int, float steps) { at[output] = int8_t(steps); }
    explicit Bytes(const int8_t* at) : Weights(wide(at), wide(at + LANES)) {}

   private:
    static vf wide(const int8_t* at) {
#if defined(__AVX512F__)
        __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
        return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
#elif defined(__AVX2__)
        __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at));
        return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
#else
        typedef int8_t vb __attribute__((vector_size(LANES), aligned(1)));
        return __builtin_convertvector(*reinterpret_cast<const vb*>(at), vf);
#endif
    }
};
#endif

// What weights kept as W are multiplied by.
template <class W> struct Products { typedef Weights<W> Kind; };
template <> struct Products<uint32_t> { typedef Halves Kind; };
template <> struct Products<int8_t> { typedef Bytes Kind; };
template <class W> using Multiplied = typename Products<W>::Kind;

// Sums of products of R rows of inputs, `ldx` apart, with B blocks of weights that lie `apart`; from
// those of one step, an input or a pair, to those of the next are `stride`; what is `ahead` is asked
// for, if anything is.
template <class K, int R, int B, class W>
[[gnu::always_inline]] inline void add_up(
    const W* weights, size_t apart, size_t stride, int steps, size_t ahead,
    const typename K::Input* x, size_t ldx, typename K::Sum (&sums)[R][2 * B]) {
    constexpr int LINE = 64 / sizeof(W);
    // every loop over sums unrolled, or the compiler keeps them in memory
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int i = 0; i < 2 * B; ++i) sums[r][i] = typename K::Sum{};
    for (int k = 0; k < steps; ++k, weights += stride) {
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) {
            const W* here = weights + b * apart;
            if constexpr (ASKS)
                for (int i = 0; i < K::SIZE; i += LINE) __builtin_prefetch(here + ahead + i);
            K w(here);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) w.multiply(x[r * ldx + k], sums[r][2 * b], sums[r][2 * b + 1]);
        }
    }
}

}  // namespace specdec
