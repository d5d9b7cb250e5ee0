// The threads of a process that passes share.

#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#define RELAX() _mm_pause()
#else
#define RELAX() std::this_thread::yield()
#endif

namespace specdec {

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
        for (int spins = 0; turn_.load(std::memory_order_acquire) == turn; ++spins) relax(spins);
    }
    int size() const { return size_; }

   private:
    // Beyond what parts of a pass differ by, somebody else may have a core of ours: a yield costs
    // little where nobody has, and lets him finish where one has.
    static constexpr int SPINS = 1000, AWAKE = 4000;

    static void relax(int spins) {
        if (spins < SPINS)
            RELAX();
        else
            std::this_thread::yield();
    }
    void work(int thread) {
        uint32_t seen = 0;
        while (true) {
            for (int spins = 0; spins < AWAKE && start_.load(std::memory_order_acquire) == seen; ++spins)
                relax(spins);
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
inline Span share(int count, int thread, int threads) {
    return {int(int64_t(count) * thread / threads), int(int64_t(count) * (thread + 1) / threads)};
}

}  // namespace specdec
