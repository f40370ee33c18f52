#include "engine/model/rotary_table.h"

#include <cmath>
#include <numbers>

namespace lockstep {
namespace {

// Angle per position of the pair (i, i + E/2): theta^(-2i/E), scaled as Llama 3.1 has it (transformers'
// rope_type "llama3"; Meta's apply_scaling).
double RotaryFrequency(const ModelConfig& config, int64_t i) {
  const double frequency = std::pow(static_cast<double>(config.rope_theta), -2.0 * i / config.head_dim);
  const RopeScaling& scaling = config.rope_scaling;
  if (!scaling.llama3) return frequency;
  const double low = scaling.low_freq_factor, high = scaling.high_freq_factor;
  const double turns = scaling.original_max_positions * frequency / (2 * std::numbers::pi);  // context / wavelength
  if (turns < low) return frequency / scaling.factor;
  if (turns > high) return frequency;
  const double kept = (turns - low) / (high - low);
  return (1 - kept) * frequency / scaling.factor + kept * frequency;
}

}  // namespace

void FillRotaryTable(const ModelConfig& config, float* table) {
  const int64_t half = config.head_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const double frequency = RotaryFrequency(config, i);
    for (int64_t position = 0; position < config.max_position_embeddings; ++position) {
      float* row = table + position * config.head_dim;
      row[i] = static_cast<float>(std::cos(position * frequency));
      row[half + i] = static_cast<float>(std::sin(position * frequency));
    }
  }
}

}  // namespace lockstep
