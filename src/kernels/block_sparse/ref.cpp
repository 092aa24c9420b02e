// Reference: the loops of kernels/attention/varlen_ref.cpp over the listed keys.
#include "kernels/block_sparse/api.h"

namespace longspur::kernels::block_sparse {

void forward_ref(const ForwardArgs& args) {
  check_mask(args.mask, args.dense.shape);
  attention::varlen_forward_ref(args.dense, args.mask);
}

void backward_ref(const BackwardArgs& args) {
  check_mask(args.mask, args.dense.shape);
  attention::varlen_backward_ref(args.dense, args.mask);
}

}  // namespace longspur::kernels::block_sparse
