// What the tests of this folder share: small models in every shape that the device's decoder has, and a device to put
// them on.
#ifndef LOCKSTEP_ENGINE_CUDA_TEST_UTIL_H_
#define LOCKSTEP_ENGINE_CUDA_TEST_UTIL_H_

#include <limits>
#include <string>
#include <vector>

#include "engine/cuda/arena.h"
#include "engine/cuda/device.h"
#include "engine/cuda/device_weights.h"
#include "engine/kernels/cuda/emulation/runtime.h"
#include "engine/model/model.h"
#include "engine/model/test_util.h"
#include "gtest/gtest.h"

namespace lockstep::cuda {

// Qwen2: bias, tied embedding. Sizes that are no multiples of a tile.
inline ModelConfig SmallDense() {
  ModelConfig config = testing::SmallConfig();
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  return config;
}

// Qwen3: q/k norms, an output matrix of its own.
inline ModelConfig SmallNormed() {
  ModelConfig config = SmallDense();
  config.architecture = "Qwen3ForCausalLM";
  config.qkv_bias = false;
  config.qk_norm = true;
  config.tie_word_embeddings = false;
  return config;
}

// Qwen3-MoE: experts in the first and last layer.
inline ModelConfig SmallMixture() {
  ModelConfig config = SmallNormed();
  config.architecture = "Qwen3MoeForCausalLM";
  config.num_layers = 3;
  config.num_experts = 5;
  config.experts_per_token = 2;
  config.moe_intermediate_size = 12;
  config.norm_topk_prob = true;
  config.mlp_only_layers = {1};
  return config;
}

inline std::vector<ModelConfig> SmallModels() { return {SmallDense(), SmallNormed(), SmallMixture()}; }

// A stream and its staging; heals the emulated device afterwards.
class OnDevice {
 public:
  OnDevice() : stream(*Stream::Create()), staging(*Staging::Create(size_t{4} << 10)) {}
  ~OnDevice() {
    emulation::SetMemoryLimit(std::numeric_limits<size_t>::max());
    emulation::FailWork(0, cudaSuccess);
  }
  DeviceWeights Put(const ModelConfig& config, DType dtype) {
    DeviceWeights weights = *DeviceWeights::Allocate(config, dtype, stream);
    const std::vector<float> arena = testing::TestArena(config);
    EXPECT_TRUE(weights.Load(arena.data(), stream, staging).ok());
    EXPECT_TRUE(stream.Wait("loading weights").ok());
    return weights;
  }

  Stream stream;
  Staging staging;
};

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_CUDA_TEST_UTIL_H_
