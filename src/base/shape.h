// Letters with one meaning in the whole project. Shapes stand beside parameters as
// `// [T, H, D] bf16`, outermost dimension first; strides are counted in elements.
//
//   B  sequences in a batch          H  query heads           C  hidden size
//   T  packed tokens (all sequences) G  key/value heads       F  feed-forward size
//   N  query length, or rows of W    D  head dimension        V  vocabulary size
//   S  key length                    K  blocks chosen, or the inner dimension of a product
#pragma once

#include <cstdint>

namespace longspur {

inline constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace longspur
