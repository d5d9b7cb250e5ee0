// What drafts: the prophets as a round needs them.
//
// c rows, γ drafts, D width of the model, P width of the prophet, s leading states.

#pragma once

#include <cmath>
#include <memory>
#include <vector>

#include "byte_rule.h"
#include "cell.h"
#include "stack.h"

namespace specdec {

// Rows of a pass that were committed: `count` of them from `at` on belong to `slot`, at places from
// `start` on.  The first needs no telling where the prophet has drafted from it; where a text `begins`
// with it the prophet forgets what it knew of the slot.
struct Committed {
    int64_t slot, start;
    int at, count;
    bool drafted, begins;
};

// A row to draft up to γ bytes for: its last byte and that byte's place.  `made` counts the drafts
// that are to be verified, and `chance` says how likely all so far are right.
struct Wanted {
    int64_t slot, last, place;
    int gamma;
    int64_t *drafts, *made;
    double chance = 1;
};

// How likely a draft is the model's own choice.  Both choose with the same noise, so they differ only
// where their logits differ by more than the prophet's choice leads by.  As measured with the shipped
// prophet, alike on code and prose, at temperatures 0 and 1, at the first draft and the last.
inline double chance_of(double lead) { return 1 - 0.7 * std::exp(-lead / 1.1); }

class Drafter {
   public:
    virtual ~Drafter() = default;
    // The model's states hidden [N, D] of tokens [N].
    virtual void observe(const std::vector<Committed>& rows, const float* hidden,
                         const int64_t* tokens) = 0;
    // Rows in falling order of γ.  Each ends before a draft with which the chance that all are right
    // falls below `p_min`.
    virtual void draft(Team& team, const SpecdecSlots& slots, std::vector<Wanted>& rows,
                       double p_min) = 0;
    // What a slot knows now is what `copy` will give to others, or to itself, later on.
    virtual void keep(int slot) = 0;
    virtual void copy(int source, int target) = 0;

   protected:
    // Draft `step` of those of rows [0, active) that go on, each with logits [256].
    static void pick(Team& team, int t, const SpecdecSlots& slots, std::vector<Wanted>& rows,
                     int active, int step, const float* logits, double p_min) {
        Span mine = share(active, t, team.size());
        for (int r = mine.begin; r < mine.end; ++r) {
            Wanted& row = rows[r];
            if (!goes_on(row, step)) continue;
            double lead;
            row.drafts[step] = choose_draft(slots, row.slot, step, row.drafts, logits + size_t(r) * 256,
                                            p_min > 0 ? &lead : nullptr);
            if (p_min > 0) row.chance *= chance_of(lead);
            *row.made += row.chance >= p_min;
        }
    }
    static bool goes_on(const Wanted& row, int step) { return row.gamma > step && *row.made == step; }
    // The first so many rows hold all that go on.  Those among them that do not are stepped beside them,
    // with drafts that nobody looks at.
    static int active_at(const std::vector<Wanted>& rows, int step) {
        int active = int(rows.size());
        while (active && !goes_on(rows[active - 1], step)) --active;
        return active;
    }
};

// Weights that both kinds have: byte embeddings [256, P], a projection of states and what stands in
// for them [s, P] before the first byte.
template <class W> class Inputs {
   public:
    Inputs(int model_width, int width, const float* embedding, const float* projection,
           const float* missing, int leading)
        : model_width_(model_width), width_(width),
          embedding_(embedding, embedding + size_t(256) * width),
          missing_(missing, missing + size_t(leading) * width) {
        projection_.pack(projection, width, model_width);
    }
    int ld() const { return padded(width_); }

    // Projections [rows, ld] of states [rows, D]; the threads of a team together.
    void project(Team& team, int t, int rows, const float* states, float* out) const {
        projection_.template run<Into::WRITTEN>(states, model_width_, rows, out, ld(),
                                                {share(projection_.blocks(), t, team.size())});
    }
    const float* missing(int i) const { return &missing_[size_t(i) * width_]; }
    const float* embedding(int64_t byte) const { return &embedding_[byte * width_]; }

   private:
    int model_width_, width_;
    std::vector<float> embedding_, missing_;
    Linear<W> projection_;
};

// Committed places are written into the block's cache by the pass that drafts: a row that decodes
// plainly pays a copy of its state for them.  Where more of them wait than `MEMORY`, they and all
// before are forgotten but for the last, as if the text began with those.
template <class W> class ParallelDrafter : public Drafter {
   public:
    ParallelDrafter(Stack& stack, int slots, int model_width, const float* embedding,
                    const float* projection, const float* missing, const CellWeights& cell)
        : stack_(stack), model_width_(model_width), width_(stack.width()),
          inputs_(model_width, width_, embedding, projection, missing, 1),
          cell_(width_, cell), known_(slots, Known(model_width)), kept_(known_) {}

    void observe(const std::vector<Committed>& rows, const float* hidden,
                 const int64_t* tokens) override {
        for (const Committed& row : rows) {
            Known& known = known_[row.slot];
            if (row.begins) known.begin(row.start);
            for (int i = row.drafted; i < row.count; ++i)
                known.add(i ? hidden + size_t(row.at + i - 1) * model_width_ : known.state.data(),
                          row.start + i, tokens[row.at + i]);
            std::copy_n(hidden + size_t(row.at + row.count - 1) * model_width_, model_width_,
                        known.state.data());
        }
    }

    void draft(Team& team, const SpecdecSlots& slots, std::vector<Wanted>& rows,
               double p_min) override {
        int count = int(rows.size()), total = count;
        for (const Wanted& row : rows) {
            Known& known = known_[row.slot];
            if (row.place == 0) known.begin(0);  // of its one byte nothing was told yet
            total += known.waiting;
        }
        grow(total);
        for (int r = 0; r < count; ++r) {
            const Known& known = known_[rows[r].slot];
            fill(r, rows[r].slot, known.state.data(), rows[r].place - known.origin, rows[r].last);
        }
        int n = count;
        for (const Wanted& row : rows) {
            Known& known = known_[row.slot];
            for (int64_t place = known.start; known.waiting; --known.waiting, ++place)
                fill(n++, row.slot, known.before(place), place - known.origin, known.byte(place));
        }
        team.run([&](int t) { inputs(team, t, total); });
        stack_.forward(team, total, count, count, x_.data(), slot_.data(), place_.data(),
                       place_.data(), y_.data(), logits_.data());
        team.run([&](int t) {
            int threads = team.size();
            int active = count;
            for (int step = 0; active; ++step) {
                if (step) {
                    cell_.step(team, t, active, y_.data(), bytes_.data());
                    stack_.score(t, threads, active, y_.data(), width_, logits_.data());
                    team.barrier();
                }
                Span mine = share(active, t, threads);
                for (int r = mine.begin; r < mine.end; ++r) {
                    const float* following = cell_.following(bytes_[r]);
                    for (int i = 0; i < 256; ++i) logits_[size_t(r) * 256 + i] += following[i];
                }
                pick(team, t, slots, rows, active, step, logits_.data(), p_min);
                for (int r = mine.begin; r < mine.end; ++r) bytes_[r] = rows[r].drafts[step];
                team.barrier();
                // seen by all before any goes on to pick: there are barriers within the cell's step
                active = active_at(rows, step + 1);
            }
        });
    }

    void keep(int slot) override { kept_[slot] = known_[slot]; }

    // What is kept of a prompt still waits: the cache holds nothing of it.
    void copy(int source, int target) override {
        if (source != target) kept_[target] = kept_[source];
        known_[target] = kept_[source];
    }

   private:
    static constexpr int MEMORY = 32;  // places; more let the prophet guess no better

    // Of a slot: where the text begins that the prophet knows of, and its last places that wait to be
    // written into the cache, with the model's states before them; the state at the last one.
    struct Known {
        explicit Known(int width) : state(width), states(size_t(width) * MEMORY), bytes(MEMORY) {}

        // What the slot held before is another text's.
        void begin(int64_t place) {
            origin = place;
            waiting = 0;
        }
        void add(const float* before, int64_t place, int64_t byte) {
            if (!waiting) start = place;
            if (waiting == MEMORY) {
                origin = ++start;
                --waiting;
            }
            std::copy_n(before, state.size(), &states[place % MEMORY * state.size()]);
            bytes[place % MEMORY] = byte;
            ++waiting;
        }
        const float* before(int64_t place) const { return &states[place % MEMORY * state.size()]; }
        int64_t byte(int64_t place) const { return bytes[place % MEMORY]; }

        int64_t origin = 0, start = 0;  // `waiting` places wait from `start` on
        int waiting = 0;
        std::vector<float> state, states;
        std::vector<int64_t> bytes;
    };

    void fill(int row, int64_t slot, const float* before, int64_t place, int64_t byte) {
        std::copy_n(before, model_width_, &before_[size_t(row) * model_width_]);
        slot_[row] = slot;
        place_[row] = place;
        bytes_[row] = byte;
    }

    // The block's inputs x [rows, P] from states before and bytes.
    void inputs(Team& team, int t, int rows) {
        inputs_.project(team, t, rows, before_.data(), products_.data());
        team.barrier();
        Span mine = share(rows, t, team.size());
        for (int r = mine.begin; r < mine.end; ++r) {
            const float* known = place_[r] ? &products_[size_t(r) * inputs_.ld()] : inputs_.missing(0);
            const float* embedded = inputs_.embedding(bytes_[r]);
            float* x = &x_[size_t(r) * width_];
            for (int i = 0; i < width_; ++i) x[i] = known[i] + embedded[i];
        }
    }

    void grow(int rows) {
        if (rows <= int(slot_.size())) return;
        before_.resize(size_t(rows) * model_width_);
        x_.resize(size_t(rows) * width_);
        y_.resize(size_t(rows) * width_);
        logits_.resize(size_t(rows) * 256);
        products_.resize(size_t(rows) * inputs_.ld());
        cell_.grow(rows);
        slot_.resize(rows);
        place_.resize(rows);
        bytes_.resize(rows);
    }

    Stack& stack_;
    int model_width_, width_;
    Inputs<W> inputs_;
    Cell<W> cell_;
    std::vector<Known> known_, kept_;
    std::vector<float> before_, x_, y_, logits_, products_;
    std::vector<int64_t> slot_, place_, bytes_;
};

template <class W> class AutoregressiveDrafter : public Drafter {
   public:
    AutoregressiveDrafter(Stack& stack, int slots, int model_width, int leading,
                          const float* embedding, const float* projection, const float* missing)
        : stack_(stack), model_width_(model_width), width_(stack.width()), leading_(leading),
          inputs_(model_width, width_, embedding, projection, missing, leading),
          states_(size_t(slots) * leading * model_width, 0.0f), kept_(states_) {}

    void observe(const std::vector<Committed>& rows, const float* hidden,
                 const int64_t*) override {
        for (const Committed& row : rows) {
            int fresh = std::min(row.count, leading_);
            float* ring = ring_of(row.slot);
            std::copy(ring + size_t(fresh) * model_width_, ring + size_t(leading_) * model_width_, ring);
            std::copy_n(hidden + size_t(row.at + row.count - fresh) * model_width_,
                        size_t(fresh) * model_width_, ring + size_t(leading_ - fresh) * model_width_);
        }
    }

    // Every place is written again before it is seen: nothing is left between rounds.
    void draft(Team& team, const SpecdecSlots& slots, std::vector<Wanted>& rows,
               double p_min) override {
        int count = int(rows.size()), each = leading_ + 1;
        grow(count * each);
        for (int r = 0; r < count; ++r)
            std::copy_n(ring_of(rows[r].slot), size_t(leading_) * model_width_,
                        &before_[size_t(r) * leading_ * model_width_]);
        team.run([&](int t) {
            inputs_.project(team, t, count * leading_, before_.data(), products_.data());
        });
        // the first `count` rows are the last bytes, which are scored; the states stand behind
        for (int r = 0; r < count; ++r) {
            fill(r, rows[r].slot, leading_, inputs_.embedding(rows[r].last));
            for (int i = 0; i < leading_; ++i) {
                int row = r * leading_ + i;
                bool present = rows[r].place - leading_ + i >= 0;
                fill(count + row, rows[r].slot, i,
                     present ? &products_[size_t(row) * inputs_.ld()] : inputs_.missing(i));
            }
        }
        for (int step = 0; int active = active_at(rows, step); ++step) {
            int all = step ? active : count * each;
            if (step)
                for (int r = 0; r < active; ++r)
                    fill(r, rows[r].slot, leading_ + step, inputs_.embedding(rows[r].drafts[step - 1]));
            stack_.forward(team, all, active, active, x_.data(), slot_.data(), place_.data(),
                           place_.data(), y_.data(), logits_.data());
            team.run(
                [&](int t) { pick(team, t, slots, rows, active, step, logits_.data(), p_min); });
        }
    }

    void keep(int slot) override { std::copy_n(ring_of(slot), ring_size(), kept_of(slot)); }

    void copy(int source, int target) override {
        if (source != target) std::copy_n(kept_of(source), ring_size(), kept_of(target));
        std::copy_n(kept_of(source), ring_size(), ring_of(target));
    }

   private:
    size_t ring_size() const { return size_t(leading_) * model_width_; }
    float* ring_of(int64_t slot) { return &states_[slot * ring_size()]; }
    float* kept_of(int64_t slot) { return &kept_[slot * ring_size()]; }

    void fill(int row, int64_t slot, int place, const float* x) {
        slot_[row] = slot;
        place_[row] = place;
        std::copy_n(x, width_, &x_[size_t(row) * width_]);
    }

    void grow(int rows) {
        if (rows <= int(slot_.size())) return;
        before_.resize(size_t(rows) * model_width_);
        products_.resize(size_t(rows) * inputs_.ld());
        x_.resize(size_t(rows) * width_);
        y_.resize(size_t(rows) * width_);
        logits_.resize(size_t(rows) * 256);
        slot_.resize(rows);
        place_.resize(rows);
    }

    Stack& stack_;
    int model_width_, width_, leading_;
    Inputs<W> inputs_;
    std::vector<float> states_, kept_;  // the model's last s, oldest first
    std::vector<float> before_, products_, x_, y_, logits_;
    std::vector<int64_t> slot_, place_;
};

}  // namespace specdec
