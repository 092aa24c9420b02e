// Packing: rows are cut into groups of 16 and interleaved so that a vector lane is a row (params.h
// has the layouts). Every type comes down to transposing 16 rows of small pieces, 4 bytes for
// quantised blocks and one element for floats; stored data may lie at any address.
#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "base/shape.h"
#include "kernels/nvfp4/codec.h"
#include "kernels/qgemm/arena.h"
#include "kernels/qgemm/packed.h"

namespace longspur::kernels::qgemm {

namespace {

// Bytes of scales and of codes in a stored block, which begins with the scales.
constexpr int64_t scale_bytes(WeightKind kind) { return kind == kQ4_1Kind ? 4 : 2; }
constexpr int64_t code_bytes(WeightKind kind) { return kind == kQ8_0Kind ? 32 : 16; }

int64_t group_size(WeightKind kind, int64_t k) {
  switch (kind) {
    case kF32Kind:
      return k * kGroupRows * 4;
    case kF16Kind:
    case kBF16Kind:
      return k * kGroupRows * 2;
    default:  // NVFP4 too has two bytes of scales in 32 elements
      return k / kBlock * kGroupRows * (scale_bytes(kind) + code_bytes(kind));
  }
}

template <class T>
T load(const std::byte* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

using RowPointers = std::array<const std::byte*, kGroupRows>;

// rows[r] + at holds `count` pieces of type T; piece c of row r goes to out[c][r].
template <class T>
void transpose_pieces(const RowPointers& rows, int64_t at, int64_t count, T flip, std::byte* out) {
  for (int64_t r = 0; r < kGroupRows; ++r) {
    const std::byte* from = rows[size_t(r)] + at;
    for (int64_t c = 0; c < count; ++c) {
      const T piece = T(load<T>(from + c * int64_t(sizeof(T))) ^ flip);
      std::memcpy(out + (c * kGroupRows + r) * int64_t(sizeof(T)), &piece, sizeof piece);
    }
  }
}

template <WeightKind kKind>
void pack_blocks(const RowPointers& rows, int64_t k, std::byte* out) {
  constexpr int64_t kScale = scale_bytes(kKind), kCode = code_bytes(kKind);
  for (int64_t block = 0; block < k / kBlock; ++block) {
    const int64_t at = block * (kScale + kCode);
    transpose_pieces<uint32_t>(rows, at + kScale, kCode / 4, kKind == kQ8_0Kind ? 0x80808080u : 0u,
                               out);
    out += kCode * kGroupRows;
    transpose_pieces<uint16_t>(rows, at, kScale / 2, 0, out);
    out += kScale * kGroupRows;
  }
}

// A stored NVFP4 block has the scales of four sixteens, then their codes: byte j holds element j
// low, j + 8 high. In memory a byte holds element k of one sixteen low, of the next one high.
struct StoredNvfp4 {
  uint8_t scale[4];
  uint64_t codes[4];
};
StoredNvfp4 load_nvfp4(const std::byte* at) {
  StoredNvfp4 block;
  std::memcpy(block.scale, at, sizeof block.scale);
  std::memcpy(block.codes, at + sizeof block.scale, sizeof block.codes);
  return block;
}

void pack_nvfp4(const RowPointers& rows, int64_t k, std::byte* out) {
  constexpr int64_t kStored = 36, kPacked = 288;
  constexpr uint64_t kLow = 0x0f0f0f0f0f0f0f0f, kHigh = ~kLow;
  for (int64_t block = 0; block < k / 64; ++block, out += 2 * kPacked) {
    for (int64_t r = 0; r < kGroupRows; ++r) {
      const StoredNvfp4 stored = load_nvfp4(rows[size_t(r)] + block * kStored);
      for (int64_t half = 0; half < 2; ++half) {
        const uint64_t a = stored.codes[2 * half], b = stored.codes[2 * half + 1];
        const uint64_t pairs[2] = {(a & kLow) | (b & kLow) << 4, (a & kHigh) >> 4 | (b & kHigh)};
        std::byte* to = out + half * kPacked;
        for (int64_t j = 0; j < 4; ++j)
          std::memcpy(to + j * 64 + r * 4, reinterpret_cast<const std::byte*>(pairs) + 4 * j, 4);
        for (int64_t s = 0; s < 2; ++s)
          to[256 + s * kGroupRows + r] = std::byte(stored.scale[2 * half + s] & 0x7fu);
      }
    }
  }
}

// True when every scale of a stored NVFP4 row is a number.
bool scales_are_numbers(const std::byte* row, int64_t k) {
  for (int64_t block = 0; block < k / 64; ++block)
    for (const uint8_t scale : load_nvfp4(row + block * 36).scale)
      if ((scale & 0x7fu) == nvfp4::kE4m3Nan) return false;
  return true;
}

void pack_group(WeightKind kind, const RowPointers& rows, int64_t k, std::byte* out) {
  switch (kind) {
    case kNvfp4Kind:
      return pack_nvfp4(rows, k, out);
    case kQ4_1Kind:
      return pack_blocks<kQ4_1Kind>(rows, k, out);
    case kQ4_0Kind:
      return pack_blocks<kQ4_0Kind>(rows, k, out);
    case kQ8_0Kind:
      return pack_blocks<kQ8_0Kind>(rows, k, out);
    case kF32Kind:
      return transpose_pieces<uint32_t>(rows, 0, k, 0, out);
    default:
      return transpose_pieces<uint16_t>(rows, 0, k, 0, out);
  }
}

// Row `row` of the matrices stacked along N, or the zero row past their end.
const std::byte* stacked_row(std::span<const WeightRows> parts,
                             int64_t row,
                             int64_t row_bytes,
                             const std::byte* zero_row) {
  for (const WeightRows& part : parts) {
    if (row < part.n) return part.data + row * row_bytes;
    row -= part.n;
  }
  return zero_row;
}

}  // namespace

WeightKind kind_of(DType dtype) {
  switch (dtype) {
    case DType::kQ4_1:
      return kQ4_1Kind;
    case DType::kQ4_0:
      return kQ4_0Kind;
    case DType::kQ8_0:
      return kQ8_0Kind;
    case DType::kNVFP4:
      return kNvfp4Kind;
    case DType::kF32:
      return kF32Kind;
    case DType::kF16:
      return kF16Kind;
    case DType::kBF16:
      return kBF16Kind;
    default:
      throw UnsupportedError(concat("weight type: found ", dtype_info(dtype).name,
                                    ", expected F32, F16, BF16, Q8_0, Q4_0, Q4_1 or NVFP4"));
  }
}

bool supports(DType dtype, int64_t k) {
  switch (dtype) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
      return k >= 1;
    case DType::kQ8_0:
    case DType::kQ4_0:
    case DType::kQ4_1:
    case DType::kNVFP4:
      return k >= 1 && k % dtype_info(dtype).block == 0;
    default:
      return false;
  }
}

int64_t packed_bytes(DType dtype, int64_t n, int64_t k) {
  return dtype_bytes(dtype, n * k) + (dtype == DType::kNVFP4 ? n * int64_t(sizeof(float)) : 0);
}

PackedRows::PackedRows(DType dtype, int64_t n, int64_t k)
    : dtype_(dtype),
      kind_(kind_of(dtype)),
      n_(n),
      k_(k),
      group_bytes_(group_size(kind_, k)),
      bytes_(ceil_div(n, kGroupRows) *
             (group_bytes_ + (kind_ == kNvfp4Kind ? kGroupRows * int64_t(sizeof(float)) : 0))),
      data_(allocate_weights(size_t(bytes_))) {}

// Groups are a multiple of 4 bytes long, so the scales behind them are aligned.
const float* PackedRows::row_scale() const {
  if (kind_ != kNvfp4Kind) return nullptr;
  return reinterpret_cast<const float*>(data() + ceil_div(n_, kGroupRows) * group_bytes_);
}
float* PackedRows::row_scale() {
  return const_cast<float*>(static_cast<const PackedRows*>(this)->row_scale());
}

namespace {

// Checks the parts and returns the rows of all.
int64_t total_rows(std::span<const WeightRows> parts) {
  require(!parts.empty(), "packed weight: found no matrices, expected at least one");
  const DType dtype = parts[0].dtype;
  const int64_t k = parts[0].k;
  int64_t n = 0;
  for (const WeightRows& part : parts) {
    require(part.dtype == dtype && part.k == k, "packed weight: found ",
            dtype_info(part.dtype).name, " with K = ", part.k, " beside ", dtype_info(dtype).name,
            " with K = ", k, ", expected one type and one K");
    require(part.n >= 1, "packed weight: found ", part.n, " rows, expected at least 1");
    require(dtype == DType::kNVFP4 ? std::isfinite(part.scale) : part.scale == 1.0f,
            "packed weight: found a scale of ", part.scale, " for ", dtype_info(dtype).name,
            ", expected ", dtype == DType::kNVFP4 ? "a finite number" : "1");
    n += part.n;
  }
  kind_of(dtype);  // refuses types that cannot be packed
  require(supports(dtype, k), "packed weight: found K = ", k, " for ", dtype_info(dtype).name,
          ", expected a multiple of ", dtype_info(dtype).block);
  return n;
}

// The scale of each row; rows past the end have 0.
void fill_row_scales(std::span<const WeightRows> parts, PackedRows& packed) {
  float* scale = packed.row_scale();
  if (scale == nullptr) return;
  std::fill_n(scale, round_up(packed.n(), kGroupRows), 0.0f);
  for (const WeightRows& part : parts) scale = std::fill_n(scale, part.n, part.scale);
}

}  // namespace

std::unique_ptr<PackedWeight> pack(std::span<const WeightRows> parts, ThreadPool& pool) {
  const int64_t n = total_rows(parts), k = parts[0].k;
  const DType dtype = parts[0].dtype;
  const WeightKind kind = kind_of(dtype);
  auto packed = std::make_unique<PackedRows>(dtype, n, k);
  const int64_t row_bytes = dtype_bytes(dtype, k);
  const std::vector<std::byte> zero_row(static_cast<size_t>(row_bytes));
  // About 64 KiB a piece of work.
  const int64_t grain = std::max<int64_t>(1, 65536 / packed->group_bytes());
  std::atomic<bool> numbers{true};
  pool.run([&](Team& team) {
    team.dynamic_for(ceil_div(n, kGroupRows), grain, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) {
        RowPointers rows;
        for (int64_t r = 0; r < kGroupRows; ++r) {
          const std::byte* row =
              stacked_row(parts, group * kGroupRows + r, row_bytes, zero_row.data());
          rows[size_t(r)] = row;
          if (kind == kNvfp4Kind && !scales_are_numbers(row, k))
            numbers.store(false, std::memory_order_relaxed);
        }
        pack_group(kind, rows, k, packed->data() + group * packed->group_bytes());
      }
    });
  });
  require(numbers.load(),
          "packed weight: found the NVFP4 block scale 0x7f, which is no number, "
          "expected 0x00 to 0x7e");
  fill_row_scales(parts, *packed);
  return packed;
}

void PackedRows::dequantize_nvfp4(int64_t row, float* out) const {
  const std::byte* group = data() + row / kGroupRows * group_bytes_;
  const int64_t r = row % kGroupRows;
  const float multiplier = row_scale()[row];
  for (int64_t k = 0; k < k_; k += kBlock, group += 18 * kGroupRows) {
    for (int64_t i = 0; i < kBlock; ++i) {
      const auto codes = load<uint8_t>(group + i % kHalf / 4 * 64 + r * 4 + i % 4);
      const auto scale = load<uint8_t>(group + 256 + i / kHalf * kGroupRows + r);
      const uint32_t code = i < kHalf ? codes & 15u : codes >> 4;
      out[k + i] = nvfp4::e2m1_decode(code) * nvfp4::e4m3_decode(scale) * multiplier;
    }
  }
}

void PackedRows::dequantize_row(int64_t row, float* out) const {
  LONGSPUR_ASSERT(row >= 0 && row < n_);
  if (kind_ == kNvfp4Kind) return dequantize_nvfp4(row, out);
  const std::byte* group = data() + row / kGroupRows * group_bytes_;
  const int64_t r = row % kGroupRows;
  if (kind_ == kF32Kind) {
    for (int64_t i = 0; i < k_; ++i) out[i] = load<float>(group + (i * kGroupRows + r) * 4);
    return;
  }
  if (kind_ == kF16Kind || kind_ == kBF16Kind) {
    for (int64_t i = 0; i < k_; ++i) {
      const auto bits = load<uint16_t>(group + (i * kGroupRows + r) * 2);
      out[i] = kind_ == kF16Kind ? fp16_to_float(bits) : bf16_to_float(bits);
    }
    return;
  }
  for (int64_t k = 0; k < k_; k += kBlock) {
    const std::byte* scales = group + code_bytes(kind_) * kGroupRows;
    const float d = fp16_to_float(load<uint16_t>(scales + 2 * r));
    const float m =
        kind_ == kQ4_1Kind ? fp16_to_float(load<uint16_t>(scales + 2 * kGroupRows + 2 * r)) : 0.0f;
    for (int64_t i = 0; i < kBlock; ++i) {
      const int64_t piece = kind_ == kQ8_0Kind ? i : i % 16;
      const int code = load<uint8_t>(group + piece / 4 * 64 + r * 4 + piece % 4);
      const int nibble = i < 16 ? code & 15 : code >> 4;
      if (kind_ == kQ8_0Kind)
        out[k + i] = d * float(code - 128);
      else if (kind_ == kQ4_0Kind)
        out[k + i] = d * float(nibble - 8);
      else
        out[k + i] = d * float(nibble) + m;
    }
    group = scales + scale_bytes(kind_) * kGroupRows;
  }
}

}  // namespace longspur::kernels::qgemm
