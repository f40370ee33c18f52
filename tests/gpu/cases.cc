// Every kernel on fixed inputs, one line a result: `name dtype digest first-values`. Compiled twice from this source:
// for the CPU over the emulation (Bazel: //tests/gpu:cases_emulated, whose lines are golden.txt) and by nvcc for the
// device (tests/gpu/run_all, which compares). Small shapes: compute-sanitizer runs it too. A tensor core sums in its
// own order, so what goes through one has no digest here but a yes or no: the device against itself, and within a
// bound.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "engine/base/philox.h"
#include "engine/kernels/contract.h"
#include "engine/kernels/cuda/attention.h"
#include "engine/kernels/cuda/gemm.h"
#include "engine/kernels/cuda/kernels.h"
#include "engine/kernels/cuda/kv_pages.h"
#include "engine/kernels/cuda/low_rank.h"
#include "engine/kernels/cuda/moe.h"

namespace lockstep::cuda {
namespace {

void Must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

// Bytes on the device.
class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_(bytes) { Must(cudaMalloc(&data_, bytes + 16), "cudaMalloc"); }
  template <typename T>
  explicit Memory(const std::vector<T>& values) : Memory(values.size() * sizeof(T)) {
    Must(cudaMemcpy(data_, values.data(), bytes_, cudaMemcpyHostToDevice), "copy to the device");
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { cudaFree(data_); }

  template <typename T>
  T* As() const {
    return static_cast<T*>(data_);
  }
  template <typename T>
  std::vector<T> Read() const {
    std::vector<T> values(bytes_ / sizeof(T));
    Must(cudaMemcpy(values.data(), data_, values.size() * sizeof(T), cudaMemcpyDeviceToHost), "copy from the device");
    return values;
  }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

// About normal, from the counter-based generator: the same numbers with every library.
std::vector<float> Values(int64_t n, uint64_t seed, float sigma = 1) {
  std::vector<float> values(static_cast<size_t>(n));
  for (size_t i = 0; i < values.size(); ++i) {
    const auto words = Philox4x32(seed, i, 0);
    double sum = -2;
    for (const uint32_t word : words) sum += static_cast<double>(UniformOpen(word));
    values[i] = static_cast<float>(sum * 1.7320508 * static_cast<double>(sigma));
  }
  return values;
}
std::vector<int32_t> Ids(int64_t n, int64_t limit, uint64_t seed) {
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (size_t i = 0; i < ids.size(); ++i) {
    ids[i] = static_cast<int32_t>(Philox4x32(seed, i, 1)[0] % static_cast<uint64_t>(limit));
  }
  return ids;
}

std::vector<char> Encode(DType dtype, const std::vector<float>& values) {
  std::vector<char> bytes(values.size() * DTypeSize(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    char* at = bytes.data() + i * DTypeSize(dtype);
    if (dtype == DType::kF32) std::memcpy(at, &values[i], 4);
    if (dtype == DType::kF16) {
      const __half half = __float2half_rn(values[i]);
      std::memcpy(at, &half, 2);
    }
    if (dtype == DType::kBF16) {
      const __nv_bfloat16 half = __float2bfloat16_rn(values[i]);
      std::memcpy(at, &half, 2);
    }
  }
  return bytes;
}

// A dense matrix on the device.
struct DeviceMatrix {
  Memory memory;
  Tensor view;
  DeviceMatrix(DType dtype, int64_t rows, int64_t cols, uint64_t seed, float sigma = 1)
      : DeviceMatrix(dtype, rows, cols, Values(rows * cols, seed, sigma)) {}
  DeviceMatrix(DType dtype, int64_t rows, int64_t cols, const std::vector<float>& values)
      : memory(Encode(dtype, values)), view(memory.As<void>(), dtype, rows, cols) {}
};

const char* Name(DType dtype) {
  if (dtype == DType::kF32) return "fp32";
  return dtype == DType::kF16 ? "fp16" : "bf16";
}

void Report(const char* name, const char* dtype, const Memory& memory) {
  Must(cudaDeviceSynchronize(), name);
  const auto bytes = memory.Read<unsigned char>();
  uint64_t digest = 0xcbf29ce484222325u;  // FNV-1a
  for (const unsigned char byte : bytes) digest = (digest ^ byte) * 0x100000001b3u;
  std::printf("%s %s %016" PRIx64, name, dtype, digest);
  for (size_t i = 0; i < 16 && i < bytes.size(); ++i) std::printf("%s%02x", i % 4 == 0 ? " " : "", bytes[i]);
  std::printf("\n");
}

std::string Sized(const char* name, int64_t size) {
  char text[64];
  std::snprintf(text, sizeof(text), "%s_%" PRId64, name, size);
  return text;
}

void Embeddings(DType dtype) {
  const int64_t tokens = 37, vocabulary = 11, d = 130;
  const std::vector<int32_t> ids = Ids(tokens, vocabulary, 1);
  const EmbeddingRuns runs = PlanEmbeddingRuns(ids);
  const Memory device_ids(ids), order(runs.order), begin(runs.begin);
  const DeviceMatrix table(dtype, vocabulary, d, 2), out(dtype, tokens, d, 3), gradient(DType::kF32, vocabulary, d, 4);
  Must(Embedding(device_ids.As<int32_t>(), tokens, table.view, out.view, {}), "embedding");
  Report("embedding", Name(dtype), out.memory);
  Must(EmbeddingBackward(device_ids.As<int32_t>(), order.As<int32_t>(), begin.As<int32_t>(),
                         static_cast<int64_t>(runs.begin.size()) - 1, out.view, gradient.view, {}),
       "embedding_backward");
  Report("embedding_backward", Name(dtype), gradient.memory);
}

void Norms(DType dtype) {
  for (const int64_t d : {24, 100, 2051}) {
    const int64_t rows = 5;
    const DeviceMatrix x(dtype, rows, d, 1), delta(dtype, rows, d, 2), weight(dtype, 1, d, 3), sum(dtype, rows, d, 4),
        out(dtype, rows, d, 5), d_weight(DType::kF32, 1, d, 6), d_x(dtype, rows, d, 7);
    const Memory rstd(sizeof(float) * rows);
    const Memory scratch(sizeof(float) * static_cast<size_t>(RmsNormBackwardScratch(rows, d)));
    Must(RmsNorm(x.view, delta.view, weight.view, 1e-6f, sum.view, out.view, rstd.As<float>(), {}), "rms_norm");
    Report(Sized("rms_norm_sum", d).c_str(), Name(dtype), sum.memory);
    Report(Sized("rms_norm", d).c_str(), Name(dtype), out.memory);
    Report(Sized("rms_norm_rstd", d).c_str(), Name(dtype), rstd);
    Must(RmsNormBackward(out.view, sum.view, weight.view, rstd.As<float>(), delta.view, d_x.view, d_weight.view,
                         scratch.As<float>(), {}),
         "rms_norm_backward");
    Report(Sized("rms_norm_backward", d).c_str(), Name(dtype), d_x.memory);
    Report(Sized("rms_norm_d_weight", d).c_str(), Name(dtype), d_weight.memory);
  }
}

void Rotary(DType dtype) {
  const QkvShape shape = {4, 2, 64};
  const int64_t rows = 7, cols = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim, max_positions = 40;
  const DeviceMatrix sums(DType::kF32, rows, cols, 1), bias(dtype, 1, cols, 2),
      q(dtype, rows, shape.num_heads * shape.head_dim, 3);
  // Any numbers do for the table: the kernels multiply.
  const DeviceMatrix table(DType::kF32, max_positions, shape.head_dim, 4, 0.5f);
  const std::vector<int32_t> positions = Ids(rows, max_positions, 5), slots = {3, 17, 30, -1, 0, 16, 47};
  const Memory device_positions(positions), device_slots(slots);
  const DeviceMatrix keys(dtype, 3 * kPageTokens, shape.num_kv_heads * shape.head_dim, 6),
      values(dtype, 3 * kPageTokens, shape.num_kv_heads * shape.head_dim, 7);
  Must(RopeWriteKv(shape, sums.view, bias.view, device_positions.As<int32_t>(), device_slots.As<int32_t>(), table.view,
                   q.view, keys.view.data, values.view.data, {}),
       "rope_write_kv");
  Report("rope_write_kv_q", Name(dtype), q.memory);
  Report("rope_write_kv_keys", Name(dtype), keys.memory);
  Report("rope_write_kv_values", Name(dtype), values.memory);
  for (const bool backward : {false, true}) {
    Must(Rope(q.view, shape.num_heads, shape.head_dim, device_positions.As<int32_t>(), table.view, backward, {}),
         "rope");
    Report(backward ? "rope_backward" : "rope", Name(dtype), q.memory);
  }
}

void Activations(DType dtype) {
  const int64_t rows = 5, f = 171;
  const DeviceMatrix gate_up(dtype, rows, 2 * f, 1, 30), d_out(dtype, rows, f, 2), out(dtype, rows, f, 3),
      gradient(dtype, rows, 2 * f, 4);
  Must(SwiGlu(gate_up.view, out.view, {}), "swiglu");
  Report("swiglu", Name(dtype), out.memory);
  Must(SwiGluBackward(d_out.view, gate_up.view, gradient.view, {}), "swiglu_backward");
  Report("swiglu_backward", Name(dtype), gradient.memory);
}

// The experts that a router chose, recorded, taken back with one other, and their slots.
void Routers() {
  const int64_t tokens = 29, n = 60, k = 6;
  const DeviceMatrix logits(DType::kF32, tokens, n, 1, 2), d_logits(DType::kF32, tokens, n, 2);
  const Memory products(Values(tokens * k, 3)), experts(sizeof(int32_t) * tokens * k),
      weights(sizeof(float) * tokens * k);
  for (const bool normalize : {true, false}) {
    const std::string kind = normalize ? "_normalized" : "";
    Must(RouteTopK(logits.view, k, normalize, experts.As<int32_t>(), weights.As<float>(), {}), "route_top_k");
    Report("route_top_k", "fp32", experts);
    Report(("route_top_k_weights" + kind).c_str(), "fp32", weights);
    Must(RouteTopKBackward(logits.view, experts.As<int32_t>(), k, normalize, products.As<float>(), d_logits.view, {}),
         "route_top_k_backward");
    Report(("route_top_k_backward" + kind).c_str(), "fp32", d_logits.memory);
  }
  const RoutingPlace place = {2 * k, k, 1};
  const Memory record(std::vector<uint8_t>(2 * tokens * k)), counts(std::vector<int64_t>(2));
  Must(RecordExperts(experts.As<int32_t>(), tokens, k, place, record.As<uint8_t>(), {}), "record_experts");
  Report("record_experts", "fp32", record);
  auto given = record.Read<uint8_t>();
  uint8_t& last = given[2 * k - 1];  // of the first token: another one that is still the last
  last = static_cast<uint8_t>(last + 1 < n ? last + 1 : last - 1);
  const Memory device_given(given), has_given(std::vector<uint8_t>(tokens, 1));
  Must(TakeGivenExperts(device_given.As<uint8_t>(), has_given.As<uint8_t>(), place, tokens, k, true,
                        experts.As<int32_t>(), counts.As<RoutingCounts>(), {}),
       "take_given_experts");
  Report("take_given_experts", "fp32", experts);
  Report("take_given_experts_counts", "fp32", counts);
  Must(RouteGiven(logits.view, experts.As<int32_t>(), k, true, weights.As<float>(), {}), "route_given");
  Report("route_given", "fp32", weights);
  const Memory slots(sizeof(int32_t) * tokens * k), slot_tokens(sizeof(int32_t) * tokens * k),
      slot_weights(sizeof(float) * tokens * k), offsets(sizeof(int32_t) * (n + 1));
  Must(AssignSlots(experts.As<int32_t>(), weights.As<float>(), tokens, k, n, slots.As<int32_t>(),
                   slot_tokens.As<int32_t>(), slot_weights.As<float>(), offsets.As<int32_t>(), {}),
       "assign_slots");
  Report("assign_slots", "fp32", slots);
  Report("assign_slots_tokens", "fp32", slot_tokens);
  Report("assign_slots_weights", "fp32", slot_weights);
  Report("assign_slots_offsets", "fp32", offsets);
}

void SlotRows(DType dtype) {
  const int64_t tokens = 12, k = 2, d = 133;
  std::vector<int32_t> in_turn(tokens * k);  // slot -> token, token -> slots: 7 and 24 have no common divisor
  for (size_t i = 0; i < in_turn.size(); ++i) in_turn[i] = static_cast<int32_t>(i * 7 % in_turn.size());
  const Memory slots(in_turn), rows(Ids(tokens * k, tokens, 1)), scale(Values(tokens * k, 2)),
      dots(sizeof(float) * tokens * k);
  const DeviceMatrix x(dtype, tokens, d, 3), copied(dtype, tokens * k, d, 4), scaled(dtype, tokens * k, d, 5),
      out(dtype, tokens, d, 6);
  Must(GatherRows(x.view, rows.As<int32_t>(), nullptr, copied.view, {}), "gather_rows");
  Report("gather_rows", Name(dtype), copied.memory);
  Must(GatherRows(x.view, rows.As<int32_t>(), scale.As<float>(), scaled.view, {}), "gather_rows");
  Report("gather_rows_scaled", Name(dtype), scaled.memory);
  Must(CombineRows(copied.view, slots.As<int32_t>(), k, scale.As<float>(), x.view, out.view, {}), "combine_rows");
  Report("combine_rows", Name(dtype), out.memory);
  Must(RowDots(copied.view, scaled.view, slots.As<int32_t>(), tokens * k, dots.As<float>(), {}), "row_dots");
  Report("row_dots", Name(dtype), dots);
}

void LowRanks(DType dtype) {
  const int64_t tokens = 70, rank = 11, n = 40, k = 133;
  const DeviceMatrix d_out(dtype, tokens, n, 1), x(dtype, tokens, k, 2), a(DType::kF32, rank, k, 3),
      b(DType::kF32, n, rank, 4), d_a(DType::kF32, rank, k, 5), d_b(DType::kF32, n, rank, 6);
  const Memory scratch(sizeof(float) * static_cast<size_t>(LowRankScratch(tokens, rank)));
  Must(LowRankBackward(d_out.view, x.view, a.view, b.view, 0.375f, d_a.view, d_b.view, scratch.As<float>(), {}),
       "low_rank_backward");
  Report("low_rank_backward_a", Name(dtype), d_a.memory);
  Report("low_rank_backward_b", Name(dtype), d_b.memory);
}

void KvPageCopies(DType dtype) {
  const int64_t kv_heads = 2, e = 24, pages = 3, layers = 2, row = kv_heads * e * kPageTokens;
  const DeviceMatrix cache(dtype, layers * 2 * pages, row, 1);  // [layer][keys, values][page]
  const auto half = static_cast<int64_t>(DTypeSize(dtype)) * pages * row;
  Must(CopyKvPage({dtype, kv_heads, e, pages, layers, 2 * half, cache.view.data, cache.view.As<char>() + half}, 2, 0, 7,
                  {}),
       "copy_kv_page");
  Report("copy_kv_page", Name(dtype), cache.memory);
}

void Optimizers(DType dtype) {
  const int64_t n = 70001;
  const DeviceMatrix grad(DType::kF32, 1, n, 1, 50), param(DType::kF32, 1, n, 2), m(DType::kF32, 1, n, 3),
      v(DType::kF32, 1, n, 4), copy(dtype, 1, n, 5);
  std::vector<float> squares = Values(n, 4);
  for (float& value : squares) value *= value;
  Must(cudaMemcpy(v.view.data, squares.data(), squares.size() * sizeof(float), cudaMemcpyHostToDevice), "copy");
  const Memory scratch(sizeof(double) * static_cast<size_t>(GradNormScratch(n))), control(sizeof(StepControl));
  Must(GradNorm(grad.view.As<float>(), n, 1024, 1, scratch.As<double>(), control.As<StepControl>(), {}), "grad_norm");
  Report("grad_norm", Name(dtype), control);
  Must(AdamW({.lr = 1e-3f, .weight_decay = 0.1f, .step = 3}, control.As<StepControl>(), param.view.As<float>(),
             m.view.As<float>(), v.view.As<float>(), grad.view.As<float>(), n, dtype, copy.view.data, {}),
       "adamw");
  Report("adamw_param", Name(dtype), param.memory);
  Report("adamw_m", Name(dtype), m.memory);
  Report("adamw_v", Name(dtype), v.memory);
  Report("adamw_copy", Name(dtype), copy.memory);
}

// Quarters up to 7/4: sums of some thousand products are exact in FP32 in any order, so tensor cores have to give the
// bits that the emulation gives.
std::vector<float> Coarse(int64_t n, uint64_t seed) {
  std::vector<float> values = Values(n, seed);
  for (float& value : values) value = std::rint(value * 2) / 4;
  return values;
}

// Linear and its backward products, of matrices with and without 16-byte rows.
void Gemms(DType dtype) {
  const int64_t rows = 37, n = 72, k = 328;
  const DeviceMatrix x(dtype, rows, k, Coarse(rows * k, 1)), w(dtype, n, k, Coarse(n * k, 2)),
      bias(dtype, 1, n, Coarse(n, 3)), d_out(dtype, rows, n, Coarse(rows * n, 4));
  for (const GemmTile tile : {GemmTile::kSkinny, GemmTile::k64, GemmTile::k128}) {
    const auto gemm = MakeMatchedGemm(tile);
    const int64_t name = static_cast<int64_t>(tile);
    for (const int64_t from : {0, 3}) {
      const Tensor part = x.view.Cols(from, k - 7), weight = w.view.Cols(from, k - 7);
      const DeviceMatrix out(dtype, rows, n, 5), d_x(dtype, rows, k, 6), d_w(DType::kF32, n, k, 7),
          d_bias(DType::kF32, 1, n, 8);
      Must(gemm->Linear(part, weight, bias.view, out.view, out.view, {}), "linear");
      Report(Sized("linear", name).c_str(), Name(dtype), out.memory);
      Must(gemm->LinearBackwardInput(d_out.view, weight, d_x.view.Cols(from, k - 7), true, {}), "linear_d_x");
      Report(Sized("linear_d_x", name).c_str(), Name(dtype), d_x.memory);
      Must(gemm->LinearBackwardWeight(d_out.view, part, d_w.view.Cols(from, k - 7), d_bias.view, {}), "linear_d_w");
      Report(Sized("linear_d_w", name).c_str(), Name(dtype), d_w.memory);
      Report(Sized("linear_d_bias", name).c_str(), Name(dtype), d_bias.memory);
    }
  }
}

void ExpertGemms(DType dtype) {
  const std::vector<int32_t> offsets = {0, 0, 3, 3, 31, 33};
  const int64_t rows = 37, n = 40, k = 136, num_experts = 5;
  const Memory device_offsets(offsets);
  const ExpertRows experts = {device_offsets.As<int32_t>(), num_experts};
  const DeviceMatrix x(dtype, rows, k, Coarse(rows * k, 1)), d_out(dtype, rows, n, Coarse(rows * n, 2)),
      w(dtype, num_experts * n, k, Coarse(num_experts * n * k, 3));
  const DeviceMatrix out(dtype, rows, n, 4), d_x(dtype, rows, k, 5), d_w(DType::kF32, num_experts * n, k, 6);
  const auto gemm = MakeMatchedGemm();
  Must(gemm->GroupedLinear(x.view, w.view, experts, out.view, {}), "experts");
  Report("experts", Name(dtype), out.memory);
  Must(gemm->GroupedLinearBackwardInput(d_out.view, w.view, experts, d_x.view, false, {}), "experts_d_x");
  Report("experts_d_x", Name(dtype), d_x.memory);
  Must(gemm->GroupedLinearBackwardWeight(d_out.view, x.view, experts, d_w.view, {}), "experts_d_w");
  Report("experts_d_w", Name(dtype), d_w.memory);
}

// The matched contract where sums do round, and over magnitudes from 2^-14 to 2^9: the bytes of one row in every tile,
// among other rows and alone. 1 for each that is equal; the bits themselves are the device's own.
void GemmRows(DType dtype) {
  const int64_t rows = 70, n = 136, k = 648;
  std::vector<float> left = Values(rows * k, 1), right = Values(n * k, 2);
  for (size_t i = 0; i < left.size(); ++i) left[i] = std::ldexp(left[i], static_cast<int>(i * 7 % 22) - 14);
  for (size_t i = 0; i < right.size(); ++i) right[i] = std::ldexp(right[i], static_cast<int>(i * 5 % 22) - 14);
  const DeviceMatrix x(dtype, rows, k, left), w(dtype, n, k, right), alone(DType::kF32, 1, n, 3);
  Must(MakeMatchedGemm()->Linear(x.view.Rows(41, 1), w.view, {}, {}, alone.view, {}), "linear");
  Must(cudaDeviceSynchronize(), "linear");
  const auto expected = alone.memory.Read<float>();
  std::vector<int32_t> equal;
  for (const GemmTile tile : {GemmTile::kAutomatic, GemmTile::kSkinny, GemmTile::k64, GemmTile::k128}) {
    for (const int64_t begin : {0, 30, 41}) {
      const int64_t count = std::min<int64_t>(rows - begin, begin == 30 ? 12 : rows);
      const DeviceMatrix out(DType::kF32, count, n, 4);
      Must(MakeMatchedGemm(tile)->Linear(x.view.Rows(begin, count), w.view, {}, {}, out.view, {}), "linear");
      Must(cudaDeviceSynchronize(), "linear");
      const auto all = out.memory.Read<float>();
      const float* row = all.data() + (41 - begin) * n;
      equal.push_back(std::memcmp(row, expected.data(), static_cast<size_t>(n) * sizeof(float)) == 0 ? 1 : 0);
    }
  }
  Report("linear_rows_equal", Name(dtype), Memory(equal));
}

void LogProbs() {
  const int64_t rows = 3, vocabulary = 9001;
  const DeviceMatrix logits(DType::kF32, rows, vocabulary, 1, 4);
  const Memory targets(Ids(rows, vocabulary, 2)), inverse(std::vector<float>{1.0f, 1.25f, 0.5f});
  const Memory states(sizeof(LogitState) * rows), coefficient(std::vector<float>{1.5f, -0.25f, 0.0f});
  const size_t floats = sizeof(float) * rows;
  const Memory log_prob(floats), entropy(floats), lse(floats);
  const Memory between(sizeof(float) * static_cast<size_t>(LogProbAccumulateScratch(rows, 2 * kVocabularyChunk)));
  for (int64_t at = 0; at < vocabulary; at += 2 * kVocabularyChunk) {
    const int64_t count = std::min(2 * kVocabularyChunk, vocabulary - at);
    Must(LogProbAccumulate(logits.view.Cols(at, count), at, targets.As<int32_t>(), inverse.As<float>(),
                           states.As<LogitState>(), between.As<float>(), {}),
         "log_prob");
  }
  Must(LogProbFinish(states.As<LogitState>(), rows, log_prob.As<float>(), entropy.As<float>(), lse.As<float>(), {}),
       "log_prob");
  Report("log_prob", "fp32", log_prob);
  Report("entropy", "fp32", entropy);
  Report("lse", "fp32", lse);
  Must(LogProbGradient(logits.view, 0, targets.As<int32_t>(), inverse.As<float>(), coefficient.As<float>(),
                       lse.As<float>(), {}),
       "log_prob_gradient");
  Report("log_prob_gradient", "fp32", logits.memory);
}

void Sampling() {
  const int64_t rows = 12, vocabulary = 1500;
  const DeviceMatrix logits(DType::kF32, rows, vocabulary, 1, 3);
  std::vector<SamplingRow> plain(rows), cut(rows);
  std::vector<float> inverse(rows);
  for (uint32_t i = 0; i < rows; ++i) {
    plain[i] = {.temperature = 0.5f + 0.25f * static_cast<float>(i), .token_index = i, .seed = 42, .group_id = 7};
    inverse[i] = 1.0f / plain[i].temperature;
    cut[i] = plain[i];
    if (i % 2 == 0) cut[i].top_k = 1 + i;
    if (i % 3 != 0) cut[i].top_p = 0.3f + 0.05f * static_cast<float>(i);
  }
  plain[5].temperature = 0;
  const Memory device_plain(plain), device_cut(cut), device_inverse(inverse);
  const Memory states(sizeof(LogitState) * rows), lse(sizeof(float) * rows);
  LogitState* const state = states.As<LogitState>();
  Must(LogProbAccumulate(logits.view, 0, nullptr, device_inverse.As<float>(), state, /*scratch=*/nullptr, {}), "lse");
  Must(LogProbFinish(state, rows, nullptr, nullptr, lse.As<float>(), {}), "lse");
  const Memory tokens(sizeof(int32_t) * rows), log_probs(sizeof(float) * rows);
  const Memory scratch(static_cast<size_t>(SampleScratchBytes(rows, vocabulary)));
  Must(Sample(logits.view, device_plain.As<SamplingRow>(), lse.As<float>(), tokens.As<int32_t>(), log_probs.As<float>(),
              scratch.As<void>(), {}),
       "sample");
  Report("sample_tokens", "fp32", tokens);
  Report("sample_log_probs", "fp32", log_probs);
  // Their log-probs hold the device's FP64 log: not promised to the bit (kernels.h).
  Must(Sample(logits.view, device_cut.As<SamplingRow>(), lse.As<float>(), tokens.As<int32_t>(), log_probs.As<float>(),
              scratch.As<void>(), {}),
       "sample");
  Report("sample_top_tokens", "fp32", tokens);
}

std::vector<float> Decode(DType dtype, const std::vector<char>& bytes) {
  std::vector<float> values(bytes.size() / DTypeSize(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    const char* at = bytes.data() + i * DTypeSize(dtype);
    if (dtype == DType::kF32) std::memcpy(&values[i], at, 4);
    if (dtype == DType::kF16) {
      __half half;
      std::memcpy(&half, at, 2);
      values[i] = __half2float(half);
    }
    if (dtype == DType::kBF16) {
      __nv_bfloat16 half;
      std::memcpy(&half, at, 2);
      values[i] = __bfloat162float(half);
    }
  }
  return values;
}

void Answer(const char* name, const char* dtype, bool yes) {
  std::printf("%s %s %s\n", name, dtype, yes ? "yes" : "no");
}

// One sequence, its packed attention and the gradients of it.
struct AttentionCase {
  DType dtype;
  int64_t length;
  AttentionShape shape = {6, 2, 32, 0.2f};
  std::vector<char> q_bytes = Encoded(shape.num_heads, 1), k_bytes = Encoded(shape.num_kv_heads, 2),
                    v_bytes = Encoded(shape.num_kv_heads, 3), d_bytes = Encoded(shape.num_heads, 4);
  Memory q{q_bytes}, k{k_bytes}, v{v_bytes}, d_out{d_bytes};
  Memory out{q_bytes.size()}, d_q{q_bytes.size()}, d_k{k_bytes.size()}, d_v{k_bytes.size()};
  Memory lse{Floats()}, scratch{Floats()};
  Memory cu_seqlens{std::vector<int32_t>{0, static_cast<int32_t>(length)}};

  size_t Floats() const { return static_cast<size_t>(length * shape.num_heads) * sizeof(float); }
  // Multiples of 1/8: every storage type has them, so that all see the same inputs.
  std::vector<char> Encoded(int64_t heads, uint64_t seed) const {
    std::vector<float> values = Values(length * heads * shape.head_dim, seed);
    for (float& value : values) value = std::round(value * 8) / 8;
    return Encode(dtype, values);
  }
  Tensor View(const Memory& memory, int64_t heads) const {
    return Tensor(memory.As<void>(), dtype, length, heads * shape.head_dim);
  }
  Tensor Wide(const Memory& memory) const { return View(memory, shape.num_heads); }
  Tensor Narrow(const Memory& memory) const { return View(memory, shape.num_kv_heads); }
  Tensor Lse() const { return Tensor(lse.As<void>(), DType::kF32, length, shape.num_heads); }

  void Packed() const {
    Must(AttentionPacked(shape, Wide(q), Narrow(k), Narrow(v), cu_seqlens.As<int32_t>(), 1, length, Numerics::kMatched,
                         Wide(out), Lse(), {}),
         "attention_packed");
  }
  void Backward() const {
    Must(AttentionPackedBackward(shape, Wide(d_out), Wide(q), Narrow(k), Narrow(v), Wide(out), Lse(),
                                 cu_seqlens.As<int32_t>(), 1, length, Numerics::kMatched, Wide(d_q), Narrow(d_k),
                                 Narrow(d_v), scratch.As<float>(), {}),
         "attention_backward");
  }
  // The first `decode_rows` one by one, the others in tiles, from pages in descending order.
  std::vector<char> Paged(int64_t decode_rows) const {
    const int64_t pages = (length + kPageTokens - 1) / kPageTokens, e = shape.head_dim;
    const size_t element = DTypeSize(dtype),
                 page_bytes = static_cast<size_t>(shape.num_kv_heads * e * kPageTokens) * element;
    std::vector<char> keys(static_cast<size_t>(pages) * page_bytes, '\xFF'), values = keys;
    std::vector<int32_t> table(static_cast<size_t>(pages)), positions(static_cast<size_t>(length));
    for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(table.size() - 1 - i);
    for (int64_t t = 0; t < length; ++t) {
      positions[static_cast<size_t>(t)] = static_cast<int32_t>(t);
      for (int64_t g = 0; g < shape.num_kv_heads; ++g) {
        const int64_t block = (table[static_cast<size_t>(t / kPageTokens)] * shape.num_kv_heads + g) * e * kPageTokens;
        for (int64_t i = 0; i < e; ++i) {
          const size_t from = static_cast<size_t>((t * shape.num_kv_heads + g) * e + i) * element;
          std::memcpy(&keys[static_cast<size_t>(block + i * kPageTokens + t % kPageTokens) * element], &k_bytes[from],
                      element);
          std::memcpy(&values[static_cast<size_t>(block + t % kPageTokens * e + i) * element], &v_bytes[from], element);
        }
      }
    }
    const Memory device_keys(keys), device_values(values), device_table(table), device_positions(positions),
        sequences(std::vector<int32_t>(static_cast<size_t>(length), 0)), result(q_bytes.size());
    const Memory split_scratch(
        static_cast<size_t>(AttentionPagedScratchBytes(shape, dtype, decode_rows, length - 1, Numerics::kMatched)));
    const PagedView view = {device_table.As<int32_t>(),
                            pages,
                            sequences.As<int32_t>(),
                            device_positions.As<int32_t>(),
                            device_keys.As<void>(),
                            device_values.As<void>(),
                            decode_rows};
    Must(AttentionPaged(shape, Wide(q), view, length - 1, Numerics::kMatched, split_scratch.As<void>(), Wide(result),
                        {}),
         "attention_paged");
    Must(cudaDeviceSynchronize(), "attention_paged");
    return result.Read<char>();
  }
};

// Within `bound` of the largest element.
bool Near(DType dtype, const Memory& got, const Memory& truth, double bound) {
  const std::vector<float> a = Decode(dtype, got.Read<char>()), b = truth.Read<float>();
  double largest = 0, difference = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    largest = std::max(largest, static_cast<double>(std::abs(b[i])));
    difference = std::max(difference, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
    if (std::isnan(a[i])) return false;
  }
  return difference <= bound * largest;
}

void Attentions(DType dtype) {
  const AttentionCase small = {dtype, 45};
  small.Packed();
  small.Backward();
  if (dtype == DType::kF32) {
    Report("attention", Name(dtype), small.out);
    Report("attention_lse", Name(dtype), small.lse);
    Report("attention_d_q", Name(dtype), small.d_q);
    Report("attention_d_k", Name(dtype), small.d_k);
    Report("attention_d_v", Name(dtype), small.d_v);
    Answer("attention_paged_is_packed", Name(dtype), small.Paged(45) == small.out.Read<char>());
    return;
  }
  const AttentionCase truth = {DType::kF32, 45};
  truth.Packed();
  truth.Backward();
  Must(cudaDeviceSynchronize(), "attention");
  // Weights, score gradients and results are rounded to half a step each.
  const double bound = 8 * (dtype == DType::kF16 ? 0x1p-11 : 0x1p-8);
  Answer("attention_near_fp32", Name(dtype), Near(dtype, small.out, truth.out, bound));
  Answer("attention_lse_near_fp32", Name(dtype), Near(DType::kF32, small.lse, truth.lse, 1e-5));
  Answer("attention_d_q_near_fp32", Name(dtype), Near(dtype, small.d_q, truth.d_q, bound));
  Answer("attention_d_k_near_fp32", Name(dtype), Near(dtype, small.d_k, truth.d_k, bound));
  Answer("attention_d_v_near_fp32", Name(dtype), Near(dtype, small.d_v, truth.d_v, bound));
  const std::vector<char> d_k = small.d_k.Read<char>();
  small.Backward();
  Must(cudaDeviceSynchronize(), "attention_backward");
  Answer("attention_backward_repeats", Name(dtype), small.d_k.Read<char>() == d_k);
  const AttentionCase large = {dtype, 290};  // more than one split
  large.Packed();
  Must(cudaDeviceSynchronize(), "attention_packed");
  const std::vector<char> packed = large.out.Read<char>();
  Answer("attention_tiles_are_packed", Name(dtype), large.Paged(0) == packed);
  Answer("attention_mix_is_packed", Name(dtype), large.Paged(17) == packed);
  Answer("attention_decode_is_packed", Name(dtype), large.Paged(290) == packed);
}

}  // namespace
}  // namespace lockstep::cuda

int main() {
  using namespace lockstep;
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    cuda::Embeddings(dtype);
    cuda::Norms(dtype);
    cuda::Rotary(dtype);
    cuda::Activations(dtype);
    cuda::SlotRows(dtype);
    cuda::LowRanks(dtype);
    cuda::KvPageCopies(dtype);
    cuda::Optimizers(dtype);
    cuda::Attentions(dtype);
    cuda::Gemms(dtype);
    cuda::ExpertGemms(dtype);
    cuda::GemmRows(dtype);
  }
  cuda::Routers();
  cuda::LogProbs();
  cuda::Sampling();
  return 0;
}
