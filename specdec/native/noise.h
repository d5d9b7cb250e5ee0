// Gumbel noise of one position, bit for bit that of `specdec.noise`, and no more of it than is looked at:
// the uniforms of all bytes are cheap (Philox 4×32 with ten rounds; Salmon et al. 2011), their
// logarithms are not.

#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace specdec {

class Noise {
   public:
    static constexpr int BYTES = 256;

    Noise(uint64_t seed, uint64_t position) {
        uint32_t c0[PAIRS], c1[PAIRS], c2[PAIRS], c3[PAIRS];
        for (int i = 0; i < PAIRS; ++i) {
            c0[i] = uint32_t(i);
            c1[i] = uint32_t(position);
            c2[i] = uint32_t(position >> 32);
            c3[i] = 0;
        }
        uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
        for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9, k1 += 0xBB67AE85)
            for (int i = 0; i < PAIRS; ++i) {
                uint64_t first = uint64_t(c0[i]) * 0xD2511F53, second = uint64_t(c2[i]) * 0xCD9E8D57;
                c0[i] = uint32_t(second >> 32) ^ c1[i] ^ k0;
                c1[i] = uint32_t(second);
                c2[i] = uint32_t(first >> 32) ^ c3[i] ^ k1;
                c3[i] = uint32_t(first);
            }
        for (int i = 0; i < PAIRS; ++i) {
            high_[2 * i] = c0[i], low_[2 * i] = c1[i];
            high_[2 * i + 1] = c2[i], low_[2 * i + 1] = c3[i];
        }
    }

    double at(int byte) const {
        int64_t top = int64_t(uint64_t(high_[byte]) << 20 | low_[byte] >> 12);
        double rest = 1 - (double(top) + 0.5) * 0x1p-52;
        return -logarithm(-logarithm(rest));
    }

    // No less than the noise [256]: it is below the uniform's own -log, and that is a straight line
    // between powers of two at most.
    void bounds(float* out) const {
        for (int i = 0; i < BYTES; ++i) {
            float uniform = float(int32_t(high_[i] >> 8));  // of which 24 bits are exact
            float doublings = float(std::bit_cast<int32_t>(uniform)) * 0x1p-23f - 127;
            out[i] = (24 - doublings) * 0.693148f + 1e-4f;
        }
    }

   private:
    static constexpr int PAIRS = 128;  // of bytes; a block of four words makes two uniforms

    // A product that is rounded before anything is added to it, whatever the compiler would fuse.
    static double rounded(double product) {
        asm("" : "+r"(product));
        return product;
    }

    static double logarithm(double x) {
        constexpr int TERMS = 11;
        int exponent;
        double mantissa = std::frexp(x, &exponent);
        if (mantissa < 0.70703125) mantissa *= 2, --exponent;
        double s = (mantissa - 1) / (mantissa + 1), square = s * s, series = 2.0 / (2 * TERMS - 1);
        for (int term = TERMS - 2; term; --term) series = rounded(series * square) + 2.0 / (2 * term + 1);
        series = rounded(series * square * s) + 2 * s;
        return rounded(exponent * 0.6931471805599453) + series;
    }

    uint32_t high_[BYTES], low_[BYTES];
};

}  // namespace specdec
