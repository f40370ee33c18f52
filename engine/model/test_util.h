// What the tests of this folder share: small models with known weights, and the goldens of the Python oracle.
#ifndef LOCKSTEP_ENGINE_MODEL_TEST_UTIL_H_
#define LOCKSTEP_ENGINE_MODEL_TEST_UTIL_H_

#include <cstdint>
#include <string>
#include <vector>

#include "engine/model/decoder.h"
#include "engine/model/model.h"

namespace lockstep::testing {

// MurmurHash3's finalizer of (stream, index): the tests' source of numbers, the same as the oracle's.
uint32_t Hash32(uint64_t stream, uint64_t index);

// Weights that fp16 and bf16 hold exactly, as tests/golden/make_decoder_golden.py makes them.
std::vector<float> TestArena(const ModelConfig& config);
Weights TestWeights(const ModelConfig& config, DType dtype);

// A model of odd shapes whose forward pass takes microseconds a token.
ModelConfig SmallConfig();

// `lengths.size()` sequences packed end to end, random tokens; every row has a loss, its target the next token (of the
// whole batch, so last rows have one as well).
PackedBatch TestBatch(const ModelConfig& config, const std::vector<int>& lengths, uint64_t stream);

struct Golden {
  ModelConfig config;
  float temperature = 1;
  PackedBatch batch;
  std::vector<float> coefficient, log_prob, entropy;  // [R]
  std::vector<float> gradients;                       // arena
};
// Reads engine/model/testdata/NAME.golden; ends the test process when it is not there or not whole.
Golden LoadGolden(const std::string& name);

}  // namespace lockstep::testing

#endif  // LOCKSTEP_ENGINE_MODEL_TEST_UTIL_H_
