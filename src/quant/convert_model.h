// A model's files to NVFP4: conversion layer by layer into a writer, so that neither the source nor
// the result is ever whole in memory, and nothing appears under the output's name until all of it
// is there.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "io/files/model_writer.h"
#include "quant/convert.h"

namespace longspur::quant {

struct ModelJob {
  std::string source;  // GGUF file or folder: what `decoder` reads
  std::string out;
  io::ModelWriterOptions writer;
  Conversion conversion;
  bool input_scales = false;  // store the inputs' scale, from the calibration text
};

struct TensorResult {
  std::string name;
  DType dtype = DType::kNVFP4;
  int64_t n = 0, k = 0, bytes = 0;
  MatrixReport report;  // of NVFP4 ones
};

struct ModelResult {
  std::vector<TensorResult> tensors;  // the linear layers, in the model's order
  int64_t bytes = 0;                  // of all tensors of the model
  // Over the NVFP4 matrices: sum of squared errors by sum of squares; mean of the output errors.
  double weight_error = 0, output_error = 0;
  double bits_per_weight = 0;  // over the linear layers
};

// Type that matrices kept in high precision are written in.
DType kept_type(io::ModelDialect dialect);
double bits_of(DType dtype);  // of a weight, block scales included

// Whether any linear layer is NVFP4 already.
bool holds_nvfp4(const models::DecoderTensors& tensors);
// The model in the job's format, NVFP4 matrices bit for bit, nothing quantised. bytes is left 0.
ModelResult copy_model(const models::DecoderTensors& tensors, const ModelJob& job);

ModelResult convert_model(const FloatDecoder& decoder,
                          const models::DecoderTensors& tensors,
                          std::span<const std::vector<int32_t>> windows,
                          const ModelJob& job,
                          const Progress& progress);

}  // namespace longspur::quant
