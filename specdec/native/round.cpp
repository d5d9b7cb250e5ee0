// One round over slots, and the functions that Python calls.
//
// draft, one pass of the model, the byte rule, accept, advance: `specdec.round` says what each means.
// `specdec.native_round` owns the memory's life.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "byte_rule.h"
#include "drafter.h"
#include "stack.h"

namespace specdec {

// What a round is asked for and gives; as in `specdec.native_round`.
struct Round {
    int64_t rows;
    const int64_t *slot, *gamma;
    const uint8_t* watched;
    int64_t prefills;  // those whose logits are wanted first, then those that the drafter watches
    const int64_t *prefill_slot, *prefill_start, *prefill_size;
    const uint8_t *prefill_scored, *prefill_watched;
    const uint8_t* prompt;  // the prefills' bytes, one behind the other
    uint8_t* tokens;        // [rows, longest + 1]
    int64_t *count, *accepted;
    uint8_t* ended;
    float* logits;  // [rows' places, then scored prompt bytes, 256]
    double* seconds;  // [3]: spent drafting, in the pass, and on what follows it
};

constexpr int LONGEST = 16;  // config.LONGEST_DRAFT

class Model {
   public:
    Model(Stack& stack, const float* embedding)
        : stack_(stack), embedding_(embedding, embedding + size_t(256) * stack.width()) {}

    void run(Team& team, Drafter* drafter, const SpecdecSlots& slots, const Round& round) {
        auto began = Clock::now();
        int rows = int(round.rows);
        drafts_.assign(size_t(rows) * LONGEST, 0);
        draft(team, drafter, slots, round);
        auto drafted = Clock::now();
        tokens_.clear();
        slot_.clear();
        place_.clear();
        first_.resize(rows + 1);
        for (int r = 0; r < rows; ++r) {
            first_[r] = int(tokens_.size());
            int64_t slot = round.slot[r], m = slots.length[slot];
            for (int i = 0; i <= round.gamma[r]; ++i)
                add(slot, m + i, i ? drafts_[size_t(r) * LONGEST + i - 1] : slots.last[slot]);
        }
        int judged = first_[rows] = int(tokens_.size()), scored = judged, finished = judged;
        const uint8_t* byte = round.prompt;
        for (int p = 0; p < round.prefills; ++p) {
            for (int i = 0; i < round.prefill_size[p]; ++i)
                add(round.prefill_slot[p], round.prefill_start[p] + i, *byte++);
            if (round.prefill_scored[p]) scored = int(tokens_.size());
            if (round.prefill_scored[p] || round.prefill_watched[p]) finished = int(tokens_.size());
        }
        int all = int(tokens_.size()), width = stack_.width();
        x_.resize(std::max(x_.size(), size_t(all) * width));
        hidden_.resize(std::max(hidden_.size(), size_t(all) * width));
        chosen_.resize(std::max(chosen_.size(), size_t(judged)));
        for (int n = 0; n < all; ++n)
            std::copy_n(&embedding_[tokens_[n] * width], width, &x_[size_t(n) * width]);
        stack_.forward(team, all, finished, scored, x_.data(), slot_.data(), place_.data(),
                       place_.data(), hidden_.data(), round.logits);
        auto passed = Clock::now();
        if (judged) team.run([&](int t) { judge(t, team.size(), slots, round, judged); });
        committed_.clear();
        for (int r = 0; r < rows; ++r) accept(slots, round, r);
        int at = judged;
        for (int p = 0; p < round.prefills; ++p) {
            int size = int(round.prefill_size[p]);
            if (round.prefill_watched[p])
                committed_.push_back(
                    {round.prefill_slot[p], round.prefill_start[p], at, size, false});
            at += size;
        }
        if (drafter && !committed_.empty())
            drafter->observe(team, committed_, hidden_.data(), tokens_.data());
        round.seconds[0] = Seconds(drafted - began).count();
        round.seconds[1] = Seconds(passed - drafted).count();
        round.seconds[2] = Seconds(Clock::now() - passed).count();
    }

   private:
    using Clock = std::chrono::steady_clock;
    using Seconds = std::chrono::duration<double>;

    void add(int64_t slot, int64_t place, int64_t token) {
        slot_.push_back(slot);
        place_.push_back(place);
        tokens_.push_back(token);
    }

    void draft(Team& team, Drafter* drafter, const SpecdecSlots& slots, const Round& round) {
        wanted_.clear();
        for (int r = 0; r < round.rows; ++r)
            if (round.gamma[r]) {
                int64_t slot = round.slot[r];
                wanted_.push_back({slot, slots.last[slot], slots.length[slot], int(round.gamma[r]),
                                   &drafts_[size_t(r) * LONGEST]});
            }
        if (wanted_.empty()) return;
        std::stable_sort(wanted_.begin(), wanted_.end(),
                         [](const Wanted& a, const Wanted& b) { return a.gamma > b.gamma; });
        drafter->draft(team, slots, wanted_);
    }

    // The model's choices at the share of thread t of the `judged` places.
    void judge(int t, int threads, const SpecdecSlots& slots, const Round& round, int judged) {
        Span mine = share(judged, t, threads);
        int r = 0;
        for (int n = mine.begin; n < mine.end; ++n) {
            while (n >= first_[r + 1]) ++r;
            specdec_choose(&slots, 1, 1, n - first_[r], round.slot + r, round.logits + size_t(n) * 256,
                           &drafts_[size_t(r) * LONGEST], 0, &chosen_[n]);
        }
    }

    // Keeps drafts while they are the model's choices, up to the row's end and its last byte.
    void accept(const SpecdecSlots& slots, const Round& round, int r) {
        int64_t slot = round.slot[r], m = slots.length[slot], gamma = round.gamma[r];
        const int64_t *drafts = &drafts_[size_t(r) * LONGEST], *chosen = &chosen_[first_[r]];
        int64_t agreed = 0, room = slots.end[slot] - m - 1;
        while (agreed < gamma && drafts[agreed] == chosen[agreed]) ++agreed;
        int64_t count = std::min(agreed + 1, room);
        bool ended = false;
        for (int64_t i = 0; i < count && !ended; ++i)
            if (chosen[i] == slots.eos[slot]) {
                count = i + 1;
                ended = true;
            }
        for (int64_t i = 0; i < count; ++i) {
            round.tokens[size_t(r) * (LONGEST + 1) + i] = uint8_t(chosen[i]);
            ++slots.counts[slot * 256 + chosen[i]];
        }
        round.count[r] = count;
        round.accepted[r] = std::min(agreed, count);
        round.ended[r] = ended;
        slots.length[slot] = m + count;
        slots.last[slot] = chosen[count - 1];
        if (round.watched[r]) committed_.push_back({slot, m, first_[r], int(count), gamma > 0});
    }

    Stack& stack_;
    std::vector<float> embedding_, x_, hidden_;
    std::vector<int64_t> tokens_, slot_, place_, drafts_, chosen_;
    std::vector<int> first_;  // where each row's places begin
    std::vector<Wanted> wanted_;
    std::vector<Committed> committed_;
};

}  // namespace specdec

using namespace specdec;

extern "C" {

void* specdec_team(int threads) { return new Team(threads); }
void specdec_team_free(void* team) { delete static_cast<Team*>(team); }

// kind: 0 float32, 1 bfloat16, 2 8-bit integers and the cache in bfloat16.
void* specdec_stack(const int64_t* shape, float eps, int kind, int half_head) {
    Shape s;
    std::memcpy(&s, shape, sizeof s);
    Stack* stack;
    if (kind == 0)
        stack = new StackOf<float, float, float>(s, eps);
    else if (kind == 1 && half_head)
        stack = new StackOf<uint32_t, uint32_t, uint32_t>(s, eps);
    else if (kind == 1)
        stack = new StackOf<uint32_t, float, uint32_t>(s, eps);
    else if (half_head)
        stack = new StackOf<int8_t, uint32_t, uint32_t>(s, eps);
    else
        stack = new StackOf<int8_t, float, uint32_t>(s, eps);
    return stack;
}
void specdec_stack_free(void* stack) { delete static_cast<Stack*>(stack); }
void specdec_block(void* stack, int layer, const float* attention_norm, const float* qkv,
                   const float* output, const float* ff_norm, const float* gate_up,
                   const float* down) {
    static_cast<Stack*>(stack)->block(layer, attention_norm, qkv, output, ff_norm, gate_up, down);
}
void specdec_finish(void* stack, const float* norm, const float* head, const float* cos,
                    const float* sin) {
    static_cast<Stack*>(stack)->finish(norm, head, cos, sin);
}
void specdec_forward(void* stack, void* team, int rows, const float* x, const int64_t* slot,
                     const int64_t* position, const int64_t* index, float* hidden, float* logits) {
    static_cast<Stack*>(stack)->forward(*static_cast<Team*>(team), rows, rows, rows, x, slot, position,
                                        index, hidden, logits);
}
void specdec_copy(void* stack, int source, int target, int places) {
    static_cast<Stack*>(stack)->copy(source, target, places);
}

void* specdec_model(void* stack, const float* embedding) {
    return new Model(*static_cast<Stack*>(stack), embedding);
}
void specdec_model_free(void* model) { delete static_cast<Model*>(model); }

void* specdec_parallel(void* stack, int half, int slots, int model_width, float eps,
                       const float* embedding, const float* projection, const float* missing,
                       const float* cell_embedding, const float* gate_up, const float* down,
                       const float* following) {
    Stack& block = *static_cast<Stack*>(stack);
    CellWeights cell{cell_embedding, gate_up, down, following, eps};
    Drafter* drafter;
    if (half)
        drafter = new ParallelDrafter<uint32_t>(block, slots, model_width, embedding, projection,
                                                missing, cell);
    else
        drafter = new ParallelDrafter<float>(block, slots, model_width, embedding, projection, missing,
                                             cell);
    return drafter;
}
void* specdec_autoregressive(void* stack, int half, int slots, int model_width, int leading,
                             const float* embedding, const float* projection, const float* missing) {
    Stack& block = *static_cast<Stack*>(stack);
    Drafter* drafter;
    if (half)
        drafter = new AutoregressiveDrafter<uint32_t>(block, slots, model_width, leading, embedding,
                                                      projection, missing);
    else
        drafter = new AutoregressiveDrafter<float>(block, slots, model_width, leading, embedding,
                                                   projection, missing);
    return drafter;
}
void specdec_drafter_free(void* drafter) { delete static_cast<Drafter*>(drafter); }
void specdec_drafter_keep(void* drafter, int slot) { static_cast<Drafter*>(drafter)->keep(slot); }

void specdec_drafter_copy(void* drafter, int source, int target, int places) {
    static_cast<Drafter*>(drafter)->copy(source, target, places);
}

void specdec_round(void* model, void* drafter, void* team, const SpecdecSlots* slots,
                   const Round* round) {
    static_cast<Model*>(model)->run(*static_cast<Team*>(team), static_cast<Drafter*>(drafter), *slots,
                                    *round);
}
}
