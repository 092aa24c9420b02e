// Packing: rows are cut into groups of 16 and interleaved so that a vector lane is a row (params.h
// has the layouts). Every type comes down to transposing 16 rows of small pieces, 4 bytes for
// quantised blocks and one element for floats; stored data may lie at any address.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "base/shape.h"
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
    default:
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

void pack_group(WeightKind kind, const RowPointers& rows, int64_t k, std::byte* out) {
  switch (kind) {
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
    case DType::kF32:
      return kF32Kind;
    case DType::kF16:
      return kF16Kind;
    case DType::kBF16:
      return kBF16Kind;
    default:
      throw UnsupportedError(concat("weight type: found ", dtype_info(dtype).name,
                                    ", expected F32, F16, BF16, Q8_0, Q4_0 or Q4_1"));
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
      return k >= kBlock && k % kBlock == 0;
    default:
      return false;
  }
}

PackedRows::PackedRows(DType dtype, int64_t n, int64_t k)
    : dtype_(dtype),
      kind_(kind_of(dtype)),
      n_(n),
      k_(k),
      group_bytes_(group_size(kind_, k)),
      bytes_(ceil_div(n, kGroupRows) * group_bytes_),
      data_(allocate_weights(size_t(bytes_))) {}

std::unique_ptr<PackedWeight> pack(std::span<const WeightRows> parts, ThreadPool& pool) {
  require(!parts.empty(), "packed weight: found no matrices, expected at least one");
  const DType dtype = parts[0].dtype;
  const int64_t k = parts[0].k;
  int64_t n = 0;
  for (const WeightRows& part : parts) {
    require(part.dtype == dtype && part.k == k, "packed weight: found ",
            dtype_info(part.dtype).name, " with K = ", part.k, " beside ", dtype_info(dtype).name,
            " with K = ", k, ", expected one type and one K");
    require(part.n >= 1, "packed weight: found ", part.n, " rows, expected at least 1");
    n += part.n;
  }
  const WeightKind kind = kind_of(dtype);
  require(supports(dtype, k), "packed weight: found K = ", k, " for ", dtype_info(dtype).name,
          ", expected a multiple of ", dtype_info(dtype).block);
  auto packed = std::make_unique<PackedRows>(dtype, n, k);
  const int64_t row_bytes = dtype_bytes(dtype, k);
  const std::vector<std::byte> zero_row(static_cast<size_t>(row_bytes));
  // About 64 KiB a piece of work.
  const int64_t grain = std::max<int64_t>(1, 65536 / packed->group_bytes());
  pool.run([&](Team& team) {
    team.dynamic_for(ceil_div(n, kGroupRows), grain, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) {
        RowPointers rows;
        for (int64_t r = 0; r < kGroupRows; ++r)
          rows[size_t(r)] = stacked_row(parts, group * kGroupRows + r, row_bytes, zero_row.data());
        pack_group(kind, rows, k, packed->data() + group * packed->group_bytes());
      }
    });
  });
  return packed;
}

void PackedRows::dequantize_row(int64_t row, float* out) const {
  LONGSPUR_ASSERT(row >= 0 && row < n_);
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
