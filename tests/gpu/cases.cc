// Every kernel on fixed inputs, one line a result: `name dtype digest first-values`. Compiled twice from this source:
// for the CPU over the emulation (Bazel: //tests/gpu:cases_emulated, whose lines are golden.txt) and by nvcc for the
// device (tests/gpu/run_all, which compares). Small shapes: compute-sanitizer runs it too.
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
#include "engine/kernels/cuda/gemm.h"
#include "engine/kernels/cuda/kernels.h"

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
  for (int64_t at = 0; at < vocabulary; at += 2 * kVocabularyChunk) {
    const int64_t count = std::min(2 * kVocabularyChunk, vocabulary - at);
    Must(LogProbAccumulate(logits.view.Cols(at, count), at, targets.As<int32_t>(), inverse.As<float>(),
                           states.As<LogitState>(), {}),
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
  Must(LogProbAccumulate(logits.view, 0, nullptr, device_inverse.As<float>(), states.As<LogitState>(), {}), "lse");
  Must(LogProbFinish(states.As<LogitState>(), rows, nullptr, nullptr, lse.As<float>(), {}), "lse");
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

}  // namespace
}  // namespace lockstep::cuda

int main() {
  using namespace lockstep;
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    cuda::Embeddings(dtype);
    cuda::Norms(dtype);
    cuda::Rotary(dtype);
    cuda::Activations(dtype);
    cuda::Optimizers(dtype);
    cuda::Gemms(dtype);
    cuda::ExpertGemms(dtype);
    cuda::GemmRows(dtype);
  }
  cuda::LogProbs();
  cuda::Sampling();
  return 0;
}
