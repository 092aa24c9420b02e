// Block-sparse and dense attention on CUDA: torch tensors to the launchers of
// kernels/block_sparse/cuda. Only in builds that have them.
#include "kernels/block_sparse/cuda/block_sparse_cuda.h"

#include <ATen/ops/empty.h>

#include <array>

#include "ops/attention_impl.h"
#include "ops/block_words.h"
#include "ops/device_stream.h"

namespace longspur::ops {

namespace {

namespace device = kernels::block_sparse::cuda;

constexpr std::string_view kOp = "block_sparse_attention";

bool accepts(const AttentionProblem& problem) {
  const at::ScalarType dtype = problem.q.scalar_type();
  return problem.q.is_cuda() && problem.q.size(2) <= 256 &&
         (dtype == at::kHalf || dtype == at::kBFloat16 || dtype == at::kFloat);
}

device::Type type_of(const at::Tensor& x) {
  if (x.scalar_type() == at::kFloat) return device::Type::kF32;
  return x.scalar_type() == at::kHalf ? device::Type::kF16 : device::Type::kBF16;
}

// Without cu_seqlens.
device::Shape shape_of(const AttentionProblem& problem) {
  device::Shape shape;
  shape.batch = problem.cu_seqlens_q.numel() - 1;
  shape.heads = problem.q.size(1);
  shape.kv_heads = problem.k.size(1);
  shape.head_dim = problem.q.size(2);
  shape.total_q = problem.q.size(0);
  shape.total_k = problem.k.size(0);
  shape.max_seqlen_q = problem.longest_q;
  shape.max_seqlen_k = problem.longest_k;
  shape.causal = problem.causal;
  shape.scale = static_cast<float>(problem.scale);
  shape.type = type_of(problem.q);
  return shape;
}

// cu_seqlens on the device, kept until the launch is in the stream.
struct Lengths {
  explicit Lengths(const AttentionProblem& problem)
      : q(problem.cu_seqlens_q.to(problem.q.device(), true).contiguous()),
        k(problem.cu_seqlens_k.to(problem.q.device(), true).contiguous()) {}
  at::Tensor q, k;
};

device::Shape shape_of(const AttentionProblem& problem, const Lengths& lengths) {
  device::Shape shape = shape_of(problem);
  shape.cu_seqlens_q = lengths.q.const_data_ptr<int32_t>();
  shape.cu_seqlens_k = lengths.k.const_data_ptr<int32_t>();
  return shape;
}

device::ConstRows rows(const at::Tensor& x) {
  return {x.const_data_ptr(), x.stride(0), x.stride(1)};
}
device::Rows mutable_rows(const at::Tensor& x) {
  return {x.mutable_data_ptr(), x.stride(0), x.stride(1)};
}

at::Tensor workspace_of(int64_t bytes, const at::Tensor& like) {
  return at::empty({bytes}, like.options().dtype(at::kByte));
}

device::ForwardArgs forward_args(const AttentionProblem& problem,
                                 const Lengths& lengths,
                                 const at::Tensor& out,
                                 const at::Tensor& lse) {
  device::ForwardArgs args;
  args.shape = shape_of(problem, lengths);
  args.q = rows(problem.q);
  args.k = rows(problem.k);
  args.v = rows(problem.v);
  args.out = mutable_rows(out);
  args.lse = lse.mutable_data_ptr<float>();
  args.lse_stride = lse.stride(0);
  args.mask = block_mask_of(problem.block_words, problem.block_size);
  return args;
}

AttentionResult forward(const AttentionProblem& problem) {
  const AttentionResult result = attention_outputs(problem.q);
  const auto& [out, lse] = result;
  const Lengths lengths(problem);
  device::ForwardArgs args = forward_args(problem, lengths, out, lse);
  const c10::Stream stream = device_stream(kOp, problem.q);
  const at::Tensor workspace = workspace_of(device::forward_workspace_bytes(args), out);
  args.workspace = workspace.mutable_data_ptr();
  check_launch(kOp, device::forward(args, stream.native_handle()));
  return result;
}

AttentionGradient backward(const AttentionProblem& problem, const AttentionGradients& gradients) {
  const AttentionGradient result = attention_gradients(problem.q, problem.k, problem.v);
  const Lengths lengths(problem);
  device::BackwardArgs args;
  args.shape = shape_of(problem, lengths);
  args.q = rows(problem.q);
  args.k = rows(problem.k);
  args.v = rows(problem.v);
  args.out = rows(gradients.out);
  args.grad_out = rows(gradients.grad_out);
  args.lse = gradients.lse.const_data_ptr<float>();
  args.lse_stride = gradients.lse.stride(0);
  if (gradients.grad_lse) {
    args.grad_lse = gradients.grad_lse->const_data_ptr<float>();
    args.grad_lse_stride = gradients.grad_lse->stride(0);
  }
  args.dq = mutable_rows(std::get<0>(result));
  args.dk = mutable_rows(std::get<1>(result));
  args.dv = mutable_rows(std::get<2>(result));
  args.mask = block_mask_of(problem.block_words, problem.block_size);
  args.deterministic = problem.deterministic;
  const c10::Stream stream = device_stream(kOp, problem.q);
  const at::Tensor workspace = workspace_of(device::backward_workspace_bytes(args), problem.q);
  args.workspace = workspace.mutable_data_ptr();
  check_launch(kOp, device::backward(args, stream.native_handle()));
  return result;
}

constexpr AttentionImplementation kCuda = {"cuda_blocks", accepts, forward, backward};

// Dense attention of prompts, where the fast kernels take it.
bool dense_accepts(const AttentionProblem& problem) {
  constexpr int64_t kFewQueries = 1024;  // below, torch's kernel starts sooner
  if (!accepts(problem) || problem.longest_q < kFewQueries) return false;
  device::ForwardArgs args;
  args.shape = shape_of(problem);
  args.q = rows(problem.q);
  args.k = rows(problem.k);
  args.v = rows(problem.v);
  const int64_t dim = problem.q.size(2);
  args.out = {nullptr, problem.q.size(1) * dim, dim};  // contiguous, as it will be
  return device::forward_is_fast(args);
}

constexpr AttentionImplementation kCudaDense = {"cuda_dense", dense_accepts, forward, backward};

bool words_accept(const at::Tensor& x) { return x.is_cuda(); }

int64_t rows_of(const at::Tensor& x) { return x.size(0) * x.size(1) * x.size(2); }

void pack(const at::Tensor& blocks, const at::Tensor& words) {
  const c10::Stream stream = device_stream(kOp, blocks);
  check_launch(
      kOp, device::pack_mask(static_cast<const uint8_t*>(blocks.const_data_ptr()), rows_of(blocks),
                             blocks.size(3), mutable_words(words), stream.native_handle()));
}

void unpack(const at::Tensor& words, const at::Tensor& blocks) {
  const c10::Stream stream = device_stream(kOp, words);
  check_launch(kOp, device::unpack_mask(static_cast<const uint32_t*>(words.const_data_ptr()),
                                        rows_of(blocks), blocks.size(3),
                                        static_cast<uint8_t*>(blocks.mutable_data_ptr()),
                                        stream.native_handle()));
}

constexpr BlockWordsImplementation kCudaWords = {"cuda", words_accept, pack, unpack};

}  // namespace

std::span<const AttentionImplementation* const> block_sparse_device_implementations() {
  static constexpr std::array kAll = {&kCuda};
  return kAll;
}
std::span<const AttentionImplementation* const> attention_device_implementations() {
  static constexpr std::array kAll = {&kCudaDense};
  return kAll;
}
std::span<const BlockWordsImplementation* const> block_words_device_implementations() {
  static constexpr std::array kAll = {&kCudaWords};
  return kAll;
}

}  // namespace longspur::ops
