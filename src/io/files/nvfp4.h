// NVFP4 matrices in model files: one canonical form, and the four ways in which files store it.
//
// value of an element = e2m1(code) * e4m3(its block of 16) * multiplier
//
//                      codes                       block scales              scale of the tensor
//   ModelOpt           weight U8 [N, K/2]          weight_scale [N, K/16]    weight_scale_2,
//   multiplier compressed-tensors weight_packed               weight_scale weight_global_scale,
//   divisor fouroversix        quantized_weight_values     .._scale_factors,         .._amax:
//   multiplier = amax /
//                      rows to 128, K to 64        1-D, swizzled or not      the scale rule's top
//   GGUF               weight, type NVFP4: blocks of 64 with both            <name>.scale,
//   multiplier
//
// Codes and block scales pass from any form to any other bit for bit. So does a multiplier that is
// the inverse of some float; else it changes by a unit in the last place when it becomes a divisor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/files/tensor_file.h"

namespace longspur::io {

// Whether a stored scale multiplies what the codes say or divides it.
enum class ScaleDirection { kMultiplier, kDivisor };

float multiplier_of(float stored, ScaleDirection direction);
// What to store so that multiplier_of gives `multiplier` again, if any float does.
float stored_scale(float multiplier, ScaleDirection direction);

// The float next to `multiplier`, or itself, that survives every change of direction: our own files
// hold only such, so that converting them loses nothing.
float durable_multiplier(float multiplier);

struct Nvfp4Matrix {
  std::string name;               // of the weight, as the model's file calls it
  int64_t rows = 0, k = 0;        // k: a multiple of 16
  std::vector<uint8_t> codes;     // [rows, k / 2], the first element in the low nibble
  std::vector<uint8_t> scales;    // [rows, k / 16] E4M3
  float multiplier = 1.0f;        // amax / (6 * bound); 0 counts as 1 (a matrix of zeros)
  float input_multiplier = 0.0f;  // the same for the layer's input; 0: none
};

// Throws Error that names the matrix: sizes that do not agree, scales that check_block_scales
// refuses, multipliers that are not finite or negative.
void validate(const Nvfp4Matrix& matrix);

// A row of k values, k a multiple of 64, to and from GGUF's blocks: 4 scales, then 4 times 8 bytes
// of which byte j holds element j in the low nibble and j + 8 in the high one.
void to_gguf_blocks(const uint8_t* codes, const uint8_t* scales, int64_t k, std::byte* blocks);
void from_gguf_blocks(const std::byte* blocks, int64_t k, uint8_t* codes, uint8_t* scales);

// Scales of [rows, columns] to and from the tiled 128 x 4 layout; its padding becomes 0.
void swizzle_scales(const uint8_t* scales, int64_t rows, int64_t columns, uint8_t* swizzled);
void unswizzle_scales(const uint8_t* swizzled, int64_t rows, int64_t columns, uint8_t* scales);

// One row: codes and scales as in Nvfp4Matrix. The product of code and scale is exact.
void dequantize_nvfp4(
    const uint8_t* codes, const uint8_t* scales, int64_t k, float multiplier, float* values);

// Throws Error that begins with `name`: a byte that is no scale (0x7f, a sign bit), or scales whose
// largest value says that the tensor's scale is upside down: what the matrix could hold at most,
// 6 * largest * multiplier, must lie below kLargestWeight. A scale in the wrong direction puts it
// at (6 * 448)^2 / amax or so, some millions for weights of the usual size.
inline constexpr float kLargestWeight = 1e4f;
class BlockScaleCheck {
 public:
  void add(const uint8_t* scales, int64_t count);  // any number of times, then finish()
  void finish(const std::string& name, float multiplier) const;

 private:
  uint8_t largest_ = 0;
};

// Where the parts of one matrix lie in a file; borrows from it.
struct StoredNvfp4 {
  enum class Form { kModelOpt, kCompressedTensors, kFourOverSix, kGguf };
  Form form = Form::kModelOpt;
  int64_t rows = 0, k = 0;
  const TensorInfo* codes = nullptr;   // GGUF: the blocks
  const TensorInfo* scales = nullptr;  // null for GGUF
  int64_t code_stride = 0;             // bytes a row of codes, padding included
  int64_t scale_columns = 0;           // scales a row, padding included
  bool swizzled = false;
  float multiplier = 1.0f, input_multiplier = 0.0f;  // the latter 0: none

  int64_t bytes() const;  // codes and scales as stored

  // Row `row` in the canonical form, unchecked.
  void read_row(int64_t row, uint8_t* codes_out, uint8_t* scales_out) const;
};

// The NVFP4 matrix whose weight is called `name` ("....weight"), in whatever form the file stores
// it; nullopt when the file has no such matrix (a weight of another type, or none). Parts that are
// missing, of the wrong type or of shapes that do not agree, and scales of the tensor that are not
// finite and positive are an Error that names the part. Reads headers and scales of tensors only.
// fouroversix_top: 6 * bound of fouroversix's scale rule, 0 when not known, an Error where needed.
std::optional<StoredNvfp4> find_nvfp4(const TensorFile& file,
                                      const std::string& name,
                                      float fouroversix_top);

// All of it, checked (BlockScaleCheck).
Nvfp4Matrix read_nvfp4(const StoredNvfp4& stored, const std::string& name);

}  // namespace longspur::io
