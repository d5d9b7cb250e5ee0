// A Llama decoder's pass over packed rows, for processors with wide vectors.
//
// Every output of a linear is one chain of fused multiply-adds over its inputs in order, and every
// query's attention walks its own places in order: a row's bits cannot depend on what shares the
// pass, on the tiling or on the number of threads.  Weights and cache are bfloat16 or float32,
// arithmetic is float32.
//
// N rows, D width, H query heads, K key-value heads, d head width, F feed-forward width, C places.
// Knows no bytes' meaning, no sampling and no Python; `specdec.native_stack` owns the memory's life.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#define RELAX() _mm_pause()
#else
#define RELAX() std::this_thread::yield()
#endif

namespace {

constexpr int LANES = 16;
constexpr int PAIR = 2 * LANES;
constexpr int AHEAD = 96;      // inputs whose weights are asked for before they are needed
constexpr int MOST_ROWS = 12;  // of a tile: 24 sums stay in registers

typedef float vf __attribute__((vector_size(64), aligned(4)));
typedef uint32_t vu __attribute__((vector_size(64), aligned(4)));
typedef int32_t vi __attribute__((vector_size(64), aligned(4)));

int padded(int n) { return (n + PAIR - 1) / PAIR * PAIR; }

uint16_t to_half(float x) {  // bfloat16, nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    bits += 0x7fff + ((bits >> 16) & 1);
    return static_cast<uint16_t>(bits >> 16);
}

// Thirty-two numbers as two vectors: the first sixteen and the second.  In bfloat16 number i and
// number i + 16 share a 32-bit lane, so that each half is one operation away from float32.
inline void load(const uint32_t* at, vf& first, vf& second) {
    vu both = *reinterpret_cast<const vu*>(at);
    first = (vf)(both << 16);
    second = (vf)(both & 0xffff0000u);
}
inline void load(const float* at, vf& first, vf& second) {
    first = *reinterpret_cast<const vf*>(at);
    second = *reinterpret_cast<const vf*>(at + LANES);
}
template <class W> constexpr int stride() { return std::is_same<W, float>::value ? PAIR : LANES; }

void put(uint32_t* row, int i, float x) {
    reinterpret_cast<uint16_t*>(row + i / PAIR * LANES + i % LANES)[i % PAIR / LANES] = to_half(x);
}
void put(float* row, int i, float x) { row[i] = x; }

// exp, to about an ulp; 0 below -87, and above 88 what it is there: float32 ends
inline vf vexp(vf x) {
    vf clamped = x > -87.0f ? x : (vf{} - 87.0f);
    clamped = clamped < 88.0f ? clamped : (vf{} + 88.0f);
    vf n = clamped * 1.44269504f;
    vi k = __builtin_convertvector(n + (n > 0.0f ? (vf{} + 0.5f) : (vf{} - 0.5f)), vi);
    vf kf = __builtin_convertvector(k, vf);
    vf r = clamped - kf * 0.693359375f;
    r = r - kf * -2.12194440e-4f;
    vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    vf scaled = p * (vf)((k + 127) << 23);
    return x > -87.0f ? scaled : vf{};
}

float sum(vf x) {  // halves, then halves of those: a fixed order
    float lanes[LANES];
    std::memcpy(lanes, &x, sizeof lanes);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
}

float largest(vf x) {
    float best = x[0];
    for (int i = 1; i < LANES; ++i) best = std::max(best, x[i]);
    return best;
}

// Memory for what is streamed through, on huge pages where the system gives them.
template <class T> class Buffer {
   public:
    Buffer() = default;
    explicit Buffer(size_t size) {
        constexpr size_t page = size_t(2) << 20;
        size_t bytes = std::max<size_t>(1, (size * sizeof(T) + page - 1) / page) * page;
        data_.reset(static_cast<T*>(std::aligned_alloc(page, bytes)));
        if (!data_) throw std::bad_alloc();
#if defined(__linux__)
        madvise(data_.get(), bytes, MADV_HUGEPAGE);
#endif
        std::memset(data_.get(), 0, bytes);
    }
    T* data() { return data_.get(); }
    const T* data() const { return data_.get(); }

   private:
    struct Free { void operator()(T* at) const { std::free(at); } };
    std::unique_ptr<T, Free> data_;
};

// Threads that run one function together and meet at barriers.  They spin for a short while
// between passes and then sleep.
class Team {
   public:
    explicit Team(int size) : size_(size) {
        for (int i = 1; i < size; ++i) threads_.emplace_back([this, i] { work(i); });
    }
    ~Team() {
        function_ = nullptr;
        start_.fetch_add(1);
        start_.notify_all();
        for (auto& thread : threads_) thread.join();
    }
    template <class F> void run(F&& function) {
        auto call = [](void* f, int thread) { (*static_cast<std::remove_reference_t<F>*>(f))(thread); };
        argument_ = &function;
        function_ = call;
        if (size_ > 1) {
            start_.fetch_add(1, std::memory_order_release);
            start_.notify_all();
        }
        call(argument_, 0);
        barrier();
    }
    void barrier() {
        if (size_ == 1) return;
        uint32_t turn = turn_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            turn_.fetch_add(1, std::memory_order_release);
            return;
        }
        for (int spins = 0; turn_.load(std::memory_order_acquire) == turn; ++spins) {
            if (spins < 20000)
                RELAX();
            else
                std::this_thread::yield();  // somebody else has a core of ours
        }
    }
    int size() const { return size_; }

   private:
    void work(int thread) {
        uint32_t seen = 0;
        while (true) {
            for (int spins = 0; spins < 4000 && start_.load(std::memory_order_acquire) == seen; ++spins)
                RELAX();
            start_.wait(seen, std::memory_order_acquire);
            ++seen;
            if (!function_) return;
            function_(argument_, thread);
            barrier();
        }
    }
    int size_;
    std::vector<std::thread> threads_;
    std::atomic<uint32_t> start_{0}, turn_{0};
    std::atomic<int> arrived_{0};
    void (*function_)(void*, int) = nullptr;
    void* argument_ = nullptr;
};

struct Span { int begin, end; };
Span share(int count, int thread, int threads) {
    return {int(int64_t(count) * thread / threads), int(int64_t(count) * (thread + 1) / threads)};
}

// y = x Wᵀ, the weights in blocks of 32 outputs: [block][input][32].
template <class W> class Linear {
   public:
    void pack(const float* weight, int outputs, int inputs) {
        inputs_ = inputs;
        blocks_ = padded(outputs) / PAIR;
        data_ = Buffer<W>(size_t(blocks_) * inputs * stride<W>());
        for (int n = 0; n < outputs; ++n)
            for (int k = 0; k < inputs; ++k)
                put(at(n / PAIR) + size_t(k) * stride<W>(), n % PAIR, weight[size_t(n) * inputs + k]);
    }
    int blocks() const { return blocks_; }

    // Outputs of blocks [from, to) for `rows` rows, written or added.
    template <bool ADD>
    void run(const float* x, int ldx, int rows, float* y, int ldy, int from, int to) const {
        if (rows == 1) {
            for (; from + 4 <= to; from += 4) tile<1, 4, ADD>(x, ldx, y, ldy, from);
        } else if (rows == 2) {
            for (; from + 2 <= to; from += 2) tile<2, 2, ADD>(x, ldx, y, ldy, from);
        }
        for (; from < to; ++from)
            for (int row = 0; row < rows; row += MOST_ROWS)
                some<ADD>(std::min(MOST_ROWS, rows - row), x + size_t(row) * ldx, ldx,
                          y + size_t(row) * ldy, ldy, from);
    }

   private:
    W* at(int block) { return data_.data() + size_t(block) * inputs_ * stride<W>(); }
    const W* at(int block) const { return data_.data() + size_t(block) * inputs_ * stride<W>(); }

    template <bool ADD>
    void some(int rows, const float* x, int ldx, float* y, int ldy, int block) const {
        switch (rows) {
            case 1: return tile<1, 1, ADD>(x, ldx, y, ldy, block);
            case 2: return tile<2, 1, ADD>(x, ldx, y, ldy, block);
            case 3: return tile<3, 1, ADD>(x, ldx, y, ldy, block);
            case 4: return tile<4, 1, ADD>(x, ldx, y, ldy, block);
            case 5: return tile<5, 1, ADD>(x, ldx, y, ldy, block);
            case 6: return tile<6, 1, ADD>(x, ldx, y, ldy, block);
            case 7: return tile<7, 1, ADD>(x, ldx, y, ldy, block);
            case 8: return tile<8, 1, ADD>(x, ldx, y, ldy, block);
            case 9: return tile<9, 1, ADD>(x, ldx, y, ldy, block);
            case 10: return tile<10, 1, ADD>(x, ldx, y, ldy, block);
            case 11: return tile<11, 1, ADD>(x, ldx, y, ldy, block);
            default: return tile<12, 1, ADD>(x, ldx, y, ldy, block);
        }
    }

    template <int R, int B, bool ADD>
    void tile(const float* x, int ldx, float* y, int ldy, int block) const {
        vf sums[R][2 * B] = {};
        const W* weights[B];
        for (int b = 0; b < B; ++b) weights[b] = at(block + b);
        for (int k = 0; k < inputs_; ++k) {
#pragma GCC unroll 8
            for (int b = 0; b < B; ++b) {
                vf first, second;
                const W* at_k = weights[b] + size_t(k) * stride<W>();
                __builtin_prefetch(at_k + AHEAD * stride<W>());
                load(at_k, first, second);
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) {
                    float xs = x[size_t(r) * ldx + k];
                    sums[r][2 * b] += first * xs;
                    sums[r][2 * b + 1] += second * xs;
                }
            }
        }
        for (int r = 0; r < R; ++r)
            for (int b = 0; b < 2 * B; ++b) {
                vf* out = reinterpret_cast<vf*>(y + size_t(r) * ldy + block * PAIR + b * LANES);
                *out = ADD ? *out + sums[r][b] : sums[r][b];
            }
    }

    int inputs_ = 0, blocks_ = 0;
    Buffer<W> data_;
};

struct Shape {
    int64_t layers, width, heads, kv_heads, head, feed_forward, slots, places, vocabulary;
};

class Stack {
   public:
    virtual ~Stack() = default;
    virtual void block(int layer, const float* attention_norm, const float* qkv, const float* output,
                       const float* ff_norm, const float* gate_up, const float* down) = 0;
    virtual void finish(const float* norm, const float* head, const float* cos, const float* sin) = 0;
    virtual void forward(Team& team, int rows, const float* x, const int64_t* slot,
                         const int64_t* position, const int64_t* index, float* hidden,
                         float* logits) = 0;
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

    void forward(Team& team, int rows, const float* input, const int64_t* slot,
                 const int64_t* position, const int64_t* index, float* hidden,
                 float* logits) override {
        reserve(rows, team.size());
        team.run([&](int t) { pass(team, t, rows, input, slot, position, index, hidden, logits); });
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

    void pass(Team& team, int t, int rows, const float* input, const int64_t* slot,
              const int64_t* position, const int64_t* index, float* hidden, float* logits) {
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
        score(t, threads, rows, normed_.data(), width_ld_, logits);
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

// The gated recurrent unit of a parallel prophet: z ← GRU(z, byte).  What the byte contributes is a
// row of a table, [256][3·width]: reset, update and candidate; another table says what follows it.
class Cell {
   public:
    virtual ~Cell() = default;
    virtual void weights(const float* recurrent, const float* gates, const float* transition) = 0;
    // One step of states [rows, width] with a byte each; the threads of a team together.
    virtual void step(Team& team, int t, int rows, float* states, const int64_t* bytes,
                      float* products) const = 0;
    virtual int products_ld() const = 0;
    const float* following(int64_t byte) const { return &transition_[byte * 256]; }

   protected:
    std::vector<float> gates_, transition_;
};

template <class W> class CellOf : public Cell {
   public:
    explicit CellOf(int width) : width_(width) {}
    void weights(const float* recurrent, const float* gates, const float* transition) override {
        recurrent_.pack(recurrent, 3 * width_, width_);
        gates_.assign(gates, gates + size_t(256) * 3 * width_);
        transition_.assign(transition, transition + 256 * 256);
    }
    int products_ld() const override { return padded(3 * width_); }

    void step(Team& team, int t, int rows, float* states, const int64_t* bytes,
              float* products) const override {
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
    Linear<W> recurrent_;
};

}  // namespace

extern "C" {

// byte_rule.cpp
struct SpecdecSlots;
void specdec_choose(const SpecdecSlots* slots, int rows, int width, int before, const int64_t* slot,
                    const float* logits, const int64_t* bytes, int stride, int64_t* chosen);

void* specdec_team(int threads) { return new Team(threads); }
void specdec_team_free(void* team) { delete static_cast<Team*>(team); }

void* specdec_stack(const int64_t* shape, float eps, int half, int half_head) {
    Shape s;
    std::memcpy(&s, shape, sizeof s);
    if (half && half_head) return new StackOf<uint32_t, uint32_t>(s, eps);
    if (half) return new StackOf<uint32_t, float>(s, eps);
    return new StackOf<float, float>(s, eps);
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
    static_cast<Stack*>(stack)->forward(*static_cast<Team*>(team), rows, x, slot, position, index,
                                        hidden, logits);
}
void specdec_copy(void* stack, int source, int target, int places) {
    static_cast<Stack*>(stack)->copy(source, target, places);
}

// Drafts [rows, gamma]: x [rows, lead, D] are the first inputs of each row, and the embedding of each
// byte that the rule picks the next.
void specdec_draft(void* stack, void* team, const SpecdecSlots* slots, int rows, int lead, int gamma,
                   const int64_t* slot, const float* x, const float* embedding, int64_t* drafts) {
    Stack& passes = *static_cast<Stack*>(stack);
    Team& threads = *static_cast<Team*>(team);
    int width = passes.width(), all = rows * lead;
    std::vector<int64_t> each(all), place(all), picked(rows);
    for (int i = 0; i < all; ++i) {
        each[i] = slot[i / lead];
        place[i] = i % lead;
    }
    std::vector<float> hidden(size_t(all) * width), logits(size_t(all) * 256), input(size_t(rows) * width);
    passes.forward(threads, all, x, each.data(), place.data(), place.data(), hidden.data(), logits.data());
    for (int r = 0; r < rows; ++r)
        std::copy_n(&logits[(size_t(r) * lead + lead - 1) * 256], 256, &logits[size_t(r) * 256]);
    for (int step = 0; step < gamma; ++step) {
        if (step) {
            for (int r = 0; r < rows; ++r) {
                std::copy_n(embedding + drafts[int64_t(r) * gamma + step - 1] * width, width,
                            &input[size_t(r) * width]);
                place[r] = lead + step - 1;
            }
            passes.forward(threads, rows, input.data(), slot, place.data(), place.data(), hidden.data(),
                           logits.data());
        }
        specdec_choose(slots, rows, 1, step, slot, logits.data(), drafts, gamma, picked.data());
        for (int r = 0; r < rows; ++r) drafts[int64_t(r) * gamma + step] = picked[r];
    }
}

void specdec_remember(void* stack, void* team, int rows, const float* x, const int64_t* slot,
                      const int64_t* place) {
    static_cast<Stack*>(stack)->remember(*static_cast<Team*>(team), rows, x, slot, place);
}

void* specdec_cell(int width, int half) {
    if (half) return static_cast<Cell*>(new CellOf<uint32_t>(width));
    return static_cast<Cell*>(new CellOf<float>(width));
}
void specdec_cell_free(void* cell) { delete static_cast<Cell*>(cell); }
void specdec_cell_weights(void* cell, const float* recurrent, const float* gates,
                          const float* transition) {
    static_cast<Cell*>(cell)->weights(recurrent, gates, transition);
}

// Drafts [rows, gamma] of a parallel prophet: x [rows, D] are the block's inputs at `place`, whose
// bytes are `last`.
void specdec_draft_parallel(void* stack, void* cell, void* team, const SpecdecSlots* slots, int rows,
                            int gamma, const int64_t* slot, const int64_t* place, const int64_t* last,
                            const float* x, int64_t* drafts) {
    Stack& passes = *static_cast<Stack*>(stack);
    const Cell& unit = *static_cast<Cell*>(cell);
    Team& threads = *static_cast<Team*>(team);
    int width = passes.width();
    std::vector<float> states(size_t(rows) * width), logits(size_t(rows) * 256);
    std::vector<float> products(size_t(rows) * unit.products_ld());
    std::vector<int64_t> newest(last, last + rows), picked(rows);
    passes.forward(threads, rows, x, slot, place, place, states.data(), logits.data());
    for (int step = 0; step < gamma; ++step) {
        if (step)
            threads.run([&](int t) {
                unit.step(threads, t, rows, states.data(), newest.data(), products.data());
                passes.score(t, threads.size(), rows, states.data(), width, logits.data());
            });
        for (int r = 0; r < rows; ++r) {
            const float* following = unit.following(newest[r]);
            for (int i = 0; i < 256; ++i) logits[size_t(r) * 256 + i] += following[i];
        }
        specdec_choose(slots, rows, 1, step, slot, logits.data(), drafts, gamma, picked.data());
        for (int r = 0; r < rows; ++r) drafts[int64_t(r) * gamma + step] = newest[r] = picked[r];
    }
}
}
