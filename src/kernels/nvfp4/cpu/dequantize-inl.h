// The dequantiser, compiled once an instruction set: a block at a time, its sixteen values looked
// up. Follows blocks-inl.h.

inline void store_block(DType dtype, const float* values, void* out, int64_t at) {
  if (dtype == DType::kF32) {
    std::memcpy(static_cast<float*>(out) + at, values, kBlock * sizeof(float));
  } else if (dtype == DType::kF16) {
    Simd::narrow_halves(values, static_cast<uint16_t*>(out) + at);
  } else {
    Simd::narrow_to_bf16(values, static_cast<uint16_t*>(out) + at);
  }
}

template <DType kType>
void dequantize_as(const DequantizeArgs& args, const float* scales, int64_t begin, int64_t end) {
  const int64_t blocks = args.k / kBlock;
  for (int64_t row = begin; row < end; ++row) {
    const float multiplier = args.multiplier[args.multiplier_per_row ? row : 0];
    for (int64_t block = row * blocks; block < (row + 1) * blocks; ++block) {
      float values[kBlock];
      Simd::decode(args.codes + block * (kBlock / 2), scales[args.scales[block] & 0x7f], multiplier,
                   values);
      store_block(kType, values, args.out, block * kBlock);
    }
  }
}

void dequantize_rows(const DequantizeArgs& args, int64_t begin, int64_t end) {
  float scales[128];
  for (uint32_t code = 0; code < 128; ++code) scales[code] = e4m3_decode(code);
  switch (args.dtype) {
    case DType::kF32:
      return dequantize_as<DType::kF32>(args, scales, begin, end);
    case DType::kF16:
      return dequantize_as<DType::kF16>(args, scales, begin, end);
    default:
      return dequantize_as<DType::kBF16>(args, scales, begin, end);
  }
}
