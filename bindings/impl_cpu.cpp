// The operations on CPU tensors: each is the function of ops/, which chooses the implementation.
#include <torch/library.h>

#include "bindings/nvfp4_qat.h"
#include "bindings/xattention.h"
#include "ops/attention.h"
#include "ops/block_sparse.h"
#include "ops/nvfp4.h"
#include "ops/xattn.h"

namespace longspur {

TORCH_LIBRARY_IMPL(longspur, CPU, m) {
  m.impl("attention", TORCH_FN(ops::attention_forward));
  m.impl("attention_backward", TORCH_FN(ops::attention_backward));
  m.impl("xattn_block_scores", TORCH_FN(ops::xattn_block_scores));
  m.impl("xattn_select", TORCH_FN(ops::xattn_select));
  m.impl("block_sparse_attention", TORCH_FN(ops::block_sparse_attention_forward));
  m.impl("block_sparse_attention_backward", TORCH_FN(ops::block_sparse_attention_backward));
  m.impl("xattention", TORCH_FN(xattention<ops::xattention_forward>));
  m.impl("xattention_mask", TORCH_FN(xattention_mask<ops::xattention_mask>));
  m.impl("nvfp4_quantize", TORCH_FN(ops::nvfp4_quantize));
  m.impl("nvfp4_dequantize", TORCH_FN(ops::nvfp4_dequantize));
  m.impl("nvfp4_fake_quantize", TORCH_FN(ops::nvfp4_fake_quantize_forward));
  m.impl("nvfp4_linear", TORCH_FN(ops::nvfp4_linear_forward));
  m.impl("nvfp4_linear_backward", TORCH_FN(ops::nvfp4_linear_backward));
  m.impl("nvfp4_linear_qat", TORCH_FN(nvfp4_linear_qat<ops::nvfp4_linear_qat_forward>));
  m.impl("nvfp4_linear_qat_backward",
         TORCH_FN(nvfp4_linear_qat_backward<ops::nvfp4_linear_qat_backward>));
}

}  // namespace longspur
