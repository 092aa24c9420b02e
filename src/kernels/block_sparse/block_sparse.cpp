// Block-sparse attention is the attention of kernels/attention/varlen.h under a mask of blocks.
#include "kernels/block_sparse/api.h"

namespace longspur::kernels::block_sparse {

namespace {

const BlockMask& checked(const BlockMask& mask, const attention::VarlenShape& shape) {
  check_mask(mask, shape);
  return mask;
}

}  // namespace

Forward::Forward(const ForwardArgs& args)
    : tiles_(args.dense, checked(args.mask, args.dense.shape)) {}

Backward::Backward(const BackwardArgs& args)
    : tiles_(args.dense, checked(args.mask, args.dense.shape)) {}

}  // namespace longspur::kernels::block_sparse
