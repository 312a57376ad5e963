// One instruction set's table of kernels. CMake compiles this file once for each, with its flags and QTRUNK_ISA set.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#if defined(__PCLMUL__) || defined(__AES__)
#include <immintrin.h>
#endif

#include "kernels.hpp"

namespace qtrunk {
namespace {
#include "gf16.inc"
#include "basis.inc"

#include "aes.inc"
#include "afft.inc"
#include "clicks.inc"
#include "gaps.inc"
#include "gf2.inc"
#include "cascade.inc"  // hashes with gf2.inc
#include "lanes.inc"
#include "ldpc.inc"
#include "sift.inc"
#include "toeplitz.inc"
}  // namespace

#define QTRUNK_JOIN_(a, b) a##b
#define QTRUNK_JOIN(a, b) QTRUNK_JOIN_(a, b)
#define QTRUNK_TEXT_(a) #a
#define QTRUNK_TEXT(a) QTRUNK_TEXT_(a)

const Kernels* QTRUNK_JOIN(QTRUNK_ISA, _kernels)() {
    static const Kernels table{QTRUNK_TEXT(QTRUNK_ISA), sample_link, sample_plain, stream_words,
                               decode_settings, decode_bases, select_masked, tally,
                               ldpc_syndrome,           ldpc_decode,       toeplitz, poly_hash,
                               new_cascade, encode_gaps, decode_gaps};
    return &table;
}

}  // namespace qtrunk
