#include "ops/checks.h"

#include "base/error.h"

namespace longspur::ops {

namespace {

std::string shown(c10::SymIntArrayRef shape) {
  std::string text = "[";
  for (const c10::SymInt& size : shape) text += (text.size() > 1 ? ", " : "") + shown_size(size);
  return text + "]";
}

}  // namespace

// Not torch's operator<<: a stream of ours in torch's code needs both to use one copy of the C++
// library, which a toolchain that links it statically does not give.
std::string shown_size(const c10::SymInt& size) {
  const std::optional<int64_t> known = size.maybe_as_int();
  return known ? std::to_string(*known) : size.toSymNode()->str();
}

std::string shown_shape(const at::Tensor& tensor) { return shown(tensor.sym_sizes()); }

std::string_view shown_dtype(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return "float32";
    case at::kDouble:
      return "float64";
    case at::kHalf:
      return "float16";
    case at::kBFloat16:
      return "bfloat16";
    case at::kInt:
      return "int32";
    case at::kLong:
      return "int64";
    case at::kByte:
      return "uint8";
    case at::kBool:
      return "bool";
    case at::kFloat8_e4m3fn:
      return "float8_e4m3fn";
    default:
      return c10::toString(dtype);
  }
}

void check_dim(std::string_view op,
               std::string_view name,
               const at::Tensor& tensor,
               int64_t dim,
               std::string_view form) {
  if (tensor.dim() == dim) return;  // the message is dear: not on the way of every call
  throw Error(concat(op, ": ", name, ": found shape ", shown_shape(tensor), ", expected ", form));
}

void check_shape(std::string_view op,
                 std::string_view name,
                 const at::Tensor& tensor,
                 c10::SymIntArrayRef shape,
                 std::string_view meaning) {
  if (tensor.sym_sizes() == shape) return;
  throw Error(concat(op, ": ", name, ": found shape ", shown_shape(tensor), ", expected ",
                     shown(shape), ", ", meaning));
}

void check_dtype(std::string_view op,
                 std::string_view name,
                 const at::Tensor& tensor,
                 at::ScalarType dtype) {
  require(tensor.scalar_type() == dtype, op, ": ", name, ": found ",
          shown_dtype(tensor.scalar_type()), ", expected ", shown_dtype(dtype));
}

void check_floating(std::string_view op, std::string_view name, const at::Tensor& tensor) {
  const at::ScalarType dtype = tensor.scalar_type();
  require(
      dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf || dtype == at::kDouble,
      op, ": ", name, ": found ", shown_dtype(dtype),
      ", expected float32, bfloat16, float16 or float64");
}

void check_like(std::string_view op,
                std::string_view name,
                const at::Tensor& tensor,
                std::string_view other_name,
                const at::Tensor& other) {
  require(tensor.scalar_type() == other.scalar_type(), op, ": ", name, ": found ",
          shown_dtype(tensor.scalar_type()), ", expected ", shown_dtype(other.scalar_type()),
          " as ", other_name, " has");
  check_device(op, name, tensor, other_name, other);
}

void check_device(std::string_view op,
                  std::string_view name,
                  const at::Tensor& tensor,
                  std::string_view other_name,
                  const at::Tensor& other) {
  if (tensor.device() == other.device()) return;
  throw Error(concat(op, ": ", name, ": found on ", tensor.device().str(), ", expected on ",
                     other.device().str(), " as ", other_name, " is"));
}

void check_at_least(std::string_view op, std::string_view name, int64_t value, int64_t least) {
  require(value >= least, op, ": ", name, ": found ", value, ", expected at least ", least);
}

void check_cu_seqlens_form(std::string_view op,
                           std::string_view name,
                           const at::Tensor& cu_seqlens,
                           const at::Tensor& data) {
  check_dim(op, name, cu_seqlens, 1, "[B + 1]");
  check_dtype(op, name, cu_seqlens, at::kInt);
  require(cu_seqlens.sym_size(0) > 0, op, ": ", name, ": found no entries, expected B + 1");
  require(cu_seqlens.device().is_cpu() || cu_seqlens.device() == data.device(), op, ": ", name,
          ": found on ", cu_seqlens.device().str(), ", expected on cpu or ", data.device().str());
}

at::Tensor cu_seqlens_on_host(std::string_view op,
                              std::string_view name,
                              const at::Tensor& cu_seqlens,
                              std::optional<int64_t> rows,
                              int64_t max_seqlen) {
  at::Tensor host = cu_seqlens.to(at::kCPU).contiguous();
  const int32_t* begins = host.const_data_ptr<int32_t>();
  const int64_t batch = host.numel() - 1;
  require(begins[0] == 0, op, ": ", name, "[0]: found ", begins[0], ", expected 0");
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t length = int64_t(begins[b + 1]) - begins[b];
    require(length >= 0, op, ": ", name, "[", b + 1, "]: found ", begins[b + 1],
            ", expected at least ", begins[b]);
    require(length <= max_seqlen, op, ": ", name, ": found ", length, " rows of sequence ", b,
            ", expected at most the given longest, ", max_seqlen);
  }
  require(!rows || begins[batch] == *rows, op, ": ", name, "[", batch, "]: found ", begins[batch],
          ", expected ", rows.value_or(0), ", the number of rows");
  return host;
}

at::Tensor with_contiguous_rows(const at::Tensor& tensor) {
  return tensor.stride(-1) == 1 || tensor.size(-1) == 1 ? tensor : tensor.contiguous();
}

}  // namespace longspur::ops
