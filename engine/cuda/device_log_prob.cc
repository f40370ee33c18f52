#include "engine/cuda/device_log_prob.h"

#include <algorithm>

#include "engine/kernels/cuda/rows.h"

namespace lockstep::cuda {
namespace {

// Rows [row, row + count) of the call with the first of the scratch.
struct Part {
  Tensor x;
  const int32_t* targets;
  const float* inverse_temperature;
};

Part PartOf(const LogProbRows& rows, int64_t row, int64_t count) {
  return {rows.x.Rows(row, count), rows.targets + row, rows.inverse_temperature + row};
}

// Columns of a chunk: a multiple of 8 elements, so that rows lie at multiples of 16 bytes.
int64_t ChunkStride(int64_t vocab_size) { return std::min(kLogitColumns, (vocab_size + 7) / 8 * 8); }

Tensor Corner(const Tensor& block, int64_t rows, int64_t cols) { return block.Rows(0, rows).Cols(0, cols); }

}  // namespace

LogProbScratch CarveLogProb(DType dtype, int64_t rows, int64_t hidden_size, int64_t vocab_size, Carver& carver) {
  const int64_t count = std::min(rows, kLogitRows), stride = ChunkStride(vocab_size);
  LogProbScratch scratch;
  scratch.logits = carver.Take(DType::kF32, count, stride);
  scratch.d_logits = dtype == DType::kF32 ? scratch.logits : carver.Take(dtype, count, stride);
  scratch.d_x = carver.Take(DType::kF32, count, hidden_size);
  scratch.states = carver.TakeArray<LogitState>(count);
  return scratch;
}

void LogProb(Calls& run, DeviceGemm& gemm, const LogProbRows& rows, const Tensor& output, const LogProbScratch& scratch,
             float* log_prob, float* entropy, float* lse, cudaStream_t stream) {
  for (int64_t row = 0; row < rows.x.rows; row += kLogitRows) {
    const int64_t count = std::min(kLogitRows, rows.x.rows - row);
    const Part part = PartOf(rows, row, count);
    for (int64_t v = 0; v < output.rows; v += kLogitColumns) {
      const int64_t columns = std::min(kLogitColumns, output.rows - v);
      const Tensor logits = Corner(scratch.logits, count, columns);
      run(gemm.LinearColumns(part.x, output, v, logits, stream), "logits");
      run(LogProbAccumulate(logits, v, part.targets, part.inverse_temperature, scratch.states, /*scratch=*/nullptr,
                            stream),
          "log-probs");
    }
    run(LogProbFinish(scratch.states, count, log_prob + row, entropy == nullptr ? nullptr : entropy + row, lse + row,
                      stream),
        "log-probs");
  }
}

void LogProbBackward(Calls& run, DeviceGemm& gemm, const LogProbRows& rows, const Tensor& output,
                     const LogProbScratch& scratch, const float* coefficient, const float* lse, const Tensor& d_x,
                     const Tensor& d_output, cudaStream_t stream) {
  for (int64_t row = 0; row < rows.x.rows; row += kLogitRows) {
    const int64_t count = std::min(kLogitRows, rows.x.rows - row);
    const Part part = PartOf(rows, row, count);
    const Tensor d_x32 = scratch.d_x.Rows(0, count);
    for (int64_t v = 0; v < output.rows; v += kLogitColumns) {
      const int64_t columns = std::min(kLogitColumns, output.rows - v);
      const Tensor w = output.Rows(v, columns), logits = Corner(scratch.logits, count, columns);
      const Tensor d_logits = Corner(scratch.d_logits, count, columns);
      run(gemm.LinearColumns(part.x, output, v, logits, stream), "logits");
      run(LogProbGradient(logits, v, part.targets, part.inverse_temperature, coefficient + row, lse + row, stream),
          "gradient of the logits");
      if (d_logits.dtype != DType::kF32) {  // whole rows of the block: columns beyond the chunk are not read again
        run(Convert(logits.As<float>(), count * logits.stride, d_logits.dtype, d_logits.data, stream),
            "gradient of the logits");
      }
      run(gemm.LinearBackwardInput(d_logits, w, d_x32, /*accumulate=*/v > 0, stream), "gradient of the hidden state");
      if (d_output.data != nullptr) {
        run(gemm.LinearBackwardWeight(d_logits, part.x, d_output.Rows(v, columns), {}, stream),
            "gradient of the output matrix");
      }
    }
    run(Convert(d_x32.As<float>(), count * d_x32.cols, d_x.dtype, d_x.Row(row), stream),
        "gradient of the hidden state");
  }
}

}  // namespace lockstep::cuda
