#include "engine/cuda/drawing.h"

#include <algorithm>

#include "engine/kernels/cuda/finite_rows.h"

namespace lockstep::cuda {

DrawScratch CarveDraws(int64_t rows, int64_t vocab_size, Carver& carver) {
  DrawScratch scratch;
  scratch.logits = carver.Take(DType::kF32, rows, vocab_size);
  scratch.states = carver.TakeArray<LogitState>(rows);
  scratch.lse = carver.TakeArray<float>(rows);
  const auto softmax = static_cast<int64_t>(sizeof(float)) * LogProbAccumulateScratch(rows, vocab_size);
  scratch.shared = carver.TakeArray<char>(std::max(SampleScratchBytes(rows, vocab_size), softmax));
  return scratch;
}

absl::Status Draw(DeviceDecoder& decoder, const DeviceWeights& weights, const Tensor& hidden, const DrawRows& rows,
                  const DrawScratch& scratch) {
  const cudaStream_t stream = decoder.stream().get();
  const int64_t step = scratch.logits.rows;
  for (int64_t row = 0; row < hidden.rows; row += step) {
    const int64_t count = std::min(step, hidden.rows - row);
    const Tensor logits = scratch.logits.Rows(0, count);
    if (absl::Status status = decoder.Logits(weights, hidden.Rows(row, count), logits); !status.ok()) return status;
    Calls run;
    run(LogProbAccumulate(logits, 0, /*targets=*/nullptr, rows.inverse_temperature + row, scratch.states,
                          static_cast<float*>(scratch.shared), stream),
        "the softmax of the logits");
    run(LogProbFinish(scratch.states, count, nullptr, nullptr, scratch.lse, stream), "the softmax of the logits");
    run(Sample(logits, rows.sampling + row, scratch.lse, rows.tokens + row, rows.log_probs + row, scratch.shared,
               stream),
        "sampling");
    run(MarkNonfinite(logits, rows.sampling + row, scratch.lse, rows.log_probs + row, stream), "checking the logits");
    if (!run.ok()) return run.status();
  }
  return absl::OkStatus();
}

}  // namespace lockstep::cuda
