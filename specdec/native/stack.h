// Llama blocks, final norm and head over slots' caches: one pass over packed rows.
//
// Every output of a linear is one chain of fused multiply-adds over its inputs in order, and every
// query's attention walks its own places in order: a row's bits cannot depend on what shares the
// pass, on the tiling or on the number of threads.  Weights and cache are bfloat16 or float32,
// arithmetic is float32.
//
// N rows, D width, H query heads, K key-value heads, d head width, F feed-forward width, C places.
// Knows no bytes' meaning and no sampling.

#pragma once

#include <vector>

#include "linear.h"
#include "team.h"

namespace specdec {

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
    // Keys and values of the first block alone, at the places given.
    virtual void remember(Team& team, int rows, const float* x, const int64_t* slot,
                          const int64_t* place) = 0;
    // Logits of normed rows, the share of thread t.
    virtual void score(int t, int threads, int rows, const float* x, int ldx, float* logits) const = 0;
    virtual void copy(int source, int target, int places) = 0;
    virtual int width() const = 0;
};

// W holds weights and cache, V the head: bfloat16 pairs or float32.
template <class W, class V> class StackOf : public Stack {
   public:
    StackOf(const Shape& s, float eps) : s_(s), eps_(eps), blocks_(s.layers) {
        capacity_ = padded(int(s.places));
        head_padded_ = padded(int(s.head));
        qkv_ld_ = padded(int((s.heads + 2 * s.kv_heads) * s.head));
        mixed_ld_ = int(s.heads * s.head);
        width_ld_ = padded(int(s.width));
        ff_ld_ = padded(int(s.feed_forward));
        key_size_ = size_t(capacity_) / PAIR * s.head * stride<W>();
        value_size_ = size_t(capacity_) * head_padded_ / PAIR * stride<W>();
        keys_ = Buffer<W>(s.layers * s.slots * s.kv_heads * key_size_);
        values_ = Buffer<W>(s.layers * s.slots * s.kv_heads * value_size_);
    }

    void block(int layer, const float* attention_norm, const float* qkv, const float* output,
               const float* ff_norm, const float* gate_up, const float* down) override {
        Block& b = blocks_[layer];
        int width = int(s_.width), ff = int(s_.feed_forward);
        b.attention_norm.assign(attention_norm, attention_norm + width);
        b.ff_norm.assign(ff_norm, ff_norm + width);
        b.qkv.pack(qkv, int((s_.heads + 2 * s_.kv_heads) * s_.head), width);
        b.output.pack(output, width, int(s_.heads * s_.head));
        b.gate.pack(gate_up, ff, width);
        b.up.pack(gate_up + size_t(ff) * width, ff, width);
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
        size_t key = size_t(padded(places)) / PAIR * s_.head * stride<W>();
        size_t value = size_t(places) * head_padded_ / PAIR * stride<W>();
        for (int layer = 0; layer < s_.layers; ++layer)
            for (int h = 0; h < s_.kv_heads; ++h) {
                std::copy_n(key_at(layer, source, h), key, key_at(layer, target, h));
                std::copy_n(value_at(layer, source, h), value, value_at(layer, target, h));
            }
    }

    void forward(Team& team, int rows, int finished, int scored, const float* input,
                 const int64_t* slot, const int64_t* position, const int64_t* index, float* hidden,
                 float* logits) override {
        reserve(rows, team.size());
        team.run([&](int t) {
            pass(team, t, rows, finished, scored, input, slot, position, index, hidden, logits);
        });
    }

    void remember(Team& team, int rows, const float* input, const int64_t* slot,
                  const int64_t* place) override {
        reserve(rows, team.size());
        const Block& b = blocks_[0];
        int head = int(s_.head), width = int(s_.width), first = int(s_.heads * s_.head) / PAIR;
        team.run([&](int t) {
            Span mine = share(rows, t, team.size());
            for (int r = mine.begin; r < mine.end; ++r)
                normalize(input + size_t(r) * width, b.attention_norm.data(),
                          &normed_[size_t(r) * width_ld_]);
            team.barrier();
            Span out = share(b.qkv.blocks() - first, t, team.size());
            b.qkv.template run<false>(normed_.data(), width_ld_, rows, qkv_.data(), qkv_ld_,
                                      first + out.begin, first + out.end);
            team.barrier();
            for (int r = mine.begin; r < mine.end; ++r) {
                float* key = &qkv_[size_t(r) * qkv_ld_ + s_.heads * head];
                for (int h = 0; h < s_.kv_heads; ++h)
                    turn(key + h * head, &cos_[place[r] * head], &sin_[place[r] * head]);
                put_away(0, slot[r], int(place[r]), key);
            }
        });
    }

    void score(int t, int threads, int rows, const float* x, int ldx, float* logits) const override {
        Span out = share(head_.blocks(), t, threads);
        head_.template run<false>(x, ldx, rows, logits, int(s_.vocabulary), out.begin, out.end);
    }

   private:
    struct Block {
        std::vector<float> attention_norm, ff_norm;
        Linear<W> qkv, output, gate, up, down;
    };

    W* key_at(int layer, int64_t slot, int h) {
        return keys_.data() + ((layer * s_.slots + slot) * s_.kv_heads + h) * key_size_;
    }
    W* value_at(int layer, int64_t slot, int h) {
        return values_.data() + ((layer * s_.slots + slot) * s_.kv_heads + h) * value_size_;
    }

    void reserve(int rows, int threads) {
        if (rows <= reserved_ && threads <= int(scores_.size())) return;
        rows = reserved_ = std::max(rows, reserved_);
        x_.assign(size_t(rows) * width_ld_, 0);
        normed_.assign(size_t(rows) * width_ld_, 0);
        qkv_.assign(size_t(rows) * qkv_ld_, 0);
        mixed_.assign(size_t(rows) * mixed_ld_, 0);
        gate_.assign(size_t(rows) * ff_ld_, 0);
        up_.assign(size_t(rows) * ff_ld_, 0);
        scores_.resize(threads);
        for (auto& scores : scores_) scores.assign(capacity_, 0);
    }

    void normalize(const float* x, const float* weight, float* out) const {
        int width = int(s_.width), i = 0;
        vf squares = {};
        for (; i + LANES <= width; i += LANES) {
            vf part = *reinterpret_cast<const vf*>(x + i);
            squares += part * part;
        }
        float total = sum(squares);
        for (; i < width; ++i) total += x[i] * x[i];
        float scale = 1.0f / std::sqrt(total / float(width) + eps_);
        for (i = 0; i < width; ++i) out[i] = x[i] * scale * weight[i];
    }

    void turn(float* x, const float* cos, const float* sin) const {
        int half = int(s_.head) / 2;
        for (int i = 0; i < half; ++i) {
            float a = x[i], b = x[i + half];
            x[i] = a * cos[i] - b * sin[i];
            x[i + half] = b * cos[i + half] + a * sin[i + half];
        }
    }

    // The keys of a row, head after head, and behind them its values into the cache.
    void put_away(int layer, int64_t slot, int place, const float* keys) {
        const float* values = keys + s_.kv_heads * s_.head;
        for (int h = 0; h < s_.kv_heads; ++h, keys += s_.head, values += s_.head) {
            W* at = key_at(layer, slot, h) + size_t(place / PAIR) * s_.head * stride<W>();
            for (int i = 0; i < s_.head; ++i) put(at + size_t(i) * stride<W>(), place % PAIR, keys[i]);
            at = value_at(layer, slot, h) + size_t(place) * head_padded_ / PAIR * stride<W>();
            for (int i = 0; i < s_.head; ++i) put(at, i, values[i]);
        }
    }

    // One query over its first `places` places.
    void attend(const float* query, const W* keys, const W* values, int places, float* scores,
                float* out) const {
        int head = int(s_.head), blocks = (places + PAIR - 1) / PAIR;
        float scale = 1.0f / std::sqrt(float(head));
        vf best = vf{} - INFINITY;
        for (int b = 0; b < blocks; b += 4) {  // four at a time: eight sums hide the latency
            vf sums[4][2] = {};
            int count = std::min(4, blocks - b);
            const W* at = keys + size_t(b) * head * stride<W>();
            size_t step = size_t(head) * stride<W>();
            if (count == 4) {
                for (int i = 0; i < head; ++i) {
#pragma GCC unroll 4
                    for (int j = 0; j < 4; ++j) {
                        vf first, second;
                        const W* here = at + j * step + size_t(i) * stride<W>();
                        __builtin_prefetch(here + 4 * step);
                        load(here, first, second);
                        sums[j][0] += first * query[i];
                        sums[j][1] += second * query[i];
                    }
                }
            } else {
                for (int j = 0; j < count; ++j)
                    for (int i = 0; i < head; ++i) {
                        vf first, second;
                        load(at + j * step + size_t(i) * stride<W>(), first, second);
                        sums[j][0] += first * query[i];
                        sums[j][1] += second * query[i];
                    }
            }
            for (int j = 0; j < count; ++j)
                for (int half = 0; half < 2; ++half) {
                    int from = (b + j) * PAIR + half * LANES;
                    vf score = sums[j][half] * scale;
                    for (int lane = std::max(0, places - from); lane < LANES; ++lane)
                        score[lane] = -INFINITY;
                    *reinterpret_cast<vf*>(scores + from) = score;
                    best = best > score ? best : score;
                }
        }
        float top = largest(best);
        vf total = {};
        for (int i = 0; i < blocks * PAIR; i += LANES) {
            vf* at = reinterpret_cast<vf*>(scores + i);
            *at = vexp(*at - top);
            total += *at;
        }
        float share = 1.0f / sum(total);
        for (int part = 0; part < head_padded_; part += 2 * PAIR) {
            int halves = std::min(2, (head_padded_ - part) / PAIR);
            vf sums[4] = {};
            const W* at = values + size_t(part) / PAIR * stride<W>();
            size_t step = size_t(head_padded_) / PAIR * stride<W>();
            if (halves == 2) {
                for (int p = 0; p < places; ++p) {
                    vf a, b, c, e;
                    __builtin_prefetch(at + (p + 16) * step);
                    __builtin_prefetch(at + (p + 16) * step + LANES);
                    load(at + p * step, a, b);
                    load(at + p * step + stride<W>(), c, e);
                    sums[0] += a * scores[p];
                    sums[1] += b * scores[p];
                    sums[2] += c * scores[p];
                    sums[3] += e * scores[p];
                }
            } else {
                for (int p = 0; p < places; ++p) {
                    vf a, b;
                    load(at + p * step, a, b);
                    sums[0] += a * scores[p];
                    sums[1] += b * scores[p];
                }
            }
            for (int i = part; i < std::min(head, part + halves * PAIR); ++i)
                out[i] = sums[(i - part) / LANES][(i - part) % LANES] * share;
        }
    }

    void pass(Team& team, int t, int rows, int finished, int scored, const float* input,
              const int64_t* slot, const int64_t* position, const int64_t* index, float* hidden,
              float* logits) {
        int threads = team.size(), width = int(s_.width), head = int(s_.head);
        int groups = int(s_.heads / s_.kv_heads);
        Span mine = share(rows, t, threads);
        for (int r = mine.begin; r < mine.end; ++r)
            std::copy_n(input + size_t(r) * width, width, x_.data() + size_t(r) * width_ld_);
        for (int layer = 0; layer < s_.layers; ++layer) {
            const Block& b = blocks_[layer];
            for (int r = mine.begin; r < mine.end; ++r)
                normalize(&x_[size_t(r) * width_ld_], b.attention_norm.data(),
                          &normed_[size_t(r) * width_ld_]);
            team.barrier();
            Span out = share(b.qkv.blocks(), t, threads);
            b.qkv.template run<false>(normed_.data(), width_ld_, rows, qkv_.data(), qkv_ld_, out.begin, out.end);
            team.barrier();
            for (int r = mine.begin; r < mine.end; ++r) {
                float* row = &qkv_[size_t(r) * qkv_ld_];
                const float* cos = &cos_[position[r] * head];
                const float* sin = &sin_[position[r] * head];
                for (int h = 0; h < s_.heads + s_.kv_heads; ++h) turn(row + h * head, cos, sin);
                put_away(layer, slot[r], int(index[r]), row + s_.heads * head);
            }
            team.barrier();
            if (layer + 1 == s_.layers) {
                rows = finished;
                mine = share(rows, t, threads);
            }
            Span queries = share(rows * int(s_.heads), t, threads);
            for (int q = queries.begin; q < queries.end; ++q) {
                int r = q / int(s_.heads), h = q % int(s_.heads);
                attend(&qkv_[size_t(r) * qkv_ld_ + h * head], key_at(layer, slot[r], h / groups),
                       value_at(layer, slot[r], h / groups), int(index[r]) + 1, scores_[t].data(),
                       &mixed_[size_t(r) * mixed_ld_ + h * head]);
            }
            team.barrier();
            out = share(b.output.blocks(), t, threads);
            b.output.template run<true>(mixed_.data(), mixed_ld_, rows, x_.data(), width_ld_, out.begin, out.end);
            team.barrier();
            for (int r = mine.begin; r < mine.end; ++r)
                normalize(&x_[size_t(r) * width_ld_], b.ff_norm.data(), &normed_[size_t(r) * width_ld_]);
            team.barrier();
            out = share(b.gate.blocks(), t, threads);
            b.gate.template run<false>(normed_.data(), width_ld_, rows, gate_.data(), ff_ld_, out.begin, out.end);
            b.up.template run<false>(normed_.data(), width_ld_, rows, up_.data(), ff_ld_, out.begin, out.end);
            for (int r = 0; r < rows; ++r)
                for (int i = out.begin * PAIR; i < out.end * PAIR; i += LANES) {
                    vf* gate = reinterpret_cast<vf*>(&gate_[size_t(r) * ff_ld_ + i]);
                    vf up = *reinterpret_cast<const vf*>(&up_[size_t(r) * ff_ld_ + i]);
                    *gate = *gate / (vexp(-*gate) + 1.0f) * up;
                }
            team.barrier();
            out = share(b.down.blocks(), t, threads);
            b.down.template run<true>(gate_.data(), ff_ld_, rows, x_.data(), width_ld_, out.begin, out.end);
            team.barrier();
        }
        for (int r = mine.begin; r < mine.end; ++r) {
            normalize(&x_[size_t(r) * width_ld_], norm_.data(), &normed_[size_t(r) * width_ld_]);
            std::copy_n(&normed_[size_t(r) * width_ld_], width, hidden + size_t(r) * width);
        }
        team.barrier();
        score(t, threads, scored, normed_.data(), width_ld_, logits);
    }

    Shape s_;
    float eps_;
    int capacity_, head_padded_, qkv_ld_, mixed_ld_, width_ld_, ff_ld_, reserved_ = 0;
    size_t key_size_, value_size_;
    std::vector<Block> blocks_;
    std::vector<float> norm_, cos_, sin_;
    Linear<V> head_;
    Buffer<W> keys_, values_;
    std::vector<float> x_, normed_, qkv_, mixed_, gate_, up_;
    std::vector<std::vector<float>> scores_;
};

}  // namespace specdec
