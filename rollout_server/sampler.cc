#include "rollout_server/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "engine/base/check.h"
#include "engine/base/philox.h"
#include "engine/kernels/contract.h"
#include "engine/kernels/cpu/vector_math.h"

namespace lockstep {
namespace {

using cpu::kLanes;
// Tokens whose mass is summed as one; a draw walks at most one such block.
constexpr int64_t kBlock = kSamplerBlock;

// Masses exp(z - lse) of `count` tokens to `mass` (padded with zeros to whole lanes).
void BlockMasses(const float* logits, int64_t count, float inverse_temperature, float lse, float* mass) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const __m256 z = _mm256_mul_ps(_mm256_loadu_ps(logits + i), _mm256_set1_ps(inverse_temperature));
    // Rounding may leave the likeliest token a hair above 0.
    const __m256 x = _mm256_min_ps(_mm256_sub_ps(z, _mm256_set1_ps(lse)), _mm256_setzero_ps());
    _mm256_storeu_ps(mass + i, cpu::Exp(x));
  }
  if (i == count) return;
  float tail[kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    tail[lane] = i + lane < count ? std::min(logits[i + lane] * inverse_temperature - lse, 0.0f) : -1000.0f;
  }
  _mm256_storeu_ps(mass + i, cpu::Exp(_mm256_loadu_ps(tail)));
}

double SumInOrder(const float* mass, int64_t count) {
  // Eight running sums in FP64, folded in lane order: one fixed order.
  double lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i % kLanes] += mass[i];
  double sum = 0;
  for (double lane : lanes) sum += lane;
  return sum;
}

int32_t ArgMax(const float* logits, int64_t vocab_size) {
  return static_cast<int32_t>(std::max_element(logits, logits + vocab_size) - logits);
}

}  // namespace

double DrawUniform(const DrawKey& key) {
  const std::array<uint32_t, 4> words =
      Philox4x32(key.seed, key.group_id, (uint64_t{key.sample_index} << 32) | key.token_index);
  return UniformOpen52(words[0], words[1]);
}

bool AllFinite(const float* logits, int64_t vocab_size) {
  // A float is not finite when its exponent bits are all ones.
  constexpr int32_t kExponent = 0x7f800000;
  const __m256i exponent = _mm256_set1_epi32(kExponent);
  __m256i bad = _mm256_setzero_si256();
  int64_t i = 0;
  for (; i + kLanes <= vocab_size; i += kLanes) {
    const __m256i bits = _mm256_castps_si256(_mm256_loadu_ps(logits + i));
    bad = _mm256_or_si256(bad, _mm256_cmpeq_epi32(_mm256_and_si256(bits, exponent), exponent));
  }
  int any = _mm256_movemask_epi8(bad);
  for (; i < vocab_size; ++i) any |= std::isfinite(logits[i]) ? 0 : 1;
  return any == 0;
}

void Sampler::SetRow(const float* logits, int64_t vocab_size, const SamplingTransform& transform, float lse) {
  LOCKSTEP_CHECK(vocab_size > 0, "a row has tokens");
  logits_ = logits;
  vocab_size_ = vocab_size;
  transform_ = transform;
  lse_ = lse;
  if (transform.temperature == 0) {
    greedy_token_ = ArgMax(logits, vocab_size);
    return;
  }
  inverse_temperature_ = 1.0f / transform.temperature;
  const bool top_k = transform.top_k > 0 && transform.top_k < vocab_size;
  restricted_ = top_k || transform.top_p < 1;
  if (restricted_) {
    KeepTop();
    return;
  }
  block_mass_.clear();
  float mass[kBlock];
  double cumulated = 0;
  for (int64_t begin = 0; begin < vocab_size; begin += kBlock) {
    const int64_t count = std::min(kBlock, vocab_size - begin);
    BlockMasses(logits + begin, count, inverse_temperature_, lse, mass);
    cumulated += SumInOrder(mass, count);
    block_mass_.push_back(cumulated);
  }
}

void Sampler::KeepTop() {
  kept_.resize(static_cast<size_t>(vocab_size_));
  std::iota(kept_.begin(), kept_.end(), 0);
  const auto before = [this](int32_t a, int32_t b) {
    return logits_[a] > logits_[b] || (logits_[a] == logits_[b] && a < b);
  };
  const float largest = *std::max_element(logits_, logits_ + vocab_size_) * inverse_temperature_;
  mass_.resize(static_cast<size_t>((vocab_size_ + kLanes - 1) / kLanes * kLanes));
  BlockMasses(logits_, vocab_size_, inverse_temperature_, largest, mass_.data());
  size_t count = kept_.size();
  if (transform_.top_k > 0 && transform_.top_k < count) {
    count = transform_.top_k;
    std::nth_element(kept_.begin(), kept_.begin() + static_cast<std::ptrdiff_t>(count) - 1, kept_.end(), before);
  }
  if (transform_.top_p < 1) count = SmallestHead(count, before);
  // The last one kept, in descending order, bounds the rest; then by token id.
  const int32_t last = *std::max_element(kept_.begin(), kept_.begin() + static_cast<std::ptrdiff_t>(count), before);
  kept_.clear();
  kept_mass_.clear();
  double cumulated = 0;
  for (int32_t v = 0; v < vocab_size_; ++v) {
    if (before(last, v)) continue;
    kept_.push_back(v);
    cumulated += mass_[static_cast<size_t>(v)];
    kept_mass_.push_back(cumulated);
  }
  // From here on the log-prob of a kept token is z - lse_.
  lse_ = static_cast<float>(largest + std::log(cumulated));
}

template <typename Before>
size_t Sampler::SmallestHead(size_t count, const Before& before) {
  const auto sum = [this](size_t begin, size_t end) {
    double mass = 0;
    for (size_t i = begin; i < end; ++i) mass += mass_[static_cast<size_t>(kept_[i])];
    return mass;
  };
  const double wanted = static_cast<double>(transform_.top_p) * sum(0, count);
  // Halves the range that holds the end of the head: [0, low) has less than `wanted`, [0, high) has enough.
  size_t low = 0, high = count;
  double below = 0;
  while (high - low > 1) {
    const size_t middle = low + (high - low) / 2;
    const auto at = [this](size_t i) { return kept_.begin() + static_cast<std::ptrdiff_t>(i); };
    std::nth_element(at(low), at(middle), at(high), before);
    const double mass = sum(low, middle);
    if (below + mass >= wanted) {
      high = middle;
    } else {
      below += mass;
      low = middle;
    }
  }
  return high;
}

Draw Sampler::Sample(const DrawKey& key) const {
  if (transform_.temperature == 0) return {greedy_token_, 0.0f};
  const double u = DrawUniform(key);
  return restricted_ ? SampleKept(u) : SampleAll(u);
}

Draw Sampler::SampleKept(double u) const {
  const double target = u * kept_mass_.back();
  const auto found = std::upper_bound(kept_mass_.begin(), kept_mass_.end(), target);
  const size_t index = std::min(static_cast<size_t>(found - kept_mass_.begin()), kept_.size() - 1);
  const int32_t token = kept_[index];
  return {token, kept_.size() == 1 ? 0.0f : logits_[token] * inverse_temperature_ - lse_};
}

Draw Sampler::SampleAll(double u) const {
  const double target = u * block_mass_.back();
  const auto found = std::upper_bound(block_mass_.begin(), block_mass_.end(), target);
  const int64_t block = std::min<int64_t>(found - block_mass_.begin(), static_cast<int64_t>(block_mass_.size()) - 1);
  const int64_t begin = block * kBlock;
  const int64_t count = std::min(kBlock, vocab_size_ - begin);
  float mass[kBlock];
  BlockMasses(logits_ + begin, count, inverse_temperature_, lse_, mass);
  double cumulated = block == 0 ? 0 : block_mass_[static_cast<size_t>(block - 1)];
  // The walk's sum and the block's differ in rounding; what falls between them goes to the last token with mass.
  int64_t chosen = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (mass[i] <= 0) continue;
    chosen = i;
    cumulated += mass[i];
    if (cumulated > target) break;
  }
  const auto token = static_cast<int32_t>(begin + chosen);
  return {token, logits_[token] * inverse_temperature_ - lse_};
}

}  // namespace lockstep
