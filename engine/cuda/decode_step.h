// Steps of decode rows alone, one CUDA graph each: forward pass, logits, log-sum-exp, draw, and the inputs of the next
// step, so that the host sends nothing from step to step and reads tokens a step late:
//
//   step.SetRows(rows);
//   first = step.Launch(weights);
//   second = step.Launch(weights);        // while it runs, the host looks at the first
//   draws = step.Read(first);
//   step.SetRows(...)                     // some ended, some came: rows go on from what the second step drew
//   third = step.Launch(weights);         // may come before Read(second)
//
// There is a graph for each bucket of rows (1, 2, 4, 8, 16, 24, ...), of context lengths, and set of weights; padded
// rows have slot -1. The first step of a kind is put on the stream call by call (kernels are loaded then), the second
// is captured. Under matched numerics neither enters the bits.
//
// A row whose next position has no page (AdvanceRows) is padded from then on; what it draws has no meaning. So a row
// that has ended may run on until the host knows.
#ifndef LOCKSTEP_ENGINE_CUDA_DECODE_STEP_H_
#define LOCKSTEP_ENGINE_CUDA_DECODE_STEP_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <tuple>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/cuda/device_decoder.h"
#include "engine/cuda/drawing.h"
#include "engine/cuda/input_block.h"
#include "engine/kernels/cuda/decode_rows.h"

namespace lockstep::cuda {

// The smallest bucket that holds `rows`: 1, 2, 4, then multiples of 8 up to 256, then of 64.
int64_t DecodeBucket(int64_t rows);

class DecodeStep {
 public:
  struct Limits {
    int64_t rows = 256;           // taken up to their bucket
    int64_t sequence_pages = 64;  // of the longest sequence
    int64_t graphs = 128;         // kept at once; for another one, that which has not run for longest goes
  };
  // Results of so many steps are kept.
  static constexpr uint64_t kResults = 4;

  // decoder (whose PagedLimits cover `limits`) and cache outlive it. graphs false: every step call by call.
  static absl::StatusOr<std::unique_ptr<DecodeStep>> Create(DeviceDecoder* decoder, const DeviceKv* cache,
                                                            const Limits& limits, bool graphs = true);
  // Device memory that Create takes; graphs come on top.
  static size_t Bytes(const ModelConfig& config, DType dtype, const Limits& limits);
  // What the decoder is to be made for.
  static PagedLimits DecoderLimits(const ModelConfig& config, const Limits& limits);

  struct Row {
    // The row of the last launched step whose draw is this row's token; -1: `token`.
    int32_t from = -1;
    int32_t token = 0;
    int32_t position = 0;            // of the token
    std::span<const int32_t> pages;  // of positions 0 .. as far as the row may go without another SetRows
    SamplingRow sampling;            // of the next draw
  };
  // Sends nothing where these are the rows of the last launched step one token further, with the same pages: the device
  // has their inputs already. Else it may come while steps run, and waits until the last rows that it sent are there.
  absl::Status SetRows(std::span<const Row> rows);
  // One step of the rows; returns its number.
  absl::StatusOr<uint64_t> Launch(const DeviceWeights& weights);

  struct Draws {
    std::span<const int32_t> tokens;   // [rows]
    std::span<const float> log_probs;  // [rows]
    std::span<const uint8_t> routing;  // [rows, row_bytes]: the experts of the step's tokens
  };
  // What a step drew; waits for it. One of the last kResults steps; valid until as many more are launched.
  absl::StatusOr<Draws> Read(uint64_t step) const;

  // For work on the same stream between steps.
  const DrawScratch& scratch() const { return scratch_; }
  // How many times SetRows had something to send.
  int64_t uploads() const { return uploads_; }
  int64_t graphs() const { return static_cast<int64_t>(graphs_captured_); }
  // Forgets the graphs that read these weights: before their memory is freed.
  void Forget(const DeviceWeights& weights);

 private:
  struct Results {
    PinnedBuffer host;
    Event copied;
    uint64_t step = 0;
    int64_t rows = 0;
  };
  // Bucket, bound of positions, arena of the weights.
  using Kind = std::tuple<int64_t, int64_t, const void*>;

  DecodeStep() = default;
  absl::Status Enqueue(const DeviceWeights& weights, int64_t bucket, int64_t max_position);
  absl::Status RunKind(const DeviceWeights& weights, int64_t bucket, int64_t max_position);
  int64_t PositionBound() const;
  bool GoOn(std::span<const Row> rows) const;

  DeviceDecoder* decoder_ = nullptr;
  const DeviceKv* cache_ = nullptr;
  Limits limits_;
  bool use_graphs_ = true;
  size_t row_bytes_ = 0;  // of routing

  InputBlock block_;
  InputBlock::Array<int32_t> from_, given_, positions_, slots_, row_sequence_, table_;
  InputBlock::Array<SamplingRow> sampling_;
  InputBlock::Array<float> inverse_temperature_;

  DeviceBuffer memory_;
  int32_t* tokens_ = nullptr;  // [rows] of the step that comes
  Tensor hidden_;              // [rows, D]
  DrawScratch scratch_;
  // Of the last step, behind one another: what the host gets.
  int32_t* drawn_ = nullptr;    // [rows]
  float* log_probs_ = nullptr;  // [rows]
  uint8_t* routing_ = nullptr;  // [rows, row_bytes]

  int64_t rows_ = 0;      // that are set
  int32_t advanced_ = 0;  // steps since
  int64_t uploads_ = 0;
  int64_t max_position_ = 0;  // of them, in the step that comes
  uint64_t steps_ = 0;
  Results results_[kResults];
  struct Kept {
    std::optional<Graph> graph;  // nullopt: run once, not captured
    uint64_t used = 0;           // by this step last
  };
  // Makes room for one more graph.
  void DropOldestGraph();
  std::map<Kind, Kept> graphs_;
  int64_t graphs_captured_ = 0;
};

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_CUDA_DECODE_STEP_H_
