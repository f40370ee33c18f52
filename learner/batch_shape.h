// What the shape of a batch alone does to a log-prob: the same weights, the same tokens, the same engine, computed in
// other company. Each sequence alone in one training pass is the yardstick; the other shapes are what a run has:
// training micro-batches, chunked prefill, and decoding one row or many rows at a time.
#ifndef LOCKSTEP_LEARNER_BATCH_SHAPE_H_
#define LOCKSTEP_LEARNER_BATCH_SHAPE_H_

#include <string>
#include <vector>

#include "engine/kernels/ops.h"
#include "engine/model/model.h"

namespace lockstep {

struct BatchShapeRow {
  std::string shape;
  int64_t tokens = 0;
  double outside = 0;    // fraction of tokens whose ratio to the yardstick is outside of [0.99, 1.01]
  double different = 0;  // fraction whose log-prob has other bits
  double mean_abs_log_ratio = 0;
  double max_abs_log_ratio = 0;
};

// Sequences have at least two tokens each and at most the model's positions; the log-prob of each token after the first
// counts. Temperature 1.
std::vector<BatchShapeRow> MeasureBatchShapes(const Weights& weights, Numerics numerics, int threads,
                                              const std::vector<std::vector<int32_t>>& sequences);

// Text of uniform random tokens, lengths from 2 to max_length, by seed.
std::vector<std::vector<int32_t>> RandomSequences(const ModelConfig& config, int count, int max_length, uint64_t seed);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_BATCH_SHAPE_H_
