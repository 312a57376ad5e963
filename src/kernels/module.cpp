// The Python face of the kernels: checks of shapes, the interpreter lock released, arrays in and out.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif
#include <algorithm>
#include <cmath>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.hpp"

namespace nb = nanobind;
using namespace qtrunk;

#include "container.inc"
#include "keyids.inc"

#if !defined(QTRUNK_X86)
namespace qtrunk {
const Kernels* avx2_kernels() { return nullptr; }
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace qtrunk
#endif

namespace {

template <class T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using MutableVector = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Matrix = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using Array = nb::ndarray<nb::numpy, T, nb::ndim<1>>;
template <class T>
using Array2 = nb::ndarray<nb::numpy, T, nb::ndim<2>>;

bool runs_here(const std::string& name) {
    if (name == "portable") return true;
#if defined(QTRUNK_X86)
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("aes");
    if (name == "avx2") return avx2_kernels() && v3;
    if (name == "avx512")
        return avx512_kernels() && v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("vaes") &&
               __builtin_cpu_supports("gfni");
#endif
    return false;
}

const Kernels* table(const std::string& name) {
    if (!runs_here(name)) throw std::invalid_argument("path '" + name + "' does not run on this processor");
    return name == "avx512" ? avx512_kernels() : name == "avx2" ? avx2_kernels() : portable_kernels();
}

const Kernels* best() { return table(runs_here("avx512") ? "avx512" : runs_here("avx2") ? "avx2" : "portable"); }

const Kernels* in_force = nullptr;

const Kernels& kernels() { return *in_force; }

template <class T>
Array<T> give(std::unique_ptr<T[]> data, size_t count) {
    T* raw = data.release();
    nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return Array<T>(raw, {count}, owner);
}

void require(bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(what);
}

nb::tuple sample_link(MutableVector<uint64_t> rng, MutableVector<int64_t> memory, MutableVector<uint64_t> tally, uint64_t start, uint64_t count,
                      Vector<uint8_t> alice_seed, Vector<uint8_t> bob_seed, double candidate_probability,
                      Vector<uint32_t> thresholds, uint32_t alice_basis_threshold, uint32_t bob_basis_threshold,
                      Vector<uint64_t> limits, int64_t dead_pulses, double afterpulse_mean, double afterpulse_first,
                      double afterpulse_last, double afterpulse_inverse) {
    const size_t levels = thresholds.shape(0) + 1;
    require(rng.shape(0) == 32, "rng: shape (32,) is needed");
    require(memory.shape(0) >= 64, "memory: at least 64 numbers");
    require(memory(2) >= 0 && static_cast<size_t>(memory(2)) + 3 <= memory.shape(0), "memory: made by new_memory only");
    require(alice_seed.shape(0) == 32 && bob_seed.shape(0) == 32, "seeds: 32 octets each");
    require(candidate_probability >= 0.0 && candidate_probability < 1.0, "candidate_probability: at least 0 and below 1");
    require(count < (1ull << 61) && start < (1ull << 61), "start, count: below 2**61");
    require(tally.shape(0) == 256, "tally: shape (256,) is needed");
    require(levels <= 4, "intensity_thresholds: up to 3");
    require(limits.shape(0) == 24 * levels, "limits: shape (intensities, 4, 2, 3)");
    require(dead_pulses >= 0, "dead_pulses: not negative");
    require(afterpulse_mean >= 0 && afterpulse_mean < 1, "afterpulse_mean: at least 0 and below 1");
    std::vector<uint64_t> level_limits(levels, 0);
    for (size_t i = 0; i < 24 * levels; ++i) level_limits[i / 24] = std::max(level_limits[i / 24], limits(i));
    const LinkParameters p{alice_seed.data(),     bob_seed.data(),       candidate_probability, thresholds.data(),
                           static_cast<int>(levels), alice_basis_threshold, bob_basis_threshold, level_limits.data(),
                           limits.data(),         dead_pulses,           afterpulse_mean,       afterpulse_first,
                           afterpulse_last,       afterpulse_inverse};
    const double mean = candidate_probability * static_cast<double>(count) / (1 - afterpulse_mean);
    size_t room = static_cast<size_t>(mean + 8 * std::sqrt(mean)) + 8192, clicks = 0;
    std::unique_ptr<uint64_t[]> positions(new uint64_t[room]);
    std::unique_ptr<uint8_t[]> flags(new uint8_t[room]);
    {
        nb::gil_scoped_release released;
        for (uint64_t at = 0; at < count;) {
            if (room - clicks < 8192) {
                std::unique_ptr<uint64_t[]> more_positions(new uint64_t[2 * room]);
                std::unique_ptr<uint8_t[]> more_flags(new uint8_t[2 * room]);
                std::copy_n(positions.get(), clicks, more_positions.get());
                std::copy_n(flags.get(), clicks, more_flags.get());
                positions = std::move(more_positions);
                flags = std::move(more_flags);
                room *= 2;
            }
            const LinkResult result =
                kernels().sample_link(rng.data(), start + at, count - at, p, memory.data(), memory.shape(0),
                                      positions.get() + clicks, flags.get() + clicks, tally.data(),
                                      room - clicks);
            clicks += result.clicks;
            at += result.reached;
            if (result.is_full) throw std::runtime_error("more afterpulses are waiting than memory has room for");
        }
    }
    return nb::make_tuple(give(std::move(positions), clicks), give(std::move(flags), clicks));
}

nb::tuple sample_plain(MutableVector<uint64_t> rng, uint64_t start, uint64_t count, double probability,
                       uint32_t basis_threshold, Vector<uint32_t> level_limits, Vector<uint32_t> error_limits) {
    require(rng.shape(0) == 32, "rng: shape (32,) is needed");
    require(probability > 0.0 && probability < 1.0, "probability: above 0 and below 1");
    require(count < (1ull << 61) && start < (1ull << 61), "start, count: below 2**61");
    require(basis_threshold <= 65536, "basis_threshold: at most 65536");
    require(level_limits.shape(0) == 2, "level_limits: two for three intensities");
    require(error_limits.shape(0) == 4, "error_limits: three intensities and mismatched bases");
    PlainParameters p{probability, basis_threshold, {level_limits(0), level_limits(1)}, {}};
    for (int i = 0; i < 4; ++i) p.error_limits[i] = error_limits(i);
    const double mean = probability * static_cast<double>(count);
    const size_t room = static_cast<size_t>(mean + 10 * std::sqrt(mean)) + 4096;
    std::unique_ptr<uint64_t[]> positions(new uint64_t[room]);
    std::unique_ptr<uint8_t[]> attributes(new uint8_t[room]);
    uint64_t reached = 0;
    size_t found = 0;
    {
        nb::gil_scoped_release released;
        found = kernels().sample_plain(rng.data(), start, count, p, positions.get(), attributes.get(), room, &reached);
    }
    if (reached < count) throw std::runtime_error("ten standard deviations more clicks than expected");
    return nb::make_tuple(give(std::move(positions), found), give(std::move(attributes), found));
}

Array<uint64_t> stream_words(Vector<uint8_t> seed, Vector<uint64_t> positions) {
    require(seed.shape(0) == 32, "seed: 32 octets");
    const size_t count = positions.shape(0), whole = count & ~size_t{15};
    std::unique_ptr<uint64_t[]> words(new uint64_t[count + 1]);
    {
        nb::gil_scoped_release released;
        // The kernel reads and writes in sixteens: the last few go through buffers that have room for it.
        kernels().stream_words(seed.data(), positions.data(), whole, words.get());
        uint64_t last[24] = {}, made[24];
        std::copy(positions.data() + whole, positions.data() + count, last);
        kernels().stream_words(seed.data(), last, count - whole, made);
        std::copy_n(made, count - whole, words.get() + whole);
    }
    return give(std::move(words), count);
}

nb::tuple decode_settings(Vector<uint64_t> words, Vector<uint32_t> thresholds, uint32_t basis_threshold) {
    require(thresholds.shape(0) <= 3, "intensity_thresholds: up to 3");
    const size_t count = words.shape(0);
    std::unique_ptr<uint8_t[]> intensity(new uint8_t[count + 1]), basis(new uint8_t[count + 1]), bit(new uint8_t[count + 1]);
    {
        nb::gil_scoped_release released;
        kernels().decode_settings(words.data(), count, thresholds.data(), static_cast<int>(thresholds.shape(0)) + 1,
                                  basis_threshold, intensity.get(), basis.get(), bit.get());
    }
    return nb::make_tuple(give(std::move(intensity), count), give(std::move(basis), count), give(std::move(bit), count));
}

Array<uint8_t> decode_bases(Vector<uint64_t> words, uint32_t basis_threshold) {
    const size_t count = words.shape(0);
    std::unique_ptr<uint8_t[]> basis(new uint8_t[count + 1]);
    {
        nb::gil_scoped_release released;
        kernels().decode_bases(words.data(), count, basis_threshold, basis.get());
    }
    return give(std::move(basis), count);
}

Array<uint8_t> select_masked(Vector<uint8_t> values, Vector<uint8_t> mask) {
    const size_t count = values.shape(0);
    require(mask.shape(0) == count, "mask: one for each value");
    std::unique_ptr<uint8_t[]> out(new uint8_t[count + 64]);
    size_t kept;
    {
        nb::gil_scoped_release released;
        kept = kernels().select_masked(values.data(), mask.data(), count, out.get());
    }
    return give(std::move(out), kept);
}

Array<uint64_t> tally(Vector<uint8_t> values) {
    std::unique_ptr<uint64_t[]> counts(new uint64_t[256]);
    {
        nb::gil_scoped_release released;
        kernels().tally(values.data(), values.shape(0), counts.get());
    }
    return give(std::move(counts), 256);
}

QcCode code_of(int columns, int rows, int lift, const Vector<int32_t>& row_start, const Vector<int32_t>& column,
               const Vector<int32_t>& shift) {
    require(columns > 0 && rows > 0 && lift > 0 && lift % 64 == 0, "lift: a positive multiple of 64");
    require(static_cast<int64_t>(columns) * lift < (1 << 30) && static_cast<int64_t>(rows) * lift < (1 << 30),
            "columns, rows: less than 2**30 bits and checks");
    require(row_start.shape(0) == static_cast<size_t>(rows) + 1 && row_start(0) == 0, "row_start: shape (rows + 1,)");
    const size_t edges = column.shape(0);
    require(shift.shape(0) == edges && static_cast<size_t>(row_start(rows)) == edges, "column, shift: one per edge");
    for (size_t e = 0; e < edges; ++e)
        require(column(e) >= 0 && column(e) < columns && shift(e) >= 0 && shift(e) < lift,
                "column, shift: out of range");
    for (int r = 0; r < rows; ++r) {
        const int64_t degree = static_cast<int64_t>(row_start(r + 1)) - row_start(r);
        require(degree >= 2 && degree <= 128, "row_start: rows have 2 to 128 edges");
    }
    std::vector<int> last_row(static_cast<size_t>(columns), -1);
    for (int r = 0; r < rows; ++r) {
        // The decoder takes the checks of a row side by side, so no bit may lie in two of them.
        for (int e = row_start(r); e < row_start(r + 1); ++e) {
            require(last_row[static_cast<size_t>(column(e))] != r, "column: twice in one row");
            last_row[static_cast<size_t>(column(e))] = r;
        }
    }
    return {columns, rows, lift, row_start.data(), column.data(), shift.data()};
}

// All octets together. Through plain pointers and counts, or the compiler asks the array at each step and is slower than a
// decoder's whole iteration.
template <class A>
auto any_of(const A& array) {
    const auto* data = array.data();
    const size_t size = array.size();
    std::decay_t<decltype(*data)> any = 0;
    for (size_t i = 0; i < size; ++i) any = static_cast<decltype(any)>(any | data[i]);
    return any;
}

void require_bits(const Matrix<uint8_t>& matrix, const char* what) { require(any_of(matrix) <= 1, what); }

template <class T>
Array2<T> give(std::unique_ptr<T[]> data, size_t rows, size_t columns) {
    T* raw = data.release();
    nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return Array2<T>(raw, {rows, columns}, owner);
}

Array2<uint8_t> ldpc_syndrome(int columns, int rows, int lift, Vector<int32_t> row_start, Vector<int32_t> column,
                              Vector<int32_t> shift, Matrix<uint8_t> bits) {
    const QcCode code = code_of(columns, rows, lift, row_start, column, shift);
    const size_t frames = bits.shape(0), n = static_cast<size_t>(columns) * lift, m = static_cast<size_t>(rows) * lift;
    require(bits.shape(1) == n, "bits: shape (frames, n)");
    require_bits(bits, "bits: zeros and ones");
    std::unique_ptr<uint8_t[]> out(new uint8_t[frames * m + 1]);
    {
        nb::gil_scoped_release released;
        kernels().ldpc_syndrome(code, bits.data(), frames, out.get());
    }
    return give(std::move(out), frames, m);
}

nb::tuple ldpc_decode(int columns, int rows, int lift, Vector<int32_t> row_start, Vector<int32_t> column,
                      Vector<int32_t> shift, Matrix<uint8_t> syndromes, Vector<int8_t> channel, int iterations_max) {
    const QcCode code = code_of(columns, rows, lift, row_start, column, shift);
    const size_t frames = syndromes.shape(0), n = static_cast<size_t>(columns) * lift;
    const size_t m = static_cast<size_t>(rows) * lift;
    require(syndromes.shape(1) == m, "syndromes: shape (frames, m)");
    require(channel.shape(0) == n, "channel: shape (n,)");
    require(iterations_max >= 1, "iterations_max: at least 1");
    require_bits(syndromes, "syndromes: zeros and ones");
    require(any_of(channel) >= 0, "channel: not negative");
    std::unique_ptr<uint8_t[]> errors(new uint8_t[frames * n + 1]);
    std::unique_ptr<int32_t[]> iterations(new int32_t[frames + 1]);
    {
        nb::gil_scoped_release released;
        kernels().ldpc_decode(code, syndromes.data(), channel.data(), frames, iterations_max, errors.get(),
                              iterations.get());
    }
    return nb::make_tuple(give(std::move(errors), frames, n), give(std::move(iterations), frames));
}

// Zeros that the compiler may not leave out, though nobody reads them.
template <class T>
void wipe(T& container) {
    std::fill(std::begin(container), std::end(container), 0);
    __asm__ __volatile__("" : : "r"(std::data(container)) : "memory");
}

Array<uint8_t> toeplitz_hash(Vector<uint8_t> bits, size_t n, Vector<uint8_t> seed, size_t l) {
    require(n >= 1 && n <= (1ull << 32) && l >= 1 && l <= n, "bits_count, output_bits: 1 <= output_bits <= bits_count");
    require(bits.shape(0) == (n + 7) / 8, "bits: ceil(bits_count / 8) octets");
    require(seed.shape(0) == (n + l - 1 + 7) / 8, "seed: ceil((bits_count + output_bits - 1) / 8) octets");
    const size_t octets = (l + 7) / 8;
    std::unique_ptr<uint8_t[]> out(new uint8_t[octets]);
    {
        nb::gil_scoped_release released;
        kernels().toeplitz(bits.data(), n, seed.data(), l, out.get());
    }
    return give(std::move(out), octets);
}

nb::bytes poly_hash(nb::bytes key, Vector<uint8_t> data, nb::bytes state) {
    require(key.size() == 16, "key: 16 octets");
    require(state.size() == 16, "state: 16 octets");
    uint8_t k[16], h[16];
    std::copy_n(static_cast<const uint8_t*>(key.data()), 16, k);
    std::copy_n(static_cast<const uint8_t*>(state.data()), 16, h);
    {
        nb::gil_scoped_release released;
        kernels().poly_hash(k, data.data(), data.shape(0), h);
        wipe(k);
    }
    return nb::bytes(reinterpret_cast<const char*>(h), 16);
}

// One end of a Cascade batch, made on the path in force. A call at a time: the lock is not held in them.
class CascadeBatch {
   public:
    CascadeBatch(Vector<uint8_t> bits, uint32_t frames, uint32_t length, Vector<uint32_t> blocks, uint32_t extras, uint32_t cover,
                 Vector<uint16_t> mixers, Vector<uint8_t> check_key)
        : bits_(bits.shape(0)) {
        require(frames >= 1 && frames <= 64, "frames: 1 to 64");
        require(length >= 64 && length <= 65536, "length: 64 to 65536");
        require(bits_ <= static_cast<size_t>(frames) * length, "bits: more than the frames hold");
        const size_t passes = blocks.shape(0);
        require(passes >= 1 && passes <= 32 && extras <= 32, "blocks, extras: 1 to 32 passes, up to 32 more");
        require(mixers.shape(0) == 8 * (passes + extras), "mixers: eight for each pass");
        for (size_t i = 0; i < passes; ++i) require(blocks(i) >= 2, "blocks: at least 2 bits");
        require(check_key.shape(0) == 16, "check_key: 16 octets");
        uint8_t any = 0;
        for (size_t i = 0; i < bits_; ++i) any |= bits.data()[i];
        require(any <= 1, "bits: zeros and ones");
        nb::gil_scoped_release released;
        party_.reset(kernels().new_cascade({bits.data(), bits_, frames, length, blocks.data(), static_cast<uint32_t>(passes),
                                            extras, cover, mixers.data(), check_key.data()}));
    }

    size_t questions() const { return party_->questions(); }
    size_t errors_found() const { return party_->errors_found(); }
    bool is_checked() const { return party_->is_checked(); }

    Array<uint8_t> parities() const {
        const size_t octets = (party_->questions() + 7) / 8;
        std::unique_ptr<uint8_t[]> out(new uint8_t[octets + 1]);
        {
            nb::gil_scoped_release released;
            party_->parities(out.get());
        }
        return give(std::move(out), octets);
    }

    bool learn(Vector<uint8_t> mismatches) {
        require(mismatches.shape(0) == (party_->questions() + 7) / 8, "mismatches: one bit for each question");
        nb::gil_scoped_release released;
        return party_->learn(mismatches.data());
    }

    Array<uint8_t> errors() const {
        std::unique_ptr<uint8_t[]> out(new uint8_t[bits_ + 1]);
        {
            nb::gil_scoped_release released;
            party_->errors(out.get());
        }
        return give(std::move(out), bits_);
    }

   private:
    size_t bits_;
    std::unique_ptr<CascadeParty> party_;
};

constexpr uint64_t LIMIT_MAX = 1ull << 48;

Array<uint8_t> encode_gaps(Vector<uint64_t> positions, uint64_t limit) {
    const size_t count = positions.shape(0);
    require(limit <= LIMIT_MAX, "limit: at most 2**48");
    std::unique_ptr<uint8_t[]> exact;
    size_t used = 0;
    {
        nb::gil_scoped_release released;
        // A word for each click, and one for each 2^8 - 1 (2^16 - 1, 2^32 - 1) slots at most.
        const size_t octets = gap_octets(count, limit);
        const uint64_t longest = (1ull << (8 * octets)) - 1;
        std::unique_ptr<uint8_t[]> out(new uint8_t[octets * (count + static_cast<size_t>(limit / longest)) + 1]);
        used = kernels().encode_gaps(positions.data(), count, limit, out.get());
        exact.reset(new uint8_t[used + 1]);
        std::copy_n(out.get(), used, exact.get());
    }
    require(used > 0 || count == 0, "positions: strictly ascending and below the limit");
    return give(std::move(exact), used);
}

Array<uint64_t> decode_gaps(Vector<uint8_t> octets, size_t count, uint64_t limit) {
    require(limit <= LIMIT_MAX, "limit: at most 2**48");
    require(count <= octets.shape(0), "count: more positions than octets");
    std::unique_ptr<uint64_t[]> out(new uint64_t[count + 1]);
    bool is_valid;
    {
        nb::gil_scoped_release released;
        is_valid = kernels().decode_gaps(octets.data(), octets.shape(0), count, limit, out.get());
    }
    require(is_valid, "octets: not the gaps of so many positions below the limit");
    return give(std::move(out), count);
}

size_t container_size(size_t count, size_t key_octets) { return container_octets(count, key_octets); }

void key_container(Vector<uint8_t> ids, Vector<uint8_t> material, size_t key_octets, MutableVector<uint8_t> out) {
    const size_t count = ids.shape(0) / 16;
    require(ids.shape(0) == 16 * count, "ids: 16 octets for each key");
    require(key_octets > 0 && key_octets <= 1 << 20 && count <= 1 << 20, "key_octets: from 1 to 2**20, for at most 2**20 keys");
    require(material.shape(0) == count * key_octets, "material: key_octets octets for each key ID");
    require(out.shape(0) == container_octets(count, key_octets), "out: exactly as long as the container");
    nb::gil_scoped_release released;
    write_container(ids.data(), material.data(), count, key_octets, out.data());
}

KeyPlaces key_places(uint32_t segment, uint32_t first, uint32_t step, size_t count, uint32_t key_octets) {
    require(key_octets >= 1 && key_octets <= 1024, "key_octets: from 1 to 1024");
    require(count >= 1 && count <= 1 << 20 && first + uint64_t{step} * (count - 1) < 1 << 20, "units: all below 2**20");
    return {segment, first, step, count, key_octets};
}

nb::bytes key_id_tag_blocks(uint32_t segment, uint32_t first, uint32_t step, size_t count, uint32_t key_octets) {
    const KeyPlaces places = key_places(segment, first, step, count, key_octets);
    std::vector<uint8_t> out(16 * count);
    write_tag_blocks(places, out.data());
    return nb::bytes(out.data(), out.size());
}

nb::bytes key_id_mask_blocks(nb::bytes tags) {
    require(tags.size() % 16 == 0, "tags: 16 octets for each key");
    std::vector<uint8_t> out(tags.size());
    write_mask_blocks(static_cast<const uint8_t*>(tags.data()), tags.size() / 16, out.data());
    return nb::bytes(out.data(), out.size());
}

nb::bytes key_ids(uint32_t segment, uint32_t first, uint32_t step, size_t count, uint32_t key_octets, nb::bytes tags, nb::bytes masks) {
    const KeyPlaces places = key_places(segment, first, step, count, key_octets);
    require(tags.size() == 16 * count && masks.size() == 16 * count, "tags, masks: 16 octets for each key");
    std::vector<uint8_t> out(16 * count);
    write_key_ids(places, static_cast<const uint8_t*>(tags.data()), static_cast<const uint8_t*>(masks.data()), out.data());
    return nb::bytes(out.data(), out.size());
}

}  // namespace

NB_MODULE(_kernels, m) {
    in_force = best();
    nb::set_leak_warnings(false);  // a process that ends in the middle of a block is no leak
#if defined(__GLIBC__)
    // Arrays of a block's size come and go all the time: the allocator keeps their pages, because new ones from the system,
    // zeroed one by one at first touch, cost several times what most kernels do with them. One arena, so that all threads
    // share what is kept.
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, 1 << 29);
    mallopt(M_ARENA_MAX, 1);
#endif
    m.def("path", [] { return std::string(kernels().name); });
    m.def("paths", [] {
        nb::list names;
        for (const char* name : {"portable", "avx2", "avx512"})
            if (runs_here(name)) names.append(name);
        return names;
    });
    m.def("force_path", [](const std::string& name) { in_force = name.empty() ? best() : table(name); });
    // noconvert: an array of another type or layout is refused, never copied behind the caller's back (a copied `rng` would
    // not move on, and the next call would draw the same numbers again).
    const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
    const auto number = [](const char* name) { return nb::arg(name); };
    m.def("sample_link", &sample_link, array("rng"), array("memory"), array("tally"), number("start"),
          number("count"), array("alice_seed"), array("bob_seed"), number("candidate_probability"), array("intensity_thresholds"),
          number("alice_basis_threshold"), number("bob_basis_threshold"), array("limits"), number("dead_pulses"),
          number("afterpulse_mean"), number("afterpulse_first"), number("afterpulse_last"),
          number("afterpulse_inverse"));
    m.def("sample_plain", &sample_plain, array("rng"), number("start"), number("count"), number("probability"),
          number("basis_threshold"), array("level_limits"), array("error_limits"));
    m.def("stream_words", &stream_words, array("seed"), array("positions"));
    m.def("decode_settings", &decode_settings, array("words"), array("intensity_thresholds"),
          number("basis_threshold"));
    m.def("decode_bases", &decode_bases, array("words"), number("basis_threshold"));
    m.def("select", &select_masked, array("values"), array("mask"));
    m.def("tally", &tally, array("values"));
    m.def("ldpc_syndrome", &ldpc_syndrome, number("columns"), number("rows"), number("lift"), array("row_start"),
          array("column"), array("shift"), array("bits"));
    m.def("ldpc_decode", &ldpc_decode, number("columns"), number("rows"), number("lift"), array("row_start"),
          array("column"), array("shift"), array("syndromes"), array("channel"), number("iterations_max"));
    m.def("toeplitz_hash", &toeplitz_hash, array("bits"), number("bits_count"), array("seed"), number("output_bits"));
    m.def("poly_hash", &poly_hash, number("key"), array("data"), number("state"));
    nb::class_<CascadeBatch>(m, "CascadeBatch")
        .def(nb::init<Vector<uint8_t>, uint32_t, uint32_t, Vector<uint32_t>, uint32_t, uint32_t, Vector<uint16_t>, Vector<uint8_t>>(),
             array("bits"), number("frames"), number("length"), array("blocks"), number("extras"), number("cover"), array("mixers"),
             array("check_key"))
        .def_prop_ro("questions", &CascadeBatch::questions)
        .def_prop_ro("errors_found", &CascadeBatch::errors_found)
        .def_prop_ro("is_checked", &CascadeBatch::is_checked)
        .def("parities", &CascadeBatch::parities)
        .def("learn", &CascadeBatch::learn, array("mismatches"))
        .def("errors", &CascadeBatch::errors);
    m.def("encode_gaps", &encode_gaps, array("positions"), number("limit"));
    m.def("decode_gaps", &decode_gaps, array("octets"), number("count"), number("limit"));
    m.def("container_size", &container_size, number("count"), number("key_octets"));
    m.def("key_container", &key_container, array("ids"), array("material"), number("key_octets"), array("out"));
    m.def("key_id_tag_blocks", &key_id_tag_blocks, number("segment"), number("first"), number("step"), number("count"), number("key_octets"));
    m.def("key_id_mask_blocks", &key_id_mask_blocks, nb::arg("tags"));
    m.def("key_ids", &key_ids, number("segment"), number("first"), number("step"), number("count"), number("key_octets"),
          nb::arg("tags"), nb::arg("masks"));
}
