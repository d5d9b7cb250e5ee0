// Uniforms of the noise, word for word those of `specdec.noise`: Philox 4×32 with ten rounds (Salmon et
// al. 2011).  Their logarithms are the caller's.

#include <cstdint>

namespace {

constexpr int PAIRS = 128;  // of bytes; a block of four words makes two uniforms

// All pairs of one position side by side, so that the compiler takes several in one instruction.
void uniforms(uint64_t seed, uint64_t position, double* out) {
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
    auto uniform = [](uint32_t high, uint32_t low) {
        return (double(int64_t(uint64_t(high) << 21 | low >> 11)) + 0.5) * 0x1p-53;
    };
    for (int i = 0; i < PAIRS; ++i) {
        out[2 * i] = uniform(c0[i], c1[i]);
        out[2 * i + 1] = uniform(c2[i], c3[i]);
    }
}

}  // namespace

// out [rows, count, 256] for seeds [rows] at positions from start [rows] on.
extern "C" void specdec_uniforms(int rows, int count, const int64_t* seed, const int64_t* start,
                                 double* out) {
    for (int r = 0; r < rows; ++r)
        for (int i = 0; i < count; ++i, out += 2 * PAIRS)
            uniforms(uint64_t(seed[r]), uint64_t(start[r]) + uint64_t(i), out);
}
