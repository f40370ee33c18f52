#include "engine/cuda/device_weights.h"

#include <utility>

#include "engine/kernels/cuda/rows.h"

namespace lockstep::cuda {

size_t DeviceWeights::Bytes(const ModelConfig& config, DType dtype) {
  return static_cast<size_t>(ArenaLayout(config).size) * DTypeSize(dtype);
}

absl::StatusOr<DeviceWeights> DeviceWeights::Allocate(const ModelConfig& config, DType dtype, const Stream& stream) {
  DeviceWeights weights;
  weights.config_ = config;
  weights.dtype_ = dtype;
  weights.layout_ = ArenaLayout(config);
  const ArenaLayout& layout = weights.layout_;
  auto arena = DeviceBuffer::Allocate(static_cast<size_t>(layout.size) * DTypeSize(dtype), "weights");
  if (!arena.ok()) return arena.status();
  weights.arena_ = *std::move(arena);
  if (absl::Status status = weights.arena_.Zero(stream); !status.ok()) return status;

  const auto view = [&](int param) { return weights.Of(param); };
  const auto experts = [&](int first) { return layout.ViewExperts(first, config.num_experts, weights.arena(), dtype); };
  weights.embed_ = view(layout.params.embed);
  weights.output_ = view(layout.params.output());
  weights.final_norm_ = view(layout.params.final_norm);
  for (const ParamLayout::LayerParams& at : layout.params.layers) {
    weights.layers_.push_back({.input_norm = view(at.input_norm),
                               .post_norm = view(at.post_norm),
                               .qkv_bias = view(at.qkv_bias),
                               .q_norm = view(at.q_norm),
                               .k_norm = view(at.k_norm),
                               .qkv = view(at.qkv),
                               .o = view(at.o),
                               .gate_up = view(at.gate_up),
                               .down = view(at.down),
                               .router = view(at.router),
                               .expert_gate_up = experts(at.experts),
                               .expert_down = experts(at.experts < 0 ? -1 : at.expert_down(0))});
  }
  return weights;
}

absl::Status DeviceWeights::Load(const ParamSource& source, const Stream& stream, Staging& staging) {
  return LoadArena(layout_, source, dtype_, arena_.data(), stream, staging);
}

absl::Status DeviceWeights::LoadFromMaster(const float* master, const Stream& stream) {
  return CudaStatus(Convert(master, layout_.size, dtype_, arena_.data(), stream.get()), "rounding the master weights");
}

}  // namespace lockstep::cuda
