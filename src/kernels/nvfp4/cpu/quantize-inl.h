// The quantiser on lanes: exactly the operations of ref.cpp, in its order. Follows blocks-inl.h.
//
// Three things are done in another way, with the same result. Errors are taken of magnitudes: the
// sign changes none of them. An element's rounding keeps the rounded value beside the code, so that
// candidates are compared without decoding. And the division by top is two fused steps on its
// rounded reciprocal (Markstein), exact for each `top` there is as long as nothing underflows: the
// test tries every mantissa; where amax is outside kFastFrom .. kFastTo the processor divides.

constexpr float kFastFrom = 0x1p-60f, kFastTo = 0x1p100f;

struct Encoding {
  F amax, enc, dec, top, reciprocal;
  I unusable;  // lanes whose amax is not finite
  bool fast;
};

inline F encode_factor(float top, F amax) {
  const F factor = Simd::min(top / amax, splat(std::numeric_limits<float>::max()));
  return amax == 0.0f ? splat(1.0f) : factor;
}

inline Encoding encoding_of(const QuantizeArgs& args, const Places& places) {
  Encoding e{};
  for (int lane = 0; lane < kLanes; ++lane)
    e.amax[lane] = args.amax[args.amax_per_row ? places.row[lane] : 0];
  e.unusable = (bits_of(e.amax) & 0x7f800000) == 0x7f800000;
  e.amax = e.unusable ? splat(1.0f) : e.amax;
  const float top = scale_top(args.recipe);
  e.top = splat(top);
  e.reciprocal = splat(1.0f / top);
  e.enc = encode_factor(scale_target(args.recipe), e.amax);
  e.dec = 1.0f / encode_factor(top, e.amax);
  const I inside = (e.amax >= kFastFrom) & (e.amax <= kFastTo);
  e.fast = Simd::kFma;
  for (int lane = 0; lane < kLanes; ++lane) e.fast = e.fast && inside[lane] != 0;
  return e;
}

template <bool kFast>
inline F divide_by_top(F x, const Encoding& e) {
  if constexpr (!kFast) return x / e.top;
  const F quotient = x * e.reciprocal;
  return Simd::fma(Simd::fnma(quotient, e.top, x), e.reciprocal, quotient);
}

// --- formats ---

inline I encode_e4m3(F x) {  // x: 0 or positive, perhaps infinite
  x = Simd::min(x, splat(kE4m3Max));
  const I small = bits_of(x + 0x1p14f) & 0xff;
  const I bits = bits_of(x);
  const I normal = ((bits + 0x7ffff + ((bits >> 20) & 1)) >> 20) - (120 << 3);
  return x < 0x1p-6f ? small : normal;
}

inline F decode_e4m3(I code) {
  const F small = to_float(code) * 0x1p-9f;
  return code < 8 ? small : float_of((code << 20) + (120 << 23));
}

inline F inverse(const Encoding& e, F scale) {
  const F step = e.dec * scale;
  const F inv = Simd::min(1.0f / step, splat(std::numeric_limits<float>::max()));
  return step == 0.0f ? splat(0.0f) : inv;
}

// The power of two whose addition rounds `a` (0 <= a <= 8) to the grid of E2M1.
inline F rounder(F a) {
  return float_of((bits_of(Simd::max(a, splat(1.0f))) & 0x7f800000) + (22 << 23));
}

inline F round_to_e2m1(F a) {
  a = Simd::min(a, splat(8.0f));
  const F magic = rounder(a);
  return Simd::min((a + magic) - magic, splat(6.0f));
}

inline I encode_e2m1(F x) {
  const F a = Simd::min(magnitude(x), splat(8.0f));
  const F magic = rounder(a);
  const I step = bits_of(a + magic) & 0x7fffff;
  const I code = step + 2 * ((bits_of(magic) >> 23) - (127 + 22));
  const I size = code < 7 ? code : splat(7);
  const I sign = (bits_of(x) >> 28) & 8;
  return size == 0 ? size : size | sign;
}

// --- the choice of the scale ---

// x: [rows, kBlock] magnitudes; weight: [kBlock] or null
using ErrorFunction =
    F (*)(const F* x, int64_t rows, const F* weight, F inv, F scale, const Encoding& e);

template <Metric kMetric, bool kFast, bool kWeighted>
F error_of(const F* x, int64_t rows, const F* weight, F inv, F scale, const Encoding& e) {
  F error = splat(0.0f);
  for (int64_t row = 0; row < rows; ++row, x += kBlock) {
    for (int i = 0; i < kBlock; ++i) {
      const F value = divide_by_top<kFast>(round_to_e2m1(x[i] * inv) * scale * e.amax, e);
      const F difference = value - x[i];
      F size = kMetric == Metric::kMse ? difference * difference : magnitude(difference);
      if constexpr (kWeighted) size = size * weight[i];
      error = kMetric == Metric::kAbsMax ? Simd::max(size, error) : error + size;
    }
  }
  return error;
}

template <Metric kMetric>
ErrorFunction error_function(bool fast, bool weighted) {
  if constexpr (Simd::kFma) {
    if (fast) return weighted ? error_of<kMetric, true, true> : error_of<kMetric, true, false>;
  }
  return weighted ? error_of<kMetric, false, true> : error_of<kMetric, false, false>;
}

inline ErrorFunction error_function(Metric metric, bool fast, bool weighted) {
  switch (metric) {
    case Metric::kMse:
      return error_function<Metric::kMse>(fast, weighted);
    case Metric::kMae:
      return error_function<Metric::kMae>(fast, weighted);
    default:
      return error_function<Metric::kAbsMax>(fast, weighted);
  }
}

// The candidates after the first.
constexpr int kMaxCandidates = 11;
inline int candidates(Rule rule, F plain, I* codes) {
  static constexpr int kNear[] = {-1, 1, 4, 5}, kAll[] = {-3, -2, -1, 1, 2, 3, 4, 5, 6, 7};
  codes[0] = encode_e4m3(plain);
  if (rule == Rule::kFourOverSix) codes[1] = encode_e4m3(plain * 1.5f);
  if (rule == Rule::kFourOverSix) return 2;
  if (rule != Rule::kSweep && rule != Rule::kFullSweep) return 1;
  const int* offsets = rule == Rule::kSweep ? kNear : kAll;
  const int count = rule == Rule::kSweep ? 5 : 11;
  for (int i = 1; i < count; ++i) {
    const I code = codes[0] + offsets[i - 1];
    const I low = code < 0 ? splat(0) : code;
    codes[i] = low > kE4m3MaxCode ? splat(kE4m3MaxCode) : low;
  }
  return count;
}

// x: [rows, kBlock] magnitudes
inline I choose_scale(
    const QuantizeArgs& args, const Encoding& e, const F* x, int64_t rows, const F* weight) {
  F largest = splat(0.0f);
  I bad = e.unusable;
  for (int64_t i = 0; i < rows * kBlock; ++i) {
    bad |= bits_of(x[i]) >= 0x7f800000;
    largest = Simd::max(x[i], largest);
  }
  const Rule rule = args.recipe.rule;
  const F plain = largest / (rule == Rule::kStatic4 ? 4.0f : 6.0f) * e.enc;
  I codes[kMaxCandidates];
  const int count = candidates(rule, plain, codes);
  I best = codes[0];
  if (count > 1) {
    const ErrorFunction error = error_function(args.recipe.metric, e.fast, weight != nullptr);
    F best_error{};
    for (int i = 0; i < count; ++i) {
      const F scale = decode_e4m3(codes[i]);
      const F found = error(x, rows, weight, inverse(e, scale), scale, e);
      const I better = i == 0 ? splat(-1) : I(found < best_error);
      best = better ? codes[i] : best;
      best_error = better ? found : best_error;
    }
  }
  return bad ? splat(kE4m3Nan) : best;
}

// --- codes ---

// Element 2j in the low nibble of byte j, 2j + 1 in the high one: eight codes a word.
inline U packed(const I* code) {
  U words = std::bit_cast<U>(code[0]);
  for (int i = 1; i < 8; ++i) words |= std::bit_cast<U>(code[i]) << uint32_t(4 * i);
  return words;
}

inline void store_codes(const QuantizeArgs& args,
                        const Places& places,
                        int64_t offset,
                        const I* code) {
  alignas(64) uint32_t low[kLanes], high[kLanes];
  const U words[] = {packed(code), packed(code + 8)};
  std::memcpy(low, &words[0], sizeof(low));
  std::memcpy(high, &words[1], sizeof(high));
  for (int lane = 0; lane < places.used; ++lane) {
    uint64_t both = uint64_t(high[lane]) << 32 | low[lane];
    if constexpr (std::endian::native == std::endian::big) both = __builtin_bswap64(both);
    const int64_t row = places.row[lane] + offset;
    std::memcpy(args.codes + row * code_bytes(args.source.k) + places.k[lane] / 2, &both, 8);
  }
}

// One lane's element, to the upper neighbour with the share of the way there as probability.
inline uint32_t encode_stochastic(float x, uint32_t random) {
  static constexpr float kGrid[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  const float size = x < 0 ? -x : x, a = size < kE2m1Max ? size : kE2m1Max;
  int low = 0;
  while (low < 6 && a >= kGrid[low + 1]) ++low;
  const float share = (a - kGrid[low]) / (kGrid[low + 1] - kGrid[low]);
  const int code = uniform01(random) < share ? low + 1 : low;
  return uint32_t(code == 0 || x > 0 ? code : code | 8);
}

inline void encode_row_stochastic(
    const QuantizeArgs& args, const Places& places, int64_t offset, const F* scaled, I* code) {
  for (int lane = 0; lane < places.used; ++lane) {
    const int64_t first = (places.row[lane] + offset) * args.source.k + places.k[lane];
    for (int i = 0; i < kBlock; i += 4) {
      const auto random = philox4x32(args.recipe.seed, 0, uint64_t(first + i) / 4);
      for (int j = 0; j < 4; ++j)
        code[i + j][lane] = int32_t(encode_stochastic(scaled[i + j][lane], random[size_t(j)]));
    }
  }
}

// x: [kBlock] with signs
inline void encode_row(
    const QuantizeArgs& args, const Places& places, int64_t offset, const F* x, F inv, I usable) {
  F scaled[kBlock];
  I code[kBlock] = {};
  for (int i = 0; i < kBlock; ++i) scaled[i] = float_of(bits_of(x[i] * inv) & usable);
  if (args.recipe.rounding == Rounding::kNearest) {
    for (int i = 0; i < kBlock; ++i) code[i] = encode_e2m1(scaled[i]);
  } else {
    encode_row_stochastic(args, places, offset, scaled, code);
  }
  store_codes(args, places, offset, code);
}

inline void quantize_group(const QuantizeArgs& args, const Places& places, int64_t rows) {
  F x[kBlock * kBlock], size[kBlock * kBlock], weight[kBlock];
  for (int64_t row = 0; row < rows; ++row)
    load_row(args.source, args.recipe.hadamard, places, row, x + row * kBlock);
  for (int64_t i = 0; i < rows * kBlock; ++i) size[i] = magnitude(x[i]);
  if (args.importance != nullptr) {
    const Source weights{args.importance, DType::kF32, 1, args.source.k, 0, false};
    load_row(weights, false, places, 0, weight);  // stride 0: every row's weights are the same
  }
  const Encoding e = encoding_of(args, places);
  const I scale = choose_scale(args, e, size, rows, args.importance != nullptr ? weight : nullptr);
  const I usable = scale != kE4m3Nan;
  const F inv = inverse(e, decode_e4m3(scale));
  for (int64_t row = 0; row < rows; ++row) {
    encode_row(args, places, row, x + row * kBlock, inv, usable);
    for (int lane = 0; lane < places.used; ++lane) {
      const int64_t at = (places.row[lane] + row) * (args.source.k / kBlock);
      args.scales[at + places.k[lane] / kBlock] = uint8_t(scale[lane]);
    }
  }
}

void quantize_rows(const QuantizeArgs& args, int64_t begin, int64_t end) {
  const int64_t rows = args.recipe.tile_2d ? kBlock : 1;
  const int64_t groups = (end - begin) / rows * (args.source.k / kBlock);
  for (int64_t first = 0; first < groups; first += kLanes)
    quantize_group(args, places_of(args.source, begin, end, rows, first), rows);
}
