// The byte rule and what it needs to know of every slot.

#pragma once

#include <cstdint>

extern "C" {

// As `specdec.sampling.SamplingRows` and `specdec.state.SlotState` keep it.
struct SpecdecSlots {
    const double *temperature, *top_p, *min_p, *presence, *frequency, *repetition;
    const double* bias;  // [slots, 256]
    const int64_t *top_k, *eos, *allow_eos_from;
    int64_t* counts;  // [slots, 256], output bytes so far
    const int64_t* seed;
    int64_t *length, *last;  // m and x_m
    const int64_t* end;
};

// Bytes [rows, width] of logits [rows, width, 256] for positions length + 1 + before + 0..width-1.
// bytes [rows, before + width - 1 or more, `stride` apart] are drafts: `before` of them count as
// written at the first place, one more at each further one.
void specdec_choose(const SpecdecSlots* slots, int rows, int width, int before, const int64_t* slot,
                    const float* logits, const int64_t* bytes, int stride, int64_t* chosen);
}

// The byte of logits [256] behind so many drafts, and how far ahead of the next best it is, if that
// is wanted: in scores as they are compared, with the noise.
namespace specdec {
int choose_draft(const SpecdecSlots& slots, int64_t slot, int before, const int64_t* drafts,
                 const float* logits, double* lead);
}
