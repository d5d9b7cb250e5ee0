// Rounds over slots, one behind the other, and the functions that Python calls.
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
#include "texts.h"

namespace specdec {

constexpr int MOST_ROUNDS = 256;  // round.MOST_ROUNDS

// What rounds are asked for and give; as in `specdec.native_round`.
struct Round {
    int64_t rows, rounds;  // rounds at most, until a row ends; one where prompts are consumed
    double span;           // seconds after which no further one begins
    double p_min;          // drafts end before the chance that all are kept falls below this
    const volatile int64_t* interrupt;  // nor once this is not 0
    const int64_t *slot, *gamma;
    const uint8_t *watched, *searched;  // known to the drafter; looked through for matches
    const int64_t* lookup;  // [rows, tiers]: drafts to take from the text instead where it matches
    int64_t prefills;  // those whose logits are wanted first, then those that the drafter watches
    const int64_t *prefill_slot, *prefill_start, *prefill_size;
    const uint8_t* prefill_scored;
    const int64_t* prefill_watched;  // places from which on the drafter is told, -1: of none
    const uint8_t* prompt;  // the prefills' bytes, one behind the other
    uint8_t* tokens;        // [rows, MOST_ROUNDS * (longest + 1)], of which `count` [rows] hold
    int64_t* count;
    uint8_t* ended;
    int64_t* done;    // [1]: rounds that were run
    int32_t* tries;   // [rows, MOST_ROUNDS], see `tried`
    float* logits;    // [rows' places, then scored prompt bytes, 256] of the last round
    double* seconds;  // [3]: spent drafting, in the pass, and on what follows it
    double* elapsed;  // [MOST_ROUNDS], of each round
    int64_t* drafting;  // [1]: rounds in which drafts were wanted
};

// A row's drafts in a round, in five bits each: how many, those accepted, how many more were wanted,
// and above them the tier that they are from, plus one.  0: a plain round.
inline int32_t tried(int64_t drafted, int64_t accepted, int64_t omitted, int tier) {
    return int32_t(drafted | accepted << 5 | omitted << 10 | int64_t(tier + 1) << 15);
}

class Model {
   public:
    Model(Stack& stack, const float* embedding)
        : stack_(stack), embedding_(embedding, embedding + size_t(256) * stack.width()) {}

    void run(Team& team, Drafter* drafter, const SpecdecSlots& slots, const Round& round) {
        std::fill_n(round.seconds, 3, 0.0);
        *round.done = *round.drafting = 0;
        for (int r = 0; r < round.rows; ++r) {
            round.count[r] = round.ended[r] = 0;
            int64_t slot = round.slot[r];
            texts_.put(slot, slots.length[slot], slots.last[slot]);
        }
        double spent = 0;
        bool whole = true;  // no row has ended
        while (whole && *round.done < round.rounds && spent < round.span && !(spent && *round.interrupt)) {
            double took = once(team, drafter, slots, round);
            spent += round.elapsed[(*round.done)++] = took;
            for (int r = 0; r < round.rows; ++r) {
                int64_t slot = round.slot[r];
                whole &= !round.ended[r] && slots.length[slot] + 1 < slots.end[slot];
            }
        }
    }

    void copy(int source, int target, int places) {
        stack_.copy(source, target, places);
        texts_.copy(source, target, places);
    }

    // Writes pairs: as `tried` has it what LONGEST drafts of a match would have given, or 0 for a
    // round without one, and how often that was so in a slot since this was last asked.
    int repeats(int slot, int32_t* pairs) {
        int32_t* out = pairs;
        texts_.take(slot, [&](int tier, int right, int times) {
            *out++ = tier < 0 ? 0 : tried(LONGEST, right, 0, tier);
            *out++ = times;
        });
        return int(out - pairs) / 2;
    }

   private:
    using Clock = std::chrono::steady_clock;
    using Seconds = std::chrono::duration<double>;

    // The seconds that one round took.
    double once(Team& team, Drafter* drafter, const SpecdecSlots& slots, const Round& round) {
        auto began = Clock::now();
        int rows = int(round.rows);
        drafts_.assign(size_t(rows) * LONGEST, 0);
        gamma_.resize(rows);
        wanted_of_.resize(rows);
        tier_.resize(rows);
        draft(team, drafter, slots, round);
        auto drafted = Clock::now();
        tokens_.clear();
        slot_.clear();
        place_.clear();
        first_.resize(rows + 1);
        for (int r = 0; r < rows; ++r) {
            first_[r] = int(tokens_.size());
            int64_t slot = round.slot[r], m = slots.length[slot];
            for (int64_t i = 0; i <= gamma_[r]; ++i)
                add(slot, m + i, i ? drafts_[size_t(r) * LONGEST + i - 1] : slots.last[slot]);
        }
        int judged = first_[rows] = int(tokens_.size()), scored = judged, finished = judged;
        const uint8_t* byte = round.prompt;
        for (int p = 0; p < round.prefills; ++p) {
            int64_t slot = round.prefill_slot[p], place = round.prefill_start[p];
            for (int i = 0; i < round.prefill_size[p]; ++i, ++place, ++byte) {
                texts_.put(slot, place, *byte);
                add(slot, place, *byte);
            }
            if (round.prefill_scored[p]) scored = int(tokens_.size());
            if (round.prefill_scored[p] || round.prefill_watched[p] >= 0) finished = int(tokens_.size());
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
        *round.drafting += std::any_of(wanted_of_.begin(), wanted_of_.end(), [](int64_t n) { return n > 0; });
        int at = judged;
        for (int p = 0; p < round.prefills; ++p) {
            int size = int(round.prefill_size[p]);
            int64_t start = round.prefill_start[p], from = round.prefill_watched[p];
            int before = from < 0 ? size : int(std::max<int64_t>(0, from - start));
            if (before < size)
                committed_.push_back({round.prefill_slot[p], start + before, at + before, size - before,
                                      false, start <= from});
            at += size;
        }
        if (drafter && !committed_.empty())
            drafter->observe(committed_, hidden_.data(), tokens_.data());
        auto ended = Clock::now();
        round.seconds[0] += Seconds(drafted - began).count();
        round.seconds[1] += Seconds(passed - drafted).count();
        round.seconds[2] += Seconds(ended - passed).count();
        return Seconds(ended - began).count();
    }

    void add(int64_t slot, int64_t place, int64_t token) {
        slot_.push_back(slot);
        place_.push_back(place);
        tokens_.push_back(token);
    }

    void draft(Team& team, Drafter* drafter, const SpecdecSlots& slots, const Round& round) {
        wanted_.clear();
        for (int r = 0; r < round.rows; ++r) {
            int64_t slot = round.slot[r], m = slots.length[slot], most = slots.end[slot] - m - 2;
            int64_t* drafts = &drafts_[size_t(r) * LONGEST];
            tier_[r] = -1;
            if (round.searched[r] && look_up(slot, m + 1, most, round.lookup + r * N_TIERS, r, drafts))
                continue;
            gamma_[r] = 0;
            wanted_of_[r] = std::max<int64_t>(0, std::min(round.gamma[r], most));
            if (wanted_of_[r])
                wanted_.push_back({slot, slots.last[slot], m, int(wanted_of_[r]), drafts, &gamma_[r]});
        }
        if (wanted_.empty()) return;
        std::stable_sort(wanted_.begin(), wanted_.end(),
                         [](const Wanted& a, const Wanted& b) { return a.gamma > b.gamma; });
        drafter->draft(team, slots, wanted_, round.p_min);
    }

    // Drafts of row r from its text of so many bytes, if that matches where any are wanted; what matches
    // is followed in any case.
    bool look_up(int64_t slot, int64_t size, int64_t most, const int64_t* wanted, int r,
                 int64_t* drafts) {
        Match match = texts_.find(slot, size);
        texts_.follow(slot, size, match);
        int64_t length = match.tier < 0 ? 0 : std::min(wanted[match.tier], most);
        if (length <= 0) return false;
        texts_.draft(slot, match.place, size, length, drafts);
        gamma_[r] = wanted_of_[r] = length;
        tier_[r] = match.tier;
        return true;
    }

    // The model's choices at the share of thread t of the `judged` places.
    void judge(int t, int threads, const SpecdecSlots& slots, const Round& round, int judged) {
        Span mine = share(judged, t, threads);
        int r = 0;
        for (int n = mine.begin; n < mine.end; ++n) {
            while (n >= first_[r + 1]) ++r;
            specdec_choose(&slots, 1, 1, n - first_[r], round.slot + r,
                           round.logits + size_t(n) * 256,
                           &drafts_[size_t(r) * LONGEST], 0, &chosen_[n]);
        }
    }

    // Keeps drafts while they are the model's choices, up to the row's end and its last byte.
    void accept(const SpecdecSlots& slots, const Round& round, int r) {
        int64_t slot = round.slot[r], m = slots.length[slot], gamma = gamma_[r];
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
        uint8_t* tokens = round.tokens + r * MOST_ROUNDS * (LONGEST + 1) + round.count[r];
        for (int64_t i = 0; i < count; ++i) {
            tokens[i] = uint8_t(chosen[i]);
            texts_.append(slot, m + 1 + i, chosen[i]);
            ++slots.counts[slot * 256 + chosen[i]];
        }
        round.tries[r * MOST_ROUNDS + *round.done] =
            tried(gamma, std::min(agreed, count), wanted_of_[r] - gamma, tier_[r]);
        round.count[r] += count;
        round.ended[r] = ended;
        slots.length[slot] = m + count;
        slots.last[slot] = chosen[count - 1];
        bool drafted = wanted_of_[r] && tier_[r] < 0;
        if (round.watched[r])
            committed_.push_back({slot, m, first_[r], int(count), drafted, m == 0});
    }

    Stack& stack_;
    std::vector<float> embedding_, x_, hidden_;
    Texts texts_;
    std::vector<int64_t> tokens_, slot_, place_, drafts_, chosen_;
    std::vector<int64_t> gamma_, wanted_of_;  // of each row: drafts, and how many at most
    std::vector<int> tier_;   // of the text that drafts are from, or -1
    std::vector<int> first_;  // where each row's places begin
    std::vector<Wanted> wanted_;
    std::vector<Committed> committed_;
};

}  // namespace specdec

using namespace specdec;

extern "C" {

void* specdec_team(int threads) { return new Team(threads); }
void specdec_team_free(void* team) { delete static_cast<Team*>(team); }

// kind: 0 float32, 1 bfloat16, 2 8-bit integers and the cache as for bfloat16.
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
// What the cache of a key-value head takes for a text of so many places.
int64_t specdec_text_bytes(int kind, int places, int head) {
    return int64_t(kind ? Cache<uint32_t>::bytes(places, head) : Cache<float>::bytes(places, head));
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

void* specdec_model(void* stack, const float* embedding) {
    return new Model(*static_cast<Stack*>(stack), embedding);
}
void specdec_model_free(void* model) { delete static_cast<Model*>(model); }
void specdec_model_copy(void* model, int source, int target, int places) {
    static_cast<Model*>(model)->copy(source, target, places);
}

int specdec_model_repeats(void* model, int slot, int32_t* pairs) {
    return static_cast<Model*>(model)->repeats(slot, pairs);
}

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
void specdec_drafter_copy(void* drafter, int source, int target) {
    static_cast<Drafter*>(drafter)->copy(source, target);
}

void specdec_round(void* model, void* drafter, void* team, const SpecdecSlots* slots,
                   const Round* round) {
    static_cast<Model*>(model)->run(*static_cast<Team*>(team), static_cast<Drafter*>(drafter), *slots,
                                    *round);
}
}
