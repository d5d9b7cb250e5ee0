// The recurrent cell of a parallel prophet.

#pragma once

#include <vector>

#include "linear.h"
#include "team.h"

namespace specdec {

// The gated recurrent unit of a parallel prophet: z ← GRU(z, byte).  What the byte contributes is a
// row of a table, [256][3·P]: reset, update and candidate; another table says what follows it.
template <class W> class Cell {
   public:
    Cell(int width, const float* recurrent, const float* gates, const float* transition)
        : width_(width), gates_(gates, gates + size_t(256) * 3 * width),
          transition_(transition, transition + 256 * 256) {
        recurrent_.pack(recurrent, 3 * width, width);
    }
    int products_ld() const { return padded(3 * width_); }
    const float* following(int64_t byte) const { return &transition_[byte * 256]; }

    // One step of states [rows, P] with a byte each; the threads of a team together.
    void step(Team& team, int t, int rows, float* states, const int64_t* bytes,
              float* products) const {
        int ld = products_ld();
        Span out = share(recurrent_.blocks(), t, team.size());
        recurrent_.template run<false>(states, width_, rows, products, ld, out.begin, out.end);
        team.barrier();
        Span mine = share(rows, t, team.size());
        for (int r = mine.begin; r < mine.end; ++r)
            for (int i = 0; i < width_; i += LANES)
                advance(states + size_t(r) * width_, products + size_t(r) * ld,
                        &gates_[bytes[r] * 3 * width_], i);
        team.barrier();
    }

   private:
    static vf sigmoid(vf x) { return 1.0f / (vexp(-x) + 1.0f); }

    void advance(float* state, const float* by, const float* in, int i) const {
        int count = std::min(LANES, width_ - i);
        vf part[7] = {};  // the last numbers of a width that is no multiple of the vectors'
        const float* from[7] = {state, by, by + width_, by + 2 * width_, in, in + width_, in + 2 * width_};
        for (int k = 0; k < 7; ++k) std::memcpy(&part[k], from[k] + i, count * sizeof(float));
        vf update = sigmoid(part[5] + part[2]);
        vf inner = part[6] + sigmoid(part[4] + part[1]) * part[3];
        vf fresh = 1.0f - 2.0f / (vexp(inner + inner) + 1.0f);  // tanh
        vf next = update * part[0] + (1.0f - update) * fresh;
        std::memcpy(state + i, &next, count * sizeof(float));
    }

    int width_;
    std::vector<float> gates_, transition_;
    Linear<W> recurrent_;
};

}  // namespace specdec
