// Llama blocks, final norm and head over slots' caches: one pass over packed rows.
//
// Every output of a linear is one chain of fused multiply-adds over its inputs in order, or a sum of
// integers, and every query's attention walks its own places in order: a row's bits cannot depend on
// what shares the pass, on the tiling or on the number of threads.  What weights, inputs and cache are
// rounded to say products.h and cache.h; what is between them is float32.
//
// N rows, D width, H query heads, K key-value heads, d head width, F feed-forward width, C places.
// Knows no bytes' meaning and no sampling.

#pragma once

#include <vector>

#include "cache.h"
#include "linear.h"
#include "team.h"

namespace specdec {

constexpr int FEW = 16;  // rows that every thread norms for itself, instead of waiting for others

struct Shape {
    int64_t layers, width, heads, kv_heads, head, feed_forward, slots, places, vocabulary;
};

class Stack {
   public:
    virtual ~Stack() = default;
    virtual void block(int layer, const float* attention_norm, const float* qkv, const float* output,
                       const float* ff_norm, const float* gate_up, const float* down) = 0;
    virtual void finish(const float* norm, const float* head, const float* cos, const float* sin) = 0;
    // Hidden states of the first `finished` rows and logits of the first `scored` of those; of the
    // rows behind only keys and values are wanted.
    virtual void forward(Team& team, int rows, int finished, int scored, const float* x,
                         const int64_t* slot, const int64_t* position, const int64_t* index,
                         float* hidden, float* logits) = 0;
    // Logits of normed rows, the share of thread t.
    virtual void score(int t, int threads, int rows, const float* x, int ldx, float* logits) const = 0;
    virtual void copy(int source, int target, int places) = 0;
    virtual int width() const = 0;
};

// W holds weights, V the head, C the cache: float32, 8-bit integers (weights alone), or for bfloat16 what
// it is multiplied as.
template <class W, class V, class C> class StackOf : public Stack {
   public:
    StackOf(const Shape& s, float eps) : s_(s), eps_(eps), blocks_(s.layers) {
        qkv_ld_ = padded(int((s.heads + 2 * s.kv_heads) * s.head));
        width_ld_ = padded(int(s.width));
        mixed_ld_ = int(s.heads * s.head) / K::EACH;
        ff_ld_ = padded(int(s.feed_forward)) / K::EACH;
        cache_ = Cache<C>(s.layers * s.slots * s.kv_heads, int(s.places), int(s.head));
    }

    void block(int layer, const float* attention_norm, const float* qkv, const float* output,
               const float* ff_norm, const float* gate_up, const float* down) override {
        Block& b = blocks_[layer];
        int width = int(s_.width), ff = int(s_.feed_forward);
        b.attention_norm.assign(attention_norm, attention_norm + width);
        b.ff_norm.assign(ff_norm, ff_norm + width);
        b.qkv.pack(qkv, int((s_.heads + 2 * s_.kv_heads) * s_.head), width);
        b.output.pack(output, width, int(s_.heads * s_.head));
        b.gate_up.pack(gate_up, ff, width);
        b.down.pack(down, width, ff);
    }

    void finish(const float* norm, const float* head, const float* cos, const float* sin) override {
        norm_.assign(norm, norm + s_.width);
        head_.pack(head, int(s_.vocabulary), int(s_.width));
        cos_.assign(cos, cos + s_.places * s_.head);
        sin_.assign(sin, sin + s_.places * s_.head);
    }

    int width() const override { return int(s_.width); }

    void copy(int source, int target, int places) override {
        for (int layer = 0; layer < s_.layers; ++layer)
            for (int h = 0; h < s_.kv_heads; ++h)
                cache_.copy(text(layer, source, h), text(layer, target, h), places);
    }

    void forward(Team& team, int rows, int finished, int scored, const float* input,
                 const int64_t* slot, const int64_t* position, const int64_t* index, float* hidden,
                 float* logits) override {
        reserve(rows, team.size());
        team.run([&](int t) {
            pass(team, t, rows, finished, scored, input, slot, position, index, hidden, logits);
        });
    }

    void score(int t, int threads, int rows, const float* x, int ldx, float* logits) const override {
        head_.template run<Into::WRITTEN>(x, ldx, rows, logits, int(s_.vocabulary),
                                          {share(head_.blocks(), t, threads)});
    }

   private:
    typedef Multiplied<W> K;
    typedef typename K::Kept Kept;

    // Normed rows, and those that a thread norms for itself alone.
    template <class N> struct Normed {
        std::vector<typename N::Kept> all;
        std::vector<std::vector<typename N::Kept>> own;

        void reserve(int rows, int threads, int ld) {
            all.assign(size_t(rows) * ld / N::EACH, 0);
            own.assign(threads, {});
            for (auto& some : own) some.assign(size_t(FEW) * ld / N::EACH, 0);
        }
    };
    struct Block {
        std::vector<float> attention_norm, ff_norm;
        Linear<W> qkv, output, down;
        Gated<W> gate_up;
    };

    int64_t text(int layer, int64_t slot, int h) const {
        return (layer * s_.slots + slot) * s_.kv_heads + h;
    }

    void reserve(int rows, int threads) {
        if (rows <= reserved_ && threads <= int(scratch_.size())) return;
        rows = reserved_ = std::max(rows, reserved_);
        x_.assign(size_t(rows) * width_ld_, 0);
        normed_.reserve(rows, threads, width_ld_);
        last_.reserve(rows, threads, width_ld_);
        qkv_.assign(size_t(rows) * qkv_ld_, 0);
        mixed_.assign(size_t(rows) * mixed_ld_, 0);
        gated_.assign(size_t(rows) * ff_ld_, 0);
        scratch_.assign(threads, cache_.scratch());
    }

    void turn(float* __restrict x, const float* __restrict cos, const float* __restrict sin) const {
        int half = int(s_.head) / 2;
        for (int i = 0; i < half; ++i) {
            float a = x[i], b = x[i + half];
            x[i] = a * cos[i] - b * sin[i];
            x[i + half] = b * cos[i + half] + a * sin[i + half];
        }
    }

    // Turns queries and keys of the rows and puts keys and values away; `mine` counts key
    // heads of rows, head by head: places side by side share cache lines, which should stay with a
    // thread.
    void arrange(int t, Span mine, int layer, int rows, const int64_t* slot, const int64_t* position,
                 const int64_t* index) {
        int head = int(s_.head), heads = int(s_.heads), kv_heads = int(s_.kv_heads);
        for (int unit = mine.begin; unit < mine.end; ++unit) {
            int h = unit / rows, r = unit % rows, groups = heads / kv_heads;
            float* row = &qkv_[size_t(r) * qkv_ld_];
            const float* cos = &cos_[position[r] * head];
            const float* sin = &sin_[position[r] * head];
            for (int g = 0; g < groups; ++g) turn(row + (h * groups + g) * head, cos, sin);
            float* key = row + (heads + h) * head;
            turn(key, cos, sin);
            cache_.put(text(layer, slot[r], h), int(index[r]), key, key + kv_heads * head, scratch_[t]);
        }
    }

    // Queries [from, to) of those that rows from `first` on, all of one slot, have for key-value head h.
    void attend_span(int t, int layer, int first, int h, int from, int to, const int64_t* slot,
                     const int64_t* index) {
        int groups = int(s_.heads / s_.kv_heads), head = int(s_.head);
        while (from < to) {
            int size = std::min(TOGETHER, to - from), places[TOGETHER];
            const float* query[TOGETHER];
            Kept* out[TOGETHER];
            for (int q = 0; q < size; ++q) {
                int row = first + (from + q) / groups, which = h * groups + (from + q) % groups;
                query[q] = &qkv_[size_t(row) * qkv_ld_ + which * head];
                out[q] = &mixed_[size_t(row) * mixed_ld_ + which * head / K::EACH];
                places[q] = int(index[row]) + 1;
            }
            cache_.template attend<K>(text(layer, slot[first], h), size, query, places, out, scratch_[t]);
            from += size;
        }
    }

    // Key-value heads `own` with their queries, or where they do not go round among the threads
    // (`own` empty) the share of thread t of all queries.
    void attend_rows(int t, int threads, int layer, int rows, Span own, const int64_t* slot,
                     const int64_t* index) {
        int groups = int(s_.heads / s_.kv_heads), all = rows * int(s_.heads);
        bool by_head = own.begin < own.end;
        Span heads = by_head ? own : Span{0, int(s_.kv_heads)};
        Span mine = by_head ? Span{0, all} : share(all, t, threads);
        for (int first = 0, number = 0, end; first < rows; first = end) {
            for (end = first + 1; end < rows && slot[end] == slot[first]; ++end) {}
            int queries = (end - first) * groups;
            for (int h = heads.begin; h < heads.end; ++h, number += queries)
                attend_span(t, layer, first, h, std::max(mine.begin - number, 0),
                            std::min(mine.end - number, queries), slot, index);
        }
    }

    // Queries, keys and values of the key-value heads `own`, all of them written by one thread.
    void project_heads(const Block& b, Span own, int rows, const Kept* normed) {
        int blocks = int(s_.head) / PAIR, groups = int(s_.heads / s_.kv_heads);
        auto behind = [&](int64_t heads, int each) {
            return Span{int(heads + own.begin * each) * blocks, int(heads + own.end * each) * blocks};
        };
        b.qkv.template run<Into::WRITTEN>(
            normed, width_ld_ / K::EACH, rows, qkv_.data(), qkv_ld_,
            {behind(0, groups), behind(s_.heads, 1), behind(s_.heads + s_.kv_heads, 1)});
    }

    // A thread waits for the others four times a block, where few rows pass and key-value heads go
    // round; else up to eight times.
    void pass(Team& team, int t, int rows, int finished, int scored, const float* input,
              const int64_t* slot, const int64_t* position, const int64_t* index, float* hidden,
              float* logits) {
        int threads = team.size(), width = int(s_.width), kv_heads = int(s_.kv_heads);
        bool by_head = kv_heads % threads == 0 && s_.head % PAIR == 0, alone = rows <= FEW;
        Span own = by_head ? share(kv_heads, t, threads) : Span{0, 0};
        Span mine = share(rows, t, threads);
        auto norm = [&]<class N>(Normed<N>& normed, const std::vector<float>& weight) {
            typename N::Kept* to = alone ? normed.own[t].data() : normed.all.data();
            Span which = alone ? Span{0, rows} : mine;
            for (int r = which.begin; r < which.end; ++r)
                normalize<N>(&x_[size_t(r) * width_ld_], weight.data(), eps_, width,
                             to + size_t(r) * width_ld_ / N::EACH);
            if (!alone) team.barrier();
            return to;
        };
        for (int r = mine.begin; r < mine.end; ++r)
            std::copy_n(input + size_t(r) * width, width, x_.data() + size_t(r) * width_ld_);
        if (alone) team.barrier();
        for (int layer = 0; layer < s_.layers; ++layer) {
            const Block& b = blocks_[layer];
            const Kept* normed = norm(normed_, b.attention_norm);
            if (by_head) {
                project_heads(b, own, rows, normed);
                arrange(t, {own.begin * rows, own.end * rows}, layer, rows, slot, position, index);
            } else {
                b.qkv.template run<Into::WRITTEN>(normed, width_ld_ / K::EACH, rows, qkv_.data(), qkv_ld_,
                                                  {share(b.qkv.blocks(), t, threads)});
                team.barrier();
                arrange(t, share(rows * kv_heads, t, threads), layer, rows, slot, position, index);
                team.barrier();
            }
            if (layer + 1 == s_.layers) {
                rows = finished;
                mine = share(rows, t, threads);
            }
            attend_rows(t, threads, layer, rows, own, slot, index);
            team.barrier();
            b.output.template run<Into::ADDED>(mixed_.data(), mixed_ld_, rows, x_.data(), width_ld_,
                                               {share(b.output.blocks(), t, threads)});
            team.barrier();
            normed = norm(normed_, b.ff_norm);
            b.gate_up.run(normed, width_ld_ / K::EACH, rows, gated_.data(), ff_ld_,
                          share(b.gate_up.blocks(), t, threads));
            team.barrier();
            b.down.template run<Into::ADDED>(gated_.data(), ff_ld_, rows, x_.data(), width_ld_,
                                             {share(b.down.blocks(), t, threads)});
            team.barrier();
        }
        const float* last = norm(last_, norm_);
        for (int r = mine.begin; r < mine.end; ++r)
            std::copy_n(last + size_t(r) * width_ld_, width, hidden + size_t(r) * width);
        score(t, threads, scored, last, width_ld_, logits);
    }

    Shape s_;
    float eps_;
    int qkv_ld_, mixed_ld_, width_ld_, ff_ld_, reserved_ = 0;
    std::vector<Block> blocks_;
    std::vector<float> norm_, cos_, sin_;
    Linear<V, Weights<V>> head_;
    Cache<C> cache_;
    std::vector<float> x_, qkv_;
    Normed<K> normed_;
    Normed<Plain> last_;
    std::vector<Kept> mixed_, gated_;
    std::vector<typename Cache<C>::Scratch> scratch_;  // of each thread
};

}  // namespace specdec
