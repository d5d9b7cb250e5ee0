// The text of every slot, and what followed its last bytes where they stood before.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace specdec {

constexpr int TIERS[] = {3, 8, 16, 32};  // lookup.TIERS
constexpr int N_TIERS = sizeof TIERS / sizeof *TIERS;
constexpr int64_t FURTHEST = 16384;  // bytes that are looked through, the newest

// A place of a text behind bytes that are the same as its last ones: at least TIERS[tier] of them,
// none where `tier` is below 0.
struct Match {
    int64_t place;
    int tier;
};

class Texts {
   public:
    void put(int64_t slot, int64_t place, int64_t byte) { room(slot, place)[place] = uint8_t(byte); }

    // The first `size` bytes.
    void copy(int64_t source, int64_t target, int64_t size) {
        room(source, size);
        room(target, size);
        std::copy_n(texts_[source].begin(), size, texts_[target].begin());
    }

    // The newest match of a text of `size` bytes.
    Match find(int64_t slot, int64_t size) {
        const uint8_t *text = room(slot, size), *end = text + size;
        auto same = [&](int64_t place, int count) {
            return place >= count && !std::memcmp(text + place - count, end - count, count);
        };
        for (int64_t place = size - 1, last = std::max<int64_t>(0, size - FURTHEST); place > last; --place) {
            if (text[place - 1] != end[-1] || !same(place, TIERS[0])) continue;
            int tier = 0;
            while (tier + 1 < N_TIERS && same(place, TIERS[tier + 1])) ++tier;
            return {place, tier};
        }
        return {0, -1};
    }

    // `count` bytes from a place before `size` on; where the text ends it goes on as from there.
    void follow(int64_t slot, int64_t place, int64_t size, int64_t count, int64_t* out) {
        const uint8_t* text = room(slot, size);
        for (int64_t i = 0; i < count; ++i) out[i] = text[place + i % (size - place)];
    }

   private:
    // Of memory for the places up to `place`.
    uint8_t* room(int64_t slot, int64_t place) {
        if (size_t(slot) >= texts_.size()) texts_.resize(slot + 1);
        std::vector<uint8_t>& text = texts_[slot];
        if (size_t(place) >= text.size()) text.resize(2 * size_t(place) + 64);
        return text.data();
    }

    std::vector<std::vector<uint8_t>> texts_;
};

}  // namespace specdec
