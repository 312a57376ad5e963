// The compiled loops of qtrunk, one table of functions for each instruction set.
//
// isa.cpp is compiled once per instruction set with different compiler flags; module.cpp picks the best table that the
// processor at hand can run. All paths compute the same bits: tests compare each with a NumPy twin.
#pragma once
#include <cstddef>
#include <cstdint>

namespace qtrunk {

struct LinkParameters {
    const uint8_t* alice_seed;  // 32 octets each
    const uint8_t* bob_seed;
    double candidate_probability;
    const uint32_t* intensity_thresholds;  // cumulative, levels - 1 of them
    int levels;
    uint32_t alice_basis_threshold;  // of 65536: below is the key basis
    uint32_t bob_basis_threshold;
    const uint64_t* level_limits;  // [levels] largest of the level's limits
    const uint64_t* limits;        // [levels][4 states of Alice][2 bases of Bob][3] of 2^53: cumulative shares of a
                                   // candidate: only the first detector, only the second, both
    int64_t dead_pulses;
    double afterpulse_mean;  // charges that let go after the dead time, for each avalanche
    double afterpulse_first, afterpulse_last, afterpulse_inverse;  // lag = (first - u (first - last)) ^ inverse, in gates
};

struct LinkResult {
    size_t clicks;
    uint64_t reached;  // pulses done
    bool is_full;      // more charges waiting than there is room for
};

struct PlainParameters {
    double probability;
    uint32_t basis_threshold;
    uint32_t level_limits[2];  // of 2^32, cumulative shares of clicks
    uint32_t error_limits[4];  // of 2^31: for three levels in matched bases, and in mismatched ones
};

struct QcCode {
    int columns, rows, lift;
    const int32_t* row_start;  // [rows + 1]
    const int32_t* column;     // [edges]
    const int32_t* shift;      // [edges]
};

struct CascadeParameters {
    const uint8_t* bits;  // [bits_count] zeros and ones; bit i is bit i / frames of frame i % frames
    size_t bits_count;
    uint32_t frames;         // 1 to 64
    uint32_t length;         // of a frame, 64 to 65536: at least bits_count / frames; what is left over is zeros
    const uint32_t* blocks;  // [passes] block sizes of a frame's passes
    uint32_t passes;
    uint32_t extras;         // more passes, in halves, for all frames where a hash over them shows that errors are left
    uint32_t cover;          // so many bits of a frame may be searched at the same time
    const uint16_t* mixers;  // [passes + extras][8] permutations; the first pass keeps the order
    const uint8_t* check_key;  // 16 octets
};

// One end of a batch. Both ends see the same mismatches, so they ask the same questions in the same order.
class CascadeParty {
   public:
    virtual ~CascadeParty() = default;
    virtual size_t questions() const = 0;                   // open now; none: it is over
    virtual void parities(uint8_t* out) const = 0;          // of the own bits, one for each question, packed, first on top
    virtual bool learn(const uint8_t* mismatches) = 0;      // both ends' parities XORed; false: they contradict themselves
    virtual void errors(uint8_t* out) const = 0;            // [bits_count] where the ends differ, as far as known
    virtual size_t errors_found() const = 0;
    virtual bool is_checked() const = 0;                    // the hash over all frames has come out equal
};

struct Kernels {
    const char* name;
    LinkResult (*sample_link)(uint64_t* rng, uint64_t start, uint64_t count, const LinkParameters& p, int64_t* memory,
                              size_t memory_room, uint64_t* out_positions, uint8_t* out_flags, uint64_t* tally, size_t room);
    size_t (*sample_plain)(uint64_t* rng, uint64_t start, uint64_t count, const PlainParameters& p, uint64_t* positions,
                           uint8_t* attributes, size_t capacity, uint64_t* reached);
    void (*stream_words)(const uint8_t* seed, const uint64_t* positions, size_t count, uint64_t* words);
    void (*decode_settings)(const uint64_t* words, size_t count, const uint32_t* thresholds, int levels,
                            uint32_t basis_threshold, uint8_t* intensity, uint8_t* basis, uint8_t* bit);
    void (*decode_bases)(const uint64_t* words, size_t count, uint32_t basis_threshold, uint8_t* basis);
    size_t (*select_masked)(const uint8_t* values, const uint8_t* mask, size_t count, uint8_t* out);
    void (*tally)(const uint8_t* values, size_t count, uint64_t* counts);
    void (*ldpc_syndrome)(const QcCode& code, const uint8_t* bits, size_t frames, uint8_t* syndromes);
    void (*ldpc_decode)(const QcCode& code, const uint8_t* syndromes, const int8_t* channel, size_t frames, int iterations_max,
                        uint8_t* errors, int32_t* iterations);
    void (*toeplitz)(const uint8_t* bits, size_t n, const uint8_t* seed, size_t l, uint8_t* out);
    void (*poly_hash)(const uint8_t key[16], const uint8_t* data, size_t octets, uint8_t state[16]);
    CascadeParty* (*new_cascade)(const CascadeParameters& p);
    size_t (*encode_gaps)(const uint64_t* positions, size_t count, uint64_t limit, uint8_t* out);  // 0: refused
    bool (*decode_gaps)(const uint8_t* octets, size_t size, size_t count, uint64_t limit, uint64_t* positions);
};

const Kernels* portable_kernels();
const Kernels* avx2_kernels();    // nullptr where not compiled in
const Kernels* avx512_kernels();  // nullptr where not compiled in

// Width of the words in which gaps are written (gaps.inc).
inline size_t gap_octets(size_t count, uint64_t limit) { return limit / 64 < count ? 1 : limit / 16384 < count ? 2 : 4; }

}  // namespace qtrunk
