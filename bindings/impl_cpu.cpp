// The operations on CPU tensors: each is the function of ops/, which chooses the implementation.
#include <torch/library.h>

#include "ops/attention.h"

namespace longspur {

TORCH_LIBRARY_IMPL(longspur, CPU, m) {
  m.impl("attention", TORCH_FN(ops::attention_forward));
  m.impl("attention_backward", TORCH_FN(ops::attention_backward));
}

}  // namespace longspur
