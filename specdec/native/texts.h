// The text of every slot, what followed its last bytes where they stood before, and how often that
// would have been right, whether or not it was drafted.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace specdec {

constexpr int TIERS[] = {3, 8, 16, 32};  // lookup.TIERS
constexpr int N_TIERS = sizeof TIERS / sizeof *TIERS;
constexpr int64_t FURTHEST = 16384;  // bytes that are looked through, the newest
constexpr int LONGEST = 16;          // config.LONGEST_DRAFT

// A place of a text behind bytes that are the same as its last ones: at least TIERS[tier] of them,
// none where `tier` is below 0.
struct Match {
    int64_t place;
    int tier;
};

class Texts {
   public:
    // A byte of a prompt, or one that is there already.
    void put(int64_t slot, int64_t place, int64_t byte) {
        room(slot, place)[place] = uint8_t(byte);
        for (Followed& match : texts_[slot].followed)
            if (match.next > place + 1) match.next = -1;  // of another text
    }

    // The byte behind the last one.
    void append(int64_t slot, int64_t place, int64_t byte) {
        uint8_t* bytes = room(slot, place);
        bytes[place] = uint8_t(byte);
        Text& text = texts_[slot];
        for (int tier = 0; tier < N_TIERS; ++tier) {
            Followed& match = text.followed[tier];
            if (match.next != place) continue;
            bool right = bytes[match.source] == byte;
            match.right += right;
            ++match.source;
            ++match.next;
            if (!right || match.right == LONGEST) {
                ++text.found[tier][match.right];
                match.next = -1;
            }
        }
    }

    // A round begins behind `size` bytes, whose newest match this is: it is followed, if none of its
    // tier is.
    void follow(int64_t slot, int64_t size, Match newest) {
        Text& text = texts_[slot];
        if (newest.tier < 0)
            ++text.unmatched;
        else if (Followed& match = text.followed[newest.tier]; match.next != size)
            match = {newest.place, size, 0};
    }

    // What was counted since it was last taken: tell(tier, right, times) of matches that were followed
    // to their first wrong byte or for LONGEST bytes, and tell(-1, 0, times) of rounds without one.
    template <class Tell>
    void take(int64_t slot, Tell tell) {
        room(slot, 0);
        Text& text = texts_[slot];
        for (int tier = 0; tier < N_TIERS; ++tier)
            for (int right = 0; right <= LONGEST; ++right)
                if (int& times = text.found[tier][right]) {
                    tell(tier, right, times);
                    times = 0;
                }
        if (text.unmatched) tell(-1, 0, text.unmatched);
        text.unmatched = 0;
    }

    // The first `size` bytes.
    void copy(int64_t source, int64_t target, int64_t size) {
        room(source, size);
        std::copy_n(texts_[source].bytes.begin(), size, room(target, size));
        for (Followed& match : texts_[target].followed) match.next = -1;
    }

    // The newest match of a text of `size` bytes.
    Match find(int64_t slot, int64_t size) {
        const uint8_t *text = room(slot, size), *end = text + size;
        auto same = [&](int64_t place, int count) {
            return place >= count && !std::memcmp(text + place - count, end - count, count);
        };
        int64_t last = std::max<int64_t>(TIERS[0], size - FURTHEST), place = size - 1;
        while (place >= last) {
            if (place - last >= BLOCK && !among(text + place - BLOCK, end)) {
                place -= BLOCK;
                continue;
            }
            for (int64_t next = std::max(last - 1, place - BLOCK); place > next; --place) {
                if (!same(place, TIERS[0])) continue;
                int tier = 0;
                while (tier + 1 < N_TIERS && same(place, TIERS[tier + 1])) ++tier;
                return {place, tier};
            }
        }
        return {0, -1};
    }

    // `count` bytes from a place before `size` on; where the text ends it goes on as from there.
    void draft(int64_t slot, int64_t place, int64_t size, int64_t count, int64_t* out) {
        const uint8_t* text = room(slot, size);
        for (int64_t i = 0; i < count; ++i) out[i] = text[place + i % (size - place)];
    }

   private:
    static constexpr int64_t BLOCK = 64;
    static_assert(TIERS[0] == 3);

    // Whether the three bytes before `end` stand before any of the BLOCK places behind this one: all
    // are looked at, which compilers make vectors of.
    static bool among(const uint8_t* place, const uint8_t* end) {
        uint8_t any = 0, first = end[-3], second = end[-2], third = end[-1];
        for (int i = 1; i <= BLOCK; ++i)
            any |= (place[i - 3] == first) & (place[i - 2] == second) & (place[i - 1] == third);
        return any;
    }

    // A match whose bytes are held against those that come: the place of the next of both, -1: none is.
    struct Followed {
        int64_t source = 0, next = -1;
        int right = 0;
    };
    struct Text {
        std::vector<uint8_t> bytes;
        Followed followed[N_TIERS];  // by tier
        int found[N_TIERS][LONGEST + 1] = {}, unmatched = 0;
    };

    // Of memory for the places up to `place`.
    uint8_t* room(int64_t slot, int64_t place) {
        if (size_t(slot) >= texts_.size()) texts_.resize(slot + 1);
        std::vector<uint8_t>& bytes = texts_[slot].bytes;
        if (size_t(place) >= bytes.size()) bytes.resize(2 * size_t(place) + 64);
        return bytes.data();
    }

    std::vector<Text> texts_;
};

}  // namespace specdec
