// Element types of stored tensors. A quantised type is stored in blocks along the last dimension.
#pragma once

#include <cstdint>
#include <string_view>

namespace longspur {

enum class DType : uint8_t {
  kF64,
  kF32,
  kF16,
  kBF16,
  kF8E4M3,
  kF8E5M2,
  kI64,
  kI32,
  kI16,
  kI8,
  kU64,
  kU32,
  kU16,
  kU8,
  kBool,
  // GGUF block types: elements a block / bytes a block.
  kQ8_0,   // 32 / 34   fp16 d, 32 x int8
  kQ4_0,   // 32 / 18   fp16 d, 32 x 4 bit, value d * (q - 8)
  kQ4_1,   // 32 / 20   fp16 d, fp16 m, 32 x 4 bit, value d * q + m
  kQ5_0,   // 32 / 22
  kQ5_1,   // 32 / 24
  kQ4_K,   // 256 / 144
  kQ5_K,   // 256 / 176
  kQ6_K,   // 256 / 210
  kNVFP4,  // 64 / 36   GGUF: 4 x e4m3 scales of 16 elements, 64 x e2m1
  // Rarer types of safetensors; those of less than a byte are packed, low bits first.
  kF8E8M0,      // 2^(bits - 127)
  kF8E4M3FNUZ,  // as E4M3 with bias 8, no negative zero, 0x80 is NaN
  kF8E5M2FNUZ,  // as E5M2 with bias 16, likewise
  kF6E2M3,      // 4 / 3
  kF6E3M2,      // 4 / 3
  kF4,          // 2 / 1   e2m1
  kC64,         // two F32
};

struct DTypeInfo {
  std::string_view name;  // as shown to users: "F32", "Q4_1"
  int64_t block;          // elements a block; 1 for plain types
  int64_t bytes;          // bytes a block
};

const DTypeInfo& dtype_info(DType dtype);

// Bytes of `elements` values; the caller has checked that elements is a whole number of blocks and
// that the product does not overflow.
inline int64_t dtype_bytes(DType dtype, int64_t elements) {
  const DTypeInfo& info = dtype_info(dtype);
  return elements / info.block * info.bytes;
}

}  // namespace longspur
