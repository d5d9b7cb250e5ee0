// The byte rule over rows of logits: byte = argmax(process(logits) + noise), as
// `specdec.sampling.choose` states it, a row at a time, in double precision.
//
// Knows nothing of the model; which rows are drafts' and which are to be judged is the caller's.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>

#include "byte_rule.h"
#include "noise.h"

using specdec::Noise;

namespace {

constexpr int BYTES = 256;
constexpr int LANES = 8;

typedef double vd __attribute__((vector_size(64), aligned(8)));

double largest(const double* scores) {
    vd top = *reinterpret_cast<const vd*>(scores);
    for (int i = LANES; i < BYTES; i += LANES) {
        vd part = *reinterpret_cast<const vd*>(scores + i);
        top = part > top ? part : top;
    }
    double best = top[0];
    for (int i = 1; i < LANES; ++i) best = std::max(best, top[i]);
    return best;
}

class Row {
   public:
    Row(const SpecdecSlots& slots, int64_t slot) : s_(slots), slot_(slot) {
        greedy_ = s_.temperature[slot] == 0;
        adjusted_ = s_.presence[slot] != 0 || s_.frequency[slot] != 0 || s_.repetition[slot] != 1;
        const double* bias = s_.bias + slot * BYTES;
        biased_ = std::any_of(bias, bias + BYTES, [](double b) { return b != 0; });
        if (adjusted_) std::copy_n(s_.counts + slot * BYTES, BYTES, counts_);
    }

    void written(int64_t byte) {
        if (adjusted_) ++counts_[byte];
    }

    // `lead`, if wanted: how far the best score is ahead of the next.
    int choose(const float* logits, int64_t position, double* lead = nullptr) {
        double scores[BYTES];
        for (int i = 0; i < BYTES; ++i) scores[i] = logits[i];
        if (adjusted_) penalize(scores);
        if (biased_)
            for (int i = 0; i < BYTES; ++i) scores[i] += s_.bias[slot_ * BYTES + i];
        int64_t eos = s_.eos[slot_];
        if (eos >= 0 && position < s_.allow_eos_from[slot_]) scores[eos] = -INFINITY;
        if (!greedy_) {
            double top = largest(scores);
            for (double& score : scores) score = (score - top) / s_.temperature[slot_];
            filter(scores);
            return perturbed_best(scores, Noise(uint64_t(s_.seed[slot_]), uint64_t(position)), lead);
        }
        // the first of equals; of no numbers at all the last
        int best = int(std::find(scores, scores + BYTES - 1, largest(scores)) - scores);
        if (lead) {
            double top = scores[best];
            scores[best] = -INFINITY;
            *lead = top - largest(scores);
        }
        return best;
    }

   private:
    // The first byte of those whose score and noise together are largest.
    static int perturbed_best(const double* scores, const Noise& noise, double* lead) {
        float bounds[BYTES];
        double hopes[BYTES];
        noise.bounds(bounds);
        for (int i = 0; i < BYTES; ++i) hopes[i] = scores[i] + double(bounds[i]);
        int best = int(std::find(hopes, hopes + BYTES - 1, largest(hopes)) - hopes);
        double most = scores[best] + noise.at(best);
        for (int i = 0; i < BYTES; ++i) {
            if (hopes[i] < most || i == best) continue;
            double sum = scores[i] + noise.at(i);
            if (sum > most || (sum == most && i < best)) most = sum, best = i;
        }
        if (lead) {
            hopes[best] = -INFINITY;
            int next = int(std::find(hopes, hopes + BYTES - 1, largest(hopes)) - hopes);
            double second = next == best ? -INFINITY : scores[next] + noise.at(next);
            for (int i = 0; i < BYTES; ++i)
                if (hopes[i] > second) second = std::max(second, scores[i] + noise.at(i));
            *lead = most - second;
        }
        return best;
    }

    void penalize(double* scores) const {
        double repetition = s_.repetition[slot_];
        for (int i = 0; i < BYTES; ++i) {
            if (!counts_[i]) continue;
            double score = scores[i] > 0 ? scores[i] / repetition : scores[i] * repetition;
            score -= s_.presence[slot_];
            scores[i] = score - s_.frequency[slot_] * double(counts_[i]);
        }
    }

    // top_k, then top_p of what is left, then min_p
    void filter(double* scores) const {
        int64_t k = s_.top_k[slot_];
        double top_p = s_.top_p[slot_], min_p = s_.min_p[slot_];
        if (k <= 0 && top_p >= 1 && min_p <= 0) return;
        if (k > 0) {
            double ordered[BYTES];
            std::copy_n(scores, BYTES, ordered);
            std::nth_element(ordered, ordered + k - 1, ordered + BYTES, std::greater<double>());
            double threshold = ordered[k - 1];
            for (int i = 0; i < BYTES; ++i)
                if (scores[i] < threshold) scores[i] = -INFINITY;
        }
        if (top_p < 1) {
            int order[BYTES];
            std::iota(order, order + BYTES, 0);
            std::stable_sort(order, order + BYTES,
                             [scores](int a, int b) { return scores[a] > scores[b]; });
            double weight[BYTES], total = 0, before = 0;
            for (int i = 0; i < BYTES; ++i) total += weight[i] = std::exp(scores[order[i]]);
            for (int i = 0; i < BYTES; ++i) {
                if (i && before >= top_p * total) scores[order[i]] = -INFINITY;
                before += weight[i];
            }
        }
        if (min_p > 0) {
            double floor = std::log(min_p);  // the likeliest is at 0
            for (int i = 0; i < BYTES; ++i)
                if (scores[i] < floor) scores[i] = -INFINITY;
        }
    }

    const SpecdecSlots& s_;
    int64_t slot_;
    bool greedy_, adjusted_, biased_;
    int64_t counts_[BYTES];
};

}  // namespace

int specdec::choose_draft(const SpecdecSlots& slots, int64_t slot, int before, const int64_t* drafts,
                          const float* logits, double* lead) {
    Row row(slots, slot);
    for (int i = 0; i < before; ++i) row.written(drafts[i]);
    return row.choose(logits, slots.length[slot] + 1 + before, lead);
}

extern "C" {

void specdec_choose(const SpecdecSlots* slots, int rows, int width, int before, const int64_t* slot,
                    const float* logits, const int64_t* bytes, int stride, int64_t* chosen) {
    for (int r = 0; r < rows; ++r) {
        Row row(*slots, slot[r]);
        const int64_t* drafts = bytes + int64_t(r) * stride;
        for (int i = 0; i < before; ++i) row.written(drafts[i]);
        int64_t position = slots->length[slot[r]] + 1 + before;
        for (int w = 0; w < width; ++w) {
            if (w) row.written(drafts[before + w - 1]);
            chosen[r * width + w] =
                row.choose(logits + (int64_t(r) * width + w) * BYTES, position + w);
        }
    }
}
}
