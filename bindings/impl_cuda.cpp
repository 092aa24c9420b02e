// The operations on CUDA tensors: each is the function of ops/, which chooses the implementation.
#include <torch/library.h>

#include "ops/attention.h"

namespace longspur {

TORCH_LIBRARY_IMPL(longspur, CUDA, m) {
  m.impl("attention", TORCH_FN(ops::attention_forward));
  m.impl("attention_backward", TORCH_FN(ops::attention_backward));
}

}  // namespace longspur
