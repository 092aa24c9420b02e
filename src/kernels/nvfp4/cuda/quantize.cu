// Which kernel serves a call, what it may not be given, and its workspace.
#include "kernels/common/cuda/status.cuh"
#include "kernels/nvfp4/cuda/kernels.cuh"

namespace longspur::kernels::nvfp4::cuda {

namespace {

bool float_type(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16;
}

bool aligned_to(const void* p, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

bool aligned_rows(const void* x, DType dtype, int64_t ld) {
  return aligned_to(x, 16) && ld * (dtype == DType::kF32 ? 4 : 2) % 16 == 0;
}

CudaStatus check_output(const Quantized& out) {
  if (out.codes == nullptr || out.scales == nullptr) return "nvfp4 quantize: no output";
  if (!aligned_to(out.codes, 8)) return "nvfp4 quantize: codes not aligned to 8 bytes";
  return nullptr;
}

CudaStatus check_source(const Source& source, bool tile_2d) {
  if (!float_type(source.dtype)) return "nvfp4 quantize: x is neither F32, BF16 nor F16";
  if (source.rows < 0 || source.k < 0 || source.k % kBlock != 0)
    return "nvfp4 quantize: K is no multiple of 16";
  if (tile_2d && source.rows % kBlock != 0)
    return "nvfp4 quantize: the rows of 2-D tiles are no multiple of 16";
  if (source.ld < (source.transposed ? source.rows : source.k))
    return "nvfp4 quantize: rows overlap";
  return nullptr;
}

RowParams row_params(const Quantize& args, const float* amax) {
  RowParams params;
  params.x = args.source.x;
  params.dtype = args.source.dtype;
  params.rows = args.source.rows;
  params.columns = args.source.k / kBlock;
  params.ld = args.source.ld;
  params.rules = rules_of(args.recipe);
  params.amax = amax;
  params.amax_per_row = args.amax_from == Amax::kGiven && args.amax_per_row;
  params.importance = args.importance;
  params.out = args.out;
  params.aligned = aligned_rows(params.x, params.dtype, params.ld);
  return params;
}

// The amax of a side is read where the pass before writes it: nothing here writes to `amax`.
TileParams tile_params(const Quantize& args, const float* amax) {
  const Source& source = args.source;
  TileParams params;
  params.x = source.x;
  params.dtype = source.dtype;
  params.height = source.transposed ? source.k : source.rows;
  params.width = source.transposed ? source.rows : source.k;
  params.ld = source.ld;
  Side& side = source.transposed ? params.down : params.along;
  side.rules = rules_of(args.recipe);
  side.amax = amax;
  if (args.amax_from == Amax::kGiven ? args.amax_per_row : args.amax_from == Amax::kRow)
    side.amax_stride = args.recipe.tile_2d ? kBlock : 1;
  side.importance = args.importance;
  side.half_scores =
      !args.strict && source.dtype == DType::kBF16 && scores_in_half(side.rules, args.importance);
  side.out = args.out;
  return params;
}

bool needs_tiles(const Quantize& args) { return args.source.transposed || args.recipe.tile_2d; }

CudaStatus zero(void* workspace, int64_t bytes, cudaStream_t stream) {
  if (workspace == nullptr) return "nvfp4 quantize: no workspace";
  const cudaError_t error = cudaMemsetAsync(workspace, 0, size_t(bytes), stream);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Half precision scores only where that is allowed; static rules have nothing to score.
bool takes_bf16(const Quantize& args, const RowParams& params) {
  const bool scores = args.recipe.rule != Rule::kStatic6 && args.recipe.rule != Rule::kStatic4;
  return accepts_bf16(params) && !(args.strict && scores);
}

void quantize_rows(const Quantize& args, float* workspace, cudaStream_t stream) {
  const bool by_tensor = args.amax_from == Amax::kTensor;
  const RowParams params = row_params(args, by_tensor                        ? workspace
                                            : args.amax_from == Amax::kGiven ? args.amax
                                                                             : nullptr);
  if (by_tensor && params.aligned && params.dtype == DType::kBF16 && !args.recipe.hadamard)
    launch_amax_bf16(params, workspace, stream);
  else if (by_tensor)
    launch_tile_amax(tile_params(args, workspace), workspace, nullptr, stream);
  // The pass for amax ends with the last rows in L2, so this one begins there.
  if (takes_bf16(args, params))
    launch_rows_bf16(params, by_tensor, stream);
  else
    launch_rows(params, Input::kPlain, stream);
}

void quantize_tiles(const Quantize& args, float* workspace, cudaStream_t stream) {
  const bool given = args.amax_from == Amax::kGiven;
  const TileParams params = tile_params(args, given ? args.amax : workspace);
  if (!given) {
    const bool down = args.source.transposed;
    launch_tile_amax(params, down ? nullptr : workspace, down ? workspace : nullptr, stream);
  }
  launch_tiles(params, stream);
}

// found: [2], zeros. Sides that are not rotated have the matrix's own amax.
void find_both_amax(TileParams& params, float* found, cudaStream_t stream) {
  const bool a = params.along.rules.hadamard, b = params.down.rules.hadamard;
  params.along.amax = found;
  params.down.amax = a == b && !a ? found : found + 1;
  RowParams rows;
  rows.x = params.x;
  rows.rows = params.height;
  rows.columns = params.width / kBlock;
  rows.ld = params.ld;
  const bool quick =
      params.dtype == DType::kBF16 && aligned_rows(params.x, params.dtype, params.ld);
  if (quick && !a) launch_amax_bf16(rows, found, stream);
  if (quick && a && !b) launch_amax_bf16(rows, found + 1, stream);
  float* along = a || !quick ? found : nullptr;
  float* down = b || (a && !quick) ? found + 1 : nullptr;
  if (along != nullptr || down != nullptr) launch_tile_amax(params, along, down, stream);
}

CudaStatus launch_fused(
    RowParams& params, const Recipe& recipe, Input input, int64_t k, void* stream) {
  if (!float_type(params.dtype)) return "nvfp4 quantize: x is neither F32, BF16 nor F16";
  if (k < 0 || k % kBlock != 0) return "nvfp4 quantize: K is no multiple of 16";
  if (recipe.tile_2d) return "nvfp4 quantize: no 2-D tiles after a norm or an activation";
  if (CudaStatus error = check_output(params.out)) return error;
  if (params.rows == 0 || k == 0) return nullptr;
  params.columns = k / kBlock;
  params.rules = rules_of(recipe);
  params.aligned =
      aligned_rows(params.x, params.dtype, params.ld) && (input != Input::kSwiGlu || k % 8 == 0);
  auto* on = static_cast<cudaStream_t>(stream);
  if (accepts_bf16_fused(params))
    launch_rows_bf16_fused(params, input, on);
  else
    launch_rows(params, input, on);
  return launch_status();
}

}  // namespace

int64_t workspace_bytes(const Quantize& args) {
  if (args.amax_from == Amax::kGiven) return 0;
  if (args.amax_from == Amax::kTensor) return sizeof(float);
  return needs_tiles(args) ? args.source.rows * int64_t(sizeof(float)) : 0;
}

CudaStatus quantize(const Quantize& args, void* workspace, void* stream) {
  if (CudaStatus error = check_source(args.source, args.recipe.tile_2d)) return error;
  if (CudaStatus error = check_output(args.out)) return error;
  if (args.amax_from == Amax::kGiven && args.amax == nullptr) return "nvfp4 quantize: no amax";
  if (args.source.rows == 0 || args.source.k == 0) return nullptr;
  auto* on = static_cast<cudaStream_t>(stream);
  if (const int64_t bytes = workspace_bytes(args)) {
    if (CudaStatus error = zero(workspace, bytes, on)) return error;
  }
  if (needs_tiles(args))
    quantize_tiles(args, static_cast<float*>(workspace), on);
  else
    quantize_rows(args, static_cast<float*>(workspace), on);
  return launch_status();
}

int64_t workspace_bytes(const QuantizeBoth& args) {
  return args.amax_from == Amax::kTensor ? 2 * int64_t(sizeof(float)) : 0;
}

CudaStatus quantize_both(const QuantizeBoth& args, void* workspace, void* stream) {
  if (CudaStatus error = check_source(args.source, true)) return error;
  if (args.source.transposed) return "nvfp4 quantize_both: the source is transposed";
  if (CudaStatus error = check_output(args.out)) return error;
  if (CudaStatus error = check_output(args.transposed_out)) return error;
  if (args.amax_from == Amax::kRow) return "nvfp4 quantize_both: amax by row";
  if (args.source.rows == 0 || args.source.k == 0) return nullptr;
  auto* on = static_cast<cudaStream_t>(stream);
  auto* found = static_cast<float*>(workspace);
  const Recipe &a = args.recipe, &b = args.transposed_recipe;
  TileParams params;
  params.x = args.source.x;
  params.dtype = args.source.dtype;
  params.height = args.source.rows;
  params.width = args.source.k;
  params.ld = args.source.ld;
  params.along.rules = rules_of(a);
  params.down.rules = rules_of(b);
  params.along.out = args.out;
  params.down.out = args.transposed_out;
  params.down.borrows_scales = a.tile_2d && b.tile_2d && !a.hadamard && !b.hadamard &&
                               a.rule == b.rule && a.metric == b.metric && a.bound == b.bound;
  for (Side* side : {&params.along, &params.down})
    side->half_scores =
        !args.strict && params.dtype == DType::kBF16 && scores_in_half(side->rules, nullptr);
  if (args.amax_from == Amax::kGiven) {
    if (args.amax == nullptr || args.transposed_amax == nullptr)
      return "nvfp4 quantize_both: no amax";
    params.along.amax = args.amax;
    params.down.amax = args.transposed_amax;
  } else {
    if (CudaStatus error = zero(workspace, workspace_bytes(args), on)) return error;
    find_both_amax(params, found, on);
  }
  launch_tiles(params, on);
  return launch_status();
}

CudaStatus rms_norm_quantize(const NormQuantize& args, void* stream) {
  RowParams params;
  params.x = args.x;
  params.dtype = args.dtype;
  params.rows = args.rows;
  params.ld = args.ld;
  params.weight = args.weight;
  params.eps = args.eps;
  params.out = args.out;
  return launch_fused(params, args.recipe, Input::kNorm, args.k, stream);
}

CudaStatus swiglu_quantize(const SwiGluQuantize& args, void* stream) {
  RowParams params;
  params.x = args.x;
  params.dtype = args.dtype;
  params.rows = args.rows;
  params.ld = args.ld;
  params.out = args.out;
  return launch_fused(params, args.recipe, Input::kSwiGlu, args.k, stream);
}

}  // namespace longspur::kernels::nvfp4::cuda
