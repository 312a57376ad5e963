// The compiled loops of qtrunk, one table of functions for each instruction set.
//
// isa.cpp is compiled once per instruction set with different compiler flags; module.cpp picks the best table that the
// processor at hand can run. All paths compute the same bits: tests compare each with a NumPy twin.
#pragma once
#include <cstddef>
#include <cstdint>

namespace qtrunk {

struct ThinParameters {
    const uint32_t* intensity_thresholds;  // cumulative, levels - 1 of them
    int levels;
    uint32_t alice_basis_threshold;  // of 65536: below is the key basis
    uint32_t bob_basis_threshold;
    uint64_t intercept_threshold;  // of 2^32: below, Eve measures and resends
    const double* accept;          // [levels] P(click | level) / P(candidate)
    const double* outcome;         // [levels][2 matched|mismatched][2] cumulative: right only, right or wrong only
    int64_t dead_pulses;
};

struct ThinResult {
    size_t clicks;
    size_t double_clicks;
    int64_t last_click;
};

struct QcCode {
    int columns, rows, lift;
    const int32_t* row_start;  // [rows + 1]
    const int32_t* column;     // [edges]
    const int32_t* shift;      // [edges]
};

struct Kernels {
    const char* name;
    size_t (*sample_candidates)(uint64_t* rng, uint64_t start, uint64_t count, double probability, uint64_t* positions,
                                size_t capacity, uint64_t* reached);
    ThinResult (*thin_clicks)(uint64_t* rng, const uint64_t* positions, const uint64_t* alice, const uint64_t* bob,
                              size_t count, const ThinParameters& p, int64_t last_click, uint64_t* out_positions,
                              uint8_t* out_basis, uint8_t* out_bit);
    void (*ldpc_syndrome)(const QcCode& code, const uint8_t* bits, uint8_t* syndrome);
    void (*ldpc_decode)(const QcCode& code, const uint8_t* syndromes, const int8_t* channel, size_t frames,
                        int iterations_max, uint8_t* errors, int32_t* iterations);
    void (*middle_product)(uint64_t* y, const uint64_t* a, const uint64_t* b, size_t words, uint64_t* scratch);
    void (*poly_hash)(const uint8_t key[16], const uint8_t* data, size_t octets, uint8_t state[16]);
};

const Kernels* portable_kernels();
const Kernels* avx2_kernels();    // nullptr where not compiled in
const Kernels* avx512_kernels();  // nullptr where not compiled in

size_t middle_size(size_t words);           // the next size at or above that middle_product can take
size_t middle_scratch_words(size_t words);

}  // namespace qtrunk
