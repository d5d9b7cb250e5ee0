// The recurrent cell of a parallel prophet.

#pragma once

#include <vector>

#include "linear.h"
#include "team.h"

namespace specdec {

// What a cell is made of, as `specdec.cell` names it; rows of `following` say what follows a byte.
struct CellWeights {
    const float *embedding, *gate_up, *down, *following;
    float eps;
};

// z ← norm(n + down(silu(gate n) · up n)), n = norm(z + E(byte)); the threads of a team together.
template <class W> class Cell {
   public:
    Cell(int width, const CellWeights& weights)
        : width_(width), eps_(weights.eps), ld_(padded(width)),
          inner_ld_(padded(INNER * width) / Multiplied<W>::EACH),
          embedding_(weights.embedding, weights.embedding + size_t(256) * width),
          following_(weights.following, weights.following + 256 * 256) {
        gate_up_.pack(weights.gate_up, INNER * width, width);
        down_.pack(weights.down, width, INNER * width);
    }
    const float* following(int64_t byte) const { return &following_[byte * 256]; }

    void grow(int rows) {
        seen_.resize(size_t(rows) * ld_);
        gated_.resize(size_t(rows) * inner_ld_);
    }

    // One step of states [rows, P] with a byte each.
    void step(Team& team, int t, int rows, float* states, const int64_t* bytes) {
        Span mine = share(rows, t, team.size());
        for (int r = mine.begin; r < mine.end; ++r) {
            float* seen = &seen_[size_t(r) * ld_];
            const float *state = states + size_t(r) * width_, *byte = &embedding_[bytes[r] * width_];
            for (int i = 0; i < width_; ++i) seen[i] = state[i] + byte[i];
            normalize(seen, nullptr, eps_, width_, seen);
        }
        team.barrier();
        gate_up_.run(seen_.data(), ld_, rows, gated_.data(), inner_ld_,
                     share(gate_up_.blocks(), t, team.size()));
        team.barrier();
        down_.template run<Into::ADDED>(gated_.data(), inner_ld_, rows, seen_.data(), ld_,
                                        {share(down_.blocks(), t, team.size())});
        team.barrier();
        for (int r = mine.begin; r < mine.end; ++r)
            normalize(&seen_[size_t(r) * ld_], nullptr, eps_, width_, states + size_t(r) * width_);
        team.barrier();
    }

   private:
    static constexpr int INNER = 2;  // specdec.cell.INNER

    int width_;
    float eps_;
    int ld_, inner_ld_;
    std::vector<float> embedding_, following_, seen_;
    std::vector<typename Linear<W>::Kept> gated_;
    Gated<W> gate_up_;
    Linear<W> down_;
};

}  // namespace specdec
