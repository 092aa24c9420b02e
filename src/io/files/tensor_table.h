// Tensors of a file in order, with look-up by name. Refuses duplicate names.
#pragma once

#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/files/tensor_file.h"

namespace longspur::io {

class TensorTable {
 public:
  // `where` names the file in the error.
  void add(TensorInfo tensor, const std::string& where);
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  const TensorInfo* find(std::string_view name) const;

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view name) const { return std::hash<std::string_view>()(name); }
  };
  std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string, size_t, Hash, std::equal_to<>> index_;
};

}  // namespace longspur::io
