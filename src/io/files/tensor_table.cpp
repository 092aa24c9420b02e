#include "io/files/tensor_table.h"

#include "base/error.h"
#include "io/files/printable.h"

namespace longspur::io {

int64_t TensorInfo::elements() const {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

void TensorTable::add(TensorInfo tensor, const std::string& where) {
  const bool fresh = index_.emplace(tensor.name, tensors_.size()).second;
  require(fresh, where, ": tensor ", shown(tensor.name), ": found twice, expected once");
  tensors_.push_back(std::move(tensor));
}

const TensorInfo* TensorTable::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

}  // namespace longspur::io
