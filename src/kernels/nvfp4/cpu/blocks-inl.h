// Blocks in vectors, compiled once an instruction set: a lane is a block, element i of kLanes
// blocks is vector i. So sums over a block run in the order of its elements, in every lane at once,
// and only reading transposes. The including file defines, inside an anonymous namespace, a struct
// Simd (portable.cpp has the smallest) and then includes this.

using F = Simd::F;
using I = Simd::I;
using U = uint32_t __attribute__((vector_size(sizeof(I))));  // where sums may wrap
constexpr int kLanes = Simd::kLanes;

inline F splat(float x) { return F{} + x; }
inline I splat(int32_t x) { return I{} + x; }
inline I bits_of(F x) { return std::bit_cast<I>(x); }
inline F float_of(I bits) { return std::bit_cast<F>(bits); }
inline F load(const float* p) {
  F x;
  std::memcpy(&x, p, sizeof(x));
  return x;
}
inline F magnitude(F x) { return float_of(bits_of(x) & 0x7fffffff); }
inline F to_float(I x) { return __builtin_convertvector(x, F); }

// --- reading ---

// Rows and columns at which the block (or tile) of each lane begins; lanes past `used` repeat the
// last one and are not stored.
struct Places {
  int64_t row[kLanes], k[kLanes];
  int used;
};

inline void load_block(const Source& source, int64_t row, int64_t k, float* out) {
  const auto* words = static_cast<const float*>(source.x);
  const auto* halves = static_cast<const uint16_t*>(source.x);
  if (!source.transposed) {
    const int64_t at = row * source.ld + k;
    if (source.dtype == DType::kF32) {
      std::memcpy(out, words + at, kBlock * sizeof(float));
    } else if (source.dtype == DType::kBF16) {
      uint32_t bits[kBlock];
      for (int i = 0; i < kBlock; ++i) bits[i] = uint32_t(halves[at + i]) << 16;
      std::memcpy(out, bits, sizeof(bits));
    } else {
      Simd::widen_halves(halves + at, out);
    }
    return;
  }
  for (int i = 0; i < kBlock; ++i) {
    const int64_t at = (k + i) * source.ld + row;
    if (source.dtype == DType::kF32)
      out[i] = words[at];
    else
      out[i] = source.dtype == DType::kBF16 ? bf16_to_float(halves[at]) : fp16_to_float(halves[at]);
  }
}

// Of a pair of rows that differ in bit kHalf of their number: exchanges the elements whose column
// differs from the row in that bit. All bits in turn transpose.
template <int kHalf, int... kColumn>
inline void exchange(F& a, F& b, std::integer_sequence<int, kColumn...>) {
  const F low =
      __builtin_shufflevector(a, b, ((kColumn & kHalf) ? kLanes + (kColumn ^ kHalf) : kColumn)...);
  b = __builtin_shufflevector(a, b, ((kColumn & kHalf) ? kLanes + kColumn : (kColumn ^ kHalf))...);
  a = low;
}

template <int kHalf = 1>
inline void transpose(F* rows) {
  if constexpr (kHalf < kLanes) {
    for (int i = 0; i < kLanes; ++i) {
      if ((i & kHalf) == 0)
        exchange<kHalf>(rows[i], rows[i + kHalf], std::make_integer_sequence<int, kLanes>());
    }
    transpose<kHalf * 2>(rows);
  }
}

// blocks: [kLanes, kBlock]
inline void gather(const float* blocks, F* x) {
  for (int part = 0; part < kBlock; part += kLanes) {
    F rows[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) rows[lane] = load(blocks + lane * kBlock + part);
    transpose(rows);
    for (int i = 0; i < kLanes; ++i) x[part + i] = rows[i];
  }
}

inline F round_to_bf16(F x) {
  const U bits = std::bit_cast<U>(x);
  const U rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const U quiet = bits | 0x400000u;
  const I nan = (bits_of(x) & 0x7fffffff) > 0x7f800000;
  return std::bit_cast<F>((nan ? quiet : rounded) & 0xffff0000u);
}

// hadamard16 on every lane.
inline void rotate(F* x) {
  constexpr uint32_t kNegative = 0xd7e8;
  for (int k = 0; k < kBlock; ++k) {
    if (kNegative >> k & 1) x[k] = -x[k];
  }
  for (int half = 1; half < kBlock; half *= 2) {
    for (int k = 0; k < kBlock; ++k) {
      if (k & half) continue;
      const F a = x[k], b = x[k + half];
      x[k] = a + b;
      x[k + half] = a - b;
    }
  }
  for (int k = 0; k < kBlock; ++k) x[k] = round_to_bf16(x[k] * 0.25f);
}

// Row `offset` of the tile of each lane.
inline void load_row(
    const Source& source, bool hadamard, const Places& places, int64_t offset, F* x) {
  alignas(64) float blocks[kLanes * kBlock];
  for (int lane = 0; lane < kLanes; ++lane)
    load_block(source, places.row[lane] + offset, places.k[lane], blocks + lane * kBlock);
  gather(blocks, x);
  if (hadamard) rotate(x);
}

// The places of groups [first, first + kLanes) of the rows [begin, end) in blocks along K, each
// `rows` rows high; neighbours along the contiguous axis of the source are neighbours here.
inline Places places_of(
    const Source& source, int64_t begin, int64_t end, int64_t rows, int64_t first) {
  const int64_t blocks = source.k / kBlock, strips = (end - begin) / rows;
  const int64_t left = blocks * strips - first;
  Places places{};
  places.used = int(left < kLanes ? left : kLanes);
  const int64_t inner_size = source.transposed ? strips : blocks;
  int64_t outer = first / inner_size, inner = first - outer * inner_size;
  for (int lane = 0; lane < kLanes; ++lane) {
    places.row[lane] = begin + (source.transposed ? inner : outer) * rows;
    places.k[lane] = (source.transposed ? outer : inner) * kBlock;
    if (lane + 1 >= places.used) continue;
    if (++inner == inner_size) {
      inner = 0;
      ++outer;
    }
  }
  return places;
}

// --- the largest magnitude ---

// Bits of magnitudes are ordered as the values are; what is not finite lies above all others.
template <class Word>
inline uint32_t largest_bits(const Word* x, int64_t n) {
  constexpr Word kSign = Word(~(Word(1) << (sizeof(Word) * 8 - 1)));
  Word best = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Word bits = Word(x[i] & kSign);
    best = bits > best ? bits : best;
  }
  return best;
}

inline float finite_or_nan(float x) {
  return x <= std::numeric_limits<float>::max() ? x : std::numeric_limits<float>::quiet_NaN();
}

inline float row_largest(const Source& source, int64_t row) {
  const int64_t at = row * source.ld;
  if (source.dtype == DType::kF32) {
    const auto* x = static_cast<const uint32_t*>(source.x) + at;
    return finite_or_nan(std::bit_cast<float>(largest_bits(x, source.k)));
  }
  const auto* x = static_cast<const uint16_t*>(source.x) + at;
  const auto bits = uint16_t(largest_bits(x, source.k));
  return finite_or_nan(source.dtype == DType::kBF16 ? bf16_to_float(bits) : fp16_to_float(bits));
}

// Of rows [row, row + count), count <= kLanes, a row a lane: for rotated or transposed sources.
inline void lanes_largest(
    const Source& source, bool hadamard, int64_t row, int64_t count, float* largest) {
  Places places{};
  I best = splat(0);
  for (int64_t k = 0; k < source.k; k += kBlock) {
    for (int lane = 0; lane < kLanes; ++lane) {
      places.row[lane] = row + (lane < count ? lane : count - 1);
      places.k[lane] = k;
    }
    F x[kBlock];
    load_row(source, hadamard, places, 0, x);
    for (const F& element : x) {
      const I bits = bits_of(element) & 0x7fffffff;
      best = bits > best ? bits : best;
    }
  }
  for (int lane = 0; lane < int(count); ++lane)
    largest[lane] = finite_or_nan(std::bit_cast<float>(best[lane]));
}

float largest(const Source& source, bool hadamard, int64_t begin, int64_t end, float* row_amax) {
  const bool by_lanes = hadamard || source.transposed;
  float best = 0.0f;
  for (int64_t row = begin; row < end; row += kLanes) {
    const int64_t count = end - row < kLanes ? end - row : kLanes;
    float values[kLanes];
    if (by_lanes) lanes_largest(source, hadamard, row, count, values);
    for (int64_t i = 0; i < count; ++i) {
      const float value = by_lanes ? values[i] : row_largest(source, row + i);
      if (row_amax != nullptr) row_amax[row - begin + i] = value;
      if (best == best && !(best >= value)) best = value;  // a NaN comes in and stays
    }
  }
  return best;
}
