// Each memory-bound kernel at a size that no cache holds, as a fraction of the copy bandwidth measured in the same run;
// where one call has fewer bytes than that, calls take turns over more. The bytes of a kernel are those that it must
// read and write once; they stand beside its name below.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "engine/kernels/cuda/attention.h"
#include "engine/kernels/cuda/kernels.h"
#include "engine/kernels/cuda/low_rank.h"
#include "engine/kernels/cuda/moe.h"

namespace lockstep::cuda {
namespace {

constexpr int kWarmUp = 3, kRepeats = 11;
// Copies of 1 GiB before the first measurement: a device that did nothing has low clocks for some tenths of a second.
constexpr int kWakeUp = 500;

void Must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

// Device bytes, zeroed: for most kernels here the values do not matter. Freed at exit.
void* Bytes(int64_t count) {
  void* data = nullptr;
  Must(cudaMalloc(&data, static_cast<size_t>(count)), "cudaMalloc");
  Must(cudaMemset(data, 0, static_cast<size_t>(count)), "cudaMemset");
  return data;
}
Tensor Matrix(DType dtype, int64_t rows, int64_t cols) {
  return Tensor(Bytes(rows * cols * static_cast<int64_t>(DTypeSize(dtype))), dtype, rows, cols);
}

// Values about normal, the same again and again: where the values matter (which experts, which tokens), and for
// products, whose rate is higher over zeros, since they draw less power.
template <typename T>
void Randomize(void* data, int64_t count, float sigma) {
  static std::mt19937 random(1);
  std::normal_distribution<float> normal(0, sigma);
  std::vector<T> values(static_cast<size_t>(std::min<int64_t>(count, int64_t{1} << 20)));
  for (T& value : values) value = static_cast<T>(normal(random));
  for (int64_t at = 0; at < count; at += static_cast<int64_t>(values.size())) {
    const size_t some = std::min(values.size(), static_cast<size_t>(count - at));
    Must(cudaMemcpy(static_cast<T*>(data) + at, values.data(), some * sizeof(T), cudaMemcpyHostToDevice), "copy");
  }
}
Tensor RandomMatrix(DType dtype, int64_t rows, int64_t cols, float sigma = 1) {
  const Tensor matrix = Matrix(dtype, rows, cols);
  if (dtype == DType::kF32) {
    Randomize<float>(matrix.data, rows * cols, sigma);
  } else {
    Randomize<__half>(matrix.data, rows * cols, sigma);
  }
  return matrix;
}

// Median of the repeats, in seconds.
double Seconds(const std::function<cudaError_t()>& call) {
  cudaEvent_t begin, end;
  Must(cudaEventCreate(&begin), "cudaEventCreate");
  Must(cudaEventCreate(&end), "cudaEventCreate");
  std::vector<float> times;
  for (int i = 0; i < kWarmUp + kRepeats; ++i) {
    Must(cudaEventRecord(begin), "cudaEventRecord");
    Must(call(), "launch");
    Must(cudaEventRecord(end), "cudaEventRecord");
    Must(cudaEventSynchronize(end), "kernel");
    float milliseconds = 0;
    Must(cudaEventElapsedTime(&milliseconds, begin, end), "cudaEventElapsedTime");
    if (i >= kWarmUp) times.push_back(milliseconds);
  }
  std::nth_element(times.begin(), times.begin() + kRepeats / 2, times.end());
  return static_cast<double>(times[kRepeats / 2]) * 1e-3;
}

double copy_bandwidth = 0;

void Row(const char* name, double bytes, const std::function<cudaError_t()>& call) {
  const double seconds = Seconds(call);
  const double bandwidth = bytes / seconds;
  if (copy_bandwidth == 0) copy_bandwidth = bandwidth;
  std::printf("%-28s %10.1f us %10.1f GB/s %8.0f%%\n", name, seconds * 1e6, bandwidth * 1e-9,
              bandwidth / copy_bandwidth * 100);
}

// Attention against two limits: decode by the bytes of keys and values that it reads, training by the operations of its
// products (half of the scores, being causal), printed as TFLOP/s in place of a fraction.
void MeasureAttention(Numerics numerics, const char* name) {
  const AttentionShape shape = {32, 8, 128, 0.088f};
  const DType half = DType::kF16;
  const int64_t batch = 64, context = 4096, pages = batch * context / kPageTokens;
  const int64_t wide = shape.num_heads * shape.head_dim, narrow = shape.num_kv_heads * shape.head_dim;
  const auto upload = [](const std::vector<int32_t>& values) {
    int32_t* data = static_cast<int32_t*>(Bytes(static_cast<int64_t>(values.size()) * 4));
    Must(cudaMemcpy(data, values.data(), values.size() * 4, cudaMemcpyHostToDevice), "copy");
    return data;
  };
  std::vector<int32_t> table(static_cast<size_t>(pages)), sequences(static_cast<size_t>(batch));
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i * 7919 % table.size());
  for (size_t i = 0; i < sequences.size(); ++i) sequences[i] = static_cast<int32_t>(i);
  const std::vector<int32_t> last(static_cast<size_t>(batch), static_cast<int32_t>(context - 1));
  const Tensor keys = RandomMatrix(half, batch * context, narrow), values = RandomMatrix(half, batch * context, narrow);
  const PagedView view = {upload(table), context / kPageTokens, upload(sequences), upload(last), keys.data, values.data,
                          batch};
  for (const int64_t rows : {int64_t{1}, int64_t{8}, batch}) {
    const Tensor q = RandomMatrix(half, rows, wide), out = Matrix(half, rows, wide);
    void* scratch = Bytes(AttentionPagedScratchBytes(shape, half, rows, context - 1, numerics) + 16);
    char text[64];
    std::snprintf(text, sizeof(text), "decode %d x 4096 %s", static_cast<int>(rows), name);
    int64_t call = 0;  // each one takes other sequences
    Row(text, 4.0 * static_cast<double>(rows * context * narrow), [&] {
      PagedView some = view;
      some.decode_rows = rows;
      some.row_sequence += call++ * rows % batch;
      return AttentionPaged(shape, q, some, context - 1, numerics, scratch, out, {});
    });
  }
  const int64_t t = 16384, length = 4096;
  const Tensor q = RandomMatrix(half, t, wide), k = RandomMatrix(half, t, narrow), v = RandomMatrix(half, t, narrow),
               out = Matrix(half, t, wide), lse = Matrix(DType::kF32, t, shape.num_heads),
               d_out = RandomMatrix(half, t, wide), d_q = Matrix(half, t, wide), d_k = Matrix(half, t, narrow),
               d_v = Matrix(half, t, narrow);
  const int32_t* cu = upload({0, 4096, 8192, 12288, 16384});
  float* scratch = static_cast<float*>(Bytes(AttentionBackwardScratch(shape, t) * 4));
  const double product = static_cast<double>(t) * static_cast<double>(length) * static_cast<double>(wide);
  const auto flops = [&](const char* what, double operations, const std::function<cudaError_t()>& call) {
    const double seconds = Seconds(call);
    std::printf("%-28s %10.1f us %10.1f TFLOP/s\n", what, seconds * 1e6, operations / seconds * 1e-12);
  };
  flops((std::string("attention ") + name).c_str(), 2 * product,
        [&] { return AttentionPacked(shape, q, k, v, cu, 4, length, numerics, out, lse, {}); });
  flops((std::string("attention_backward ") + name).c_str(), 5 * product, [&] {
    return AttentionPackedBackward(shape, d_out, q, k, v, out, lse, cu, 4, length, numerics, d_q, d_k, d_v, scratch,
                                   {});
  });
}

void Measure() {
  const int64_t t = 16384, d = 2048, f = 8192, heads = 32, kv_heads = 8, e = 64, vocabulary = 151936;
  const DType half = DType::kF16;
  const auto size = [](int64_t n) { return static_cast<double>(n); };
  const int64_t copied = int64_t{1} << 30;
  void *from = Bytes(copied), *to = Bytes(copied);
  const auto copy = [&] { return cudaMemcpyAsync(to, from, static_cast<size_t>(copied), cudaMemcpyDeviceToDevice); };
  for (int i = 0; i < kWakeUp; ++i) Must(copy(), "copy");
  Row("copy", 2.0 * size(copied), copy);

  const Tensor x = Matrix(half, t, d), delta = Matrix(half, t, d), out = Matrix(half, t, d), d_x = Matrix(half, t, d);
  const Tensor weight = Matrix(half, 1, d), d_weight = Matrix(DType::kF32, 1, d);
  float* rstd = static_cast<float*>(Bytes(t * 4));
  float* scratch = static_cast<float*>(Bytes(RmsNormBackwardScratch(t, d) * 4));
  Row("rms_norm", 2.0 * size(t * d * 2), [&] { return RmsNorm(x, {}, weight, 1e-6f, {}, out, rstd, {}); });
  Row("rms_norm with residual", 4.0 * size(t * d * 2),
      [&] { return RmsNorm(x, delta, weight, 1e-6f, x, out, rstd, {}); });
  Row("rms_norm_backward", 4.0 * size(t * d * 2),
      [&] { return RmsNormBackward(out, x, weight, rstd, delta, d_x, d_weight, scratch, {}); });

  const Tensor gate_up = Matrix(half, t, 2 * f), activated = Matrix(half, t, f), d_gate_up = Matrix(half, t, 2 * f);
  Row("swiglu", 3.0 * size(t * f * 2), [&] { return SwiGlu(gate_up, activated, {}); });
  Row("swiglu_backward", 5.0 * size(t * f * 2), [&] { return SwiGluBackward(activated, gate_up, d_gate_up, {}); });

  const Tensor qkv = Matrix(DType::kF32, t, (heads + 2 * kv_heads) * e), q = Matrix(half, t, heads * e);
  const Tensor bias = Matrix(half, 1, qkv.cols), table = Matrix(DType::kF32, t, e);
  std::vector<int32_t> rows(t);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<int32_t>(i);
  int32_t* index = static_cast<int32_t*>(Bytes(t * 4));
  Must(cudaMemcpy(index, rows.data(), rows.size() * 4, cudaMemcpyHostToDevice), "copy");
  void *keys = Bytes(t * kv_heads * e * 2), *values = Bytes(t * kv_heads * e * 2);
  Row("rope_write_kv", size(t * qkv.cols * 6), [&] {
    return RopeWriteKv({heads, kv_heads, e}, qkv, bias, index, index, table, q, keys, values, {});
  });

  // 8 of 128 experts, as many slots as tokens above; the slots of a token lie apart.
  const int64_t experts = 128, top_k = 8, moe_tokens = t / top_k;
  const Tensor router = RandomMatrix(DType::kF32, moe_tokens, experts), combined = Matrix(half, moe_tokens, d);
  int32_t* chosen = static_cast<int32_t*>(Bytes(t * 4));
  float *chosen_weights = static_cast<float*>(Bytes(t * 4)), *dots = static_cast<float*>(Bytes(t * 4));
  int32_t *slots = static_cast<int32_t*>(Bytes(t * 4)), *slot_tokens = static_cast<int32_t*>(Bytes(t * 4));
  int32_t* offsets = static_cast<int32_t*>(Bytes((experts + 1) * 4));
  Row("route_top_k", size(router.rows * experts * 4 + t * 8),
      [&] { return RouteTopK(router, top_k, true, chosen, chosen_weights, {}); });
  Row("assign_slots", size(t * 20), [&] {
    return AssignSlots(chosen, chosen_weights, moe_tokens, top_k, experts, slots, slot_tokens, dots, offsets, {});
  });
  Row("gather_rows", size((t + moe_tokens) * d * 2), [&] { return GatherRows(combined, slot_tokens, nullptr, x, {}); });
  Row("combine_rows", size((t + 2 * moe_tokens) * d * 2),
      [&] { return CombineRows(x, slots, top_k, chosen_weights, combined, combined, {}); });
  Row("row_dots", 2.0 * size(t * f * 2), [&] { return RowDots(activated, activated, slots, t, dots, {}); });

  const int64_t rank = 16;
  const Tensor a = Matrix(DType::kF32, rank, d), b = Matrix(DType::kF32, d, rank);
  float* products = static_cast<float*>(Bytes(LowRankScratch(t, rank) * 4));
  Row("low_rank_backward", 4.0 * size(t * d * 2), [&] { return LowRankBackward(out, x, a, b, 1, a, b, products, {}); });

  const int64_t logit_rows = 512;
  const Tensor logits = RandomMatrix(DType::kF32, logit_rows, vocabulary, 3);
  const std::vector<float> ones(static_cast<size_t>(logit_rows), 1.0f);
  float *inverse = static_cast<float*>(Bytes(logit_rows * 4)), *lse = static_cast<float*>(Bytes(logit_rows * 4));
  Must(cudaMemcpy(inverse, ones.data(), ones.size() * 4, cudaMemcpyHostToDevice), "copy");
  LogitState* states = static_cast<LogitState*>(Bytes(logit_rows * static_cast<int64_t>(sizeof(LogitState))));
  const double logit_bytes = size(logit_rows * vocabulary * 4);
  float* between = static_cast<float*>(Bytes(LogProbAccumulateScratch(logit_rows, vocabulary) * 4));
  Row("log_prob_accumulate", logit_bytes,
      [&] { return LogProbAccumulate(logits, 0, index, inverse, states, between, {}); });
  Must(LogProbFinish(states, logit_rows, nullptr, nullptr, lse, {}), "log_prob_finish");

  const int64_t samples = 64;
  std::vector<SamplingRow> plain(samples), cut(samples);
  for (SamplingRow& row : cut) row.top_p = 0.95f;
  SamplingRow* sampling = static_cast<SamplingRow*>(Bytes(samples * static_cast<int64_t>(sizeof(SamplingRow))));
  void* sample_scratch = Bytes(SampleScratchBytes(samples, vocabulary));
  float* log_probs = static_cast<float*>(Bytes(samples * 4));
  int32_t* tokens = static_cast<int32_t*>(Bytes(samples * 4));
  for (const auto* rows_of : {&plain, &cut}) {
    Must(cudaMemcpy(sampling, rows_of->data(), samples * sizeof(SamplingRow), cudaMemcpyHostToDevice), "copy");
    int64_t call = 0;  // each one takes other rows
    Row(rows_of == &plain ? "sample, 64 rows" : "sample top_p, 64 rows", size(samples * vocabulary * 4), [&] {
      const int64_t first = call++ * samples % logit_rows;
      return Sample(logits.Rows(first, samples), sampling, lse + first, tokens, log_probs, sample_scratch, {});
    });
  }
  Row("log_prob_gradient", 2 * logit_bytes,
      [&] { return LogProbGradient(logits, 0, index, inverse, inverse, lse, {}); });

  const int64_t n = int64_t{1} << 28;
  float *param = static_cast<float*>(Bytes(n * 4)), *m = static_cast<float*>(Bytes(n * 4));
  float *v = static_cast<float*>(Bytes(n * 4)), *grad = static_cast<float*>(Bytes(n * 4));
  double* partial = static_cast<double*>(Bytes(GradNormScratch(n) * 8));
  StepControl* control = static_cast<StepControl*>(Bytes(sizeof(StepControl)));
  Row("grad_norm", size(n * 4), [&] { return GradNorm(grad, n, 1, 1, partial, control, {}); });
  Row("adamw", size(n * 30), [&] { return AdamW({.lr = 1e-3f}, control, param, m, v, grad, n, half, from, {}); });
  MeasureAttention(Numerics::kMatched, "matched");
  MeasureAttention(Numerics::kNative, "native");
}

}  // namespace
}  // namespace lockstep::cuda

int main() {
  lockstep::cuda::Measure();
  return 0;
}
