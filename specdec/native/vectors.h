// Two vectors of numbers at a time, in float32 or bfloat16, and memory for what is streamed through.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace specdec {

#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr int SUMS = 24;  // that stay in registers, besides what is added to them
#else
constexpr int LANES = 8;
constexpr int SUMS = 12;
#endif
constexpr int PAIR = 2 * LANES;
constexpr int AHEAD = 96;  // inputs whose weights are asked for before they are needed
constexpr int TILE = 32;   // sizes are padded to multiples of it, on every processor

typedef float vf __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

inline int padded(int n) { return (n + TILE - 1) / TILE * TILE; }

inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline uint16_t to_half(float x) {  // bfloat16, nearest, ties to even
    uint32_t bits = bits_of(x);
    bits += 0x7fff + ((bits >> 16) & 1);
    return static_cast<uint16_t>(bits >> 16);
}

// PAIR numbers as two vectors: the first half and the second.  In bfloat16 number i and number
// i + LANES share a 32-bit lane, so that each half is one operation away from float32.
inline void load(const uint32_t* at, vf& first, vf& second) {
    vu both = *reinterpret_cast<const vu*>(at);
    first = (vf)(both << 16);
    second = (vf)(both & 0xffff0000u);
}
inline void load(const float* at, vf& first, vf& second) {
    first = *reinterpret_cast<const vf*>(at);
    second = *reinterpret_cast<const vf*>(at + LANES);
}
// Keeps two vectors in registers: the compiler would rather load them again for each of a few rows,
// and a load more for each product is what few rows then wait for.
template <class V> inline void hold(V& first, V& second) {
#if defined(__AVX512F__)
    asm("" : "+v"(first), "+v"(second));
#elif defined(__AVX2__)
    asm("" : "+x"(first), "+x"(second));
#endif
}
template <class W> constexpr int stride() { return std::is_same<W, float>::value ? PAIR : LANES; }

inline void put(uint32_t* row, int i, float x) {
    reinterpret_cast<uint16_t*>(row + i / PAIR * LANES + i % LANES)[i % PAIR / LANES] = to_half(x);
}
inline void put(float* row, int i, float x) { row[i] = x; }

// PAIR numbers at once.
inline void store(uint32_t* at, const float* x) {
    auto half = [](const float* from) {
        vu bits = *reinterpret_cast<const vu*>(from);
        return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    };
    *reinterpret_cast<vu*>(at) = half(x) | (half(x + LANES) << 16);
}
inline void store(float* at, const float* x) { std::memcpy(at, x, PAIR * sizeof(float)); }

// exp, to about an ulp; 0 below -87.7 and of no number, and above 88 what it is there: float32 ends
[[gnu::always_inline]] inline vf vexp(vf x) {
    const vf least = vf{} - 88.0f, most = vf{} + 88.0f;
    vf clamped = x > least ? x : least;
    clamped = clamped < most ? clamped : most;
    constexpr float ROUND = 12582912.0f;  // what is added to it is rounded, and its last bits are a number
    vf n = clamped * 1.44269504f + ROUND;
    vf kf = n - ROUND;
    vf r = clamped - kf * 0.693359375f;
    r = r - kf * -2.12194440e-4f;
    vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (vf)(((vu)n << 23) + 0x3f800000u);  // 2 to the power of -127 would be this 0
}

// All lanes in one number by `of` two: halves, then halves of those, a fixed order.
template <class Of> inline float fold(vf x, Of of) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
    __m512d all = _mm512_castps_pd((__m512)x);
    __m256 half = of((__m256)_mm512_castpd512_pd256(all), (__m256)_mm512_extractf64x4_pd(all, 1));
#else
    __m256 half = (__m256)x;
#endif
    __m128 four = of(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    four = of(four, _mm_movehl_ps(four, four));
    return of(four, _mm_movehdup_ps(four))[0];
#else
    float lanes[LANES];
    std::memcpy(lanes, &x, sizeof lanes);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; ++i) lanes[i] = of(lanes[i], lanes[i + width]);
    return lanes[0];
#endif
}
inline float sum(vf x) {
    return fold(x, [](auto a, auto b) { return a + b; });
}
inline float largest(vf x) {
    return fold(x, [](auto a, auto b) { return a > b ? a : b; });
}

// Numbers as they are, side by side in a row: one way to keep them (products.h has another).
struct Plain {
    typedef float Kept;
    static constexpr int EACH = 1;  // numbers in one that is kept

    static void keep(float* row, int i, vf x) { *reinterpret_cast<vf*>(row + i) = x; }
    static void keep(float* row, int i, const float* x, int count) { std::copy_n(x, count, row + i); }
};

// x / rms(x) · weight, of `width` numbers, kept as N says; without a weight (null) 1.  `out` may be x.
template <class N = Plain>
inline void normalize(const float* x, const float* weight, float eps, int width, typename N::Kept* out) {
    auto at = [](const float* from) { return *reinterpret_cast<const vf*>(from); };
    constexpr int SIDE = 4;  // by side, or each sum would wait for the one before it
    int i = 0;
    vf squares[SIDE] = {};
    for (; i + SIDE * LANES <= width; i += SIDE * LANES)
        for (int s = 0; s < SIDE; ++s) squares[s] += at(x + i + s * LANES) * at(x + i + s * LANES);
    for (; i + LANES <= width; i += LANES) squares[0] += at(x + i) * at(x + i);
    float total = sum((squares[0] + squares[1]) + (squares[2] + squares[3]));
    for (; i < width; ++i) total += x[i] * x[i];
    float scale = 1.0f / std::sqrt(total / float(width) + eps);
    for (i = 0; i + LANES <= width; i += LANES) {
        vf scaled = at(x + i) * scale;
        N::keep(out, i, weight ? scaled * at(weight + i) : scaled);
    }
    float last[LANES];
    for (int k = i; k < width; ++k) last[k - i] = weight ? x[k] * scale * weight[k] : x[k] * scale;
    if (i < width) N::keep(out, i, last, width - i);
}

// silu(gate) · up.
[[gnu::always_inline]] inline vf swiglu(vf gate, vf up) { return gate / (vexp(-gate) + 1.0f) * up; }

// Memory for what is streamed through, on huge pages where the system gives them.
template <class T> class Buffer {
   public:
    Buffer() = default;
    explicit Buffer(size_t size) {
        constexpr size_t page = size_t(2) << 20;
        size_t bytes = std::max<size_t>(1, (size * sizeof(T) + page - 1) / page) * page;
        data_.reset(static_cast<T*>(std::aligned_alloc(page, bytes)));
        if (!data_) throw std::bad_alloc();
#if defined(__linux__)
        madvise(data_.get(), bytes, MADV_HUGEPAGE);
#endif
        std::memset(data_.get(), 0, bytes);
    }
    T* data() { return data_.get(); }
    const T* data() const { return data_.get(); }

   private:
    struct Free { void operator()(T* at) const { std::free(at); } };
    std::unique_ptr<T, Free> data_;
};

}  // namespace specdec
