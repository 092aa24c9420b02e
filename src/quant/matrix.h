// One weight matrix to NVFP4: rounding to the nearest, GPTQ with the choice of the block scales
// inside its loop, and coordinate descent on the error of the product's output.
//
// With H = X^T X of the product's inputs on the calibration text and E = Q - W, the squared error
// of the output is tr(E H E^T). Rows of W are independent of each other: they share threads and
// SIMD lanes, and the result does not depend on how many of either there are.
//
//   rtn        per block the scale of the recipe's rule, codes to the nearest; `weighted`: errors
//              counted with diag(H).
//   gptq       columns in order; what a column's rounding leaves is taken up by those after it,
//              through the Cholesky factor of H^-1. At the start of each group of 16 columns the
//              rule's candidates compete: by their plain error on the weights as they stand then
//              (kGroupStart) or by the group's loss sum ((w - q) / U_jj)^2 of a trial run with
//              feedback (kSimulated).
//              With a beam, several versions of each row go on, those of least loss so far, and the
//              choice between their scales is made by what comes after.
//   refine     sweeps of coordinate descent after either: block by block, each of the scales around
//              the present one is tried with the codes that descent under H gives it, and the best
//              stands. The error under H never grows.
//
// Sources: Frantar et al., "GPTQ", arXiv 2210.17323; Cook et al., "Four Over Six", arXiv
// 2512.02010; Behdin et al., "QuantEase" (coordinate descent on layers), arXiv 2309.01885; "SOAR",
// arXiv 2605.12245 (scales and codes in turn).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/nvfp4/api.h"

namespace longspur::quant {

// A matrix in fp32, rows contiguous. Borrowed.
struct WeightView {
  const float* values = nullptr;
  int64_t n = 0, k = 0;
};

// NVFP4 as the formats store it: codes [N, K / 2], low nibble first; E4M3 scales [N, K / 16].
struct QuantizedMatrix {
  int64_t n = 0, k = 0;
  std::vector<uint8_t> codes, scales;
  float multiplier = 0.0f;
};
// out: [N, K]
void dequantize(const QuantizedMatrix& matrix, float* out, ThreadPool& pool);

// What calibration saw of a product's inputs. Borrowed.
struct Calibration {
  const float* gram = nullptr;      // [K, K], symmetric: X^T X, or null
  const float* diagonal = nullptr;  // [K]: its diagonal; may be null where gram is given
  int64_t k = 0;
  int64_t tokens = 0;  // rows of X; asked for by kAutomatic only
};

enum class Kind { kRtn, kGptq };
enum class ScaleChoice { kGroupStart, kSimulated };

inline constexpr double kAutomatic = -1.0;
// Share of H's off-diagonal that sampling makes worthless, found on layers of SmolLM2 with text
// that calibration did not see: more channels for each token, less faith.
double automatic_shrinkage(int64_t channels, int64_t tokens);

struct MatrixMethod {
  Kind kind = Kind::kRtn;
  kernels::nvfp4::Recipe recipe;  // nearest, 1-D, no rotation for all but plain rtn
  bool weighted = false;
  ScaleChoice choice = ScaleChoice::kSimulated;
  // Columns by falling diagonal of H; the scales then come from the original weights (they are
  // needed before their group is complete), weighed by the diagonal.
  bool act_order = false;
  double damping = 0.01;  // of H's mean diagonal, added to the diagonal
  // H becomes (1 - s) H + s diag(H): less faith in the calibration text. kAutomatic: from the
  // numbers of channels and tokens.
  double shrinkage = 0.0;
  int beam = 1;    // versions of a row that gptq keeps: 1, 2, 4, 8 or 16
  int refine = 0;  // sweeps of coordinate descent
};

// The method's shrinkage, kAutomatic resolved.
double shrinkage_of(const MatrixMethod& method, int64_t channels, int64_t tokens);

// The strongest combination: all scales, four versions of a row, coordinate descent, automatic
// shrinkage.
MatrixMethod best_method();

// What gptq and refine need of H; the matrices that read one input share it.
class Curvature {
 public:
  // Throws Error on a gram that is not finite or not positive on its diagonal, or with a method
  // that needs one where there is none.
  Curvature(const Calibration& calibration, const MatrixMethod& method, ThreadPool& pool);

  int64_t k() const { return k_; }
  const std::vector<float>& gram() const { return gram_; }          // [K, K] damped; empty for rtn
  const std::vector<float>& factor() const { return factor_; }      // [K, K] U, H^-1 = U^T U
  const std::vector<float>& diagonal() const { return diagonal_; }  // [K] undamped, or empty
  const std::vector<int32_t>& order() const { return order_; }  // [K] when act_order: U's columns

 private:
  int64_t k_ = 0;
  std::vector<float> gram_, factor_, diagonal_;
  std::vector<int32_t> order_;
};

// amax: largest magnitude of the matrix and those that share its multiplier, before any method
// moved a weight. curvature: null for unweighted rtn. Throws Error on a K that is not a multiple of
// 16, on weights and an amax that are not finite (rtn takes them, as kernels/nvfp4/api.h says) and
// on a curvature of another K.
QuantizedMatrix quantize_matrix(const WeightView& w,
                                float amax,
                                const Curvature* curvature,
                                const MatrixMethod& method,
                                ThreadPool& pool);

}  // namespace longspur::quant
