// The CPU backend: engine/kernels/ops.h on cpu/*.
#include <memory>

#include "engine/kernels/cpu/attention.h"
#include "engine/kernels/cpu/elementwise.h"
#include "engine/kernels/cpu/experts.h"
#include "engine/kernels/cpu/linear.h"
#include "engine/kernels/cpu/log_prob.h"
#include "engine/kernels/cpu/low_rank.h"
#include "engine/kernels/ops.h"

namespace lockstep {
namespace {

class CpuOps : public Ops {
 public:
  CpuOps(Numerics numerics, int threads) : context_(numerics, threads) {}

  void Embedding(std::span<const int32_t> ids, const PackedMatrix& table, const Tensor& out) override {
    cpu::Embedding(context_, ids, table, out);
  }
  void EmbeddingBackward(std::span<const int32_t> ids, const Tensor& d_out, const Tensor& d_table) override {
    cpu::EmbeddingBackward(context_, ids, d_out, d_table);
  }
  void RmsNorm(const Tensor& x, const Tensor& weight, float eps, const Tensor& out, float* rstd) override {
    cpu::RmsNorm(context_, x, weight, eps, out, rstd);
  }
  void RmsNormBackward(const Tensor& d_out, const Tensor& x, const Tensor& weight, const float* rstd,
                       const Tensor& d_residual, const Tensor& d_x, const Tensor& d_weight) override {
    cpu::RmsNormBackward(context_, d_out, x, weight, rstd, d_residual, d_x, d_weight);
  }
  void Linear(const Tensor& x, const PackedMatrix& w, const Tensor& bias, const Tensor& residual,
              const Tensor& out) override {
    cpu::Linear(context_, x, w, bias, residual, out);
  }
  void LinearBackwardInput(const Tensor& d_out, const PackedMatrix& w, const Tensor& d_x, bool accumulate) override {
    cpu::LinearBackwardInput(context_, d_out, w, d_x, accumulate);
  }
  void LinearBackwardWeight(const Tensor& d_out, const Tensor& x, const Tensor& d_w, const Tensor& d_bias) override {
    cpu::LinearBackwardWeight(context_, d_out, x, d_w, d_bias);
  }
  void LowRankBackward(const Tensor& d_out, const Tensor& x, const Tensor& a, const Tensor& b, float scale,
                       const Tensor& d_a, const Tensor& d_b) override {
    cpu::LowRankBackward(context_, d_out, x, a, b, scale, d_a, d_b);
  }
  void Rope(const Tensor& x, int64_t num_heads, int64_t head_dim, std::span<const int32_t> positions,
            const Tensor& cos_sin, bool backward) override {
    cpu::Rope(context_, x, num_heads, head_dim, positions, cos_sin, backward);
  }
  void WriteKv(const AttentionShape& shape, const Tensor& k, const Tensor& v, std::span<const PagedSequence> sequences,
               const KvPages& cache) override {
    cpu::WriteKv(context_, shape, k, v, sequences, cache);
  }
  void AttentionPaged(const AttentionShape& shape, const Tensor& q, std::span<const PagedSequence> sequences,
                      const KvPages& cache, const Tensor& out) override {
    cpu::AttentionPaged(context_, shape, q, sequences, cache, out);
  }
  void AttentionPacked(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                       std::span<const int32_t> cu_seqlens, const Tensor& out, const Tensor& lse) override {
    cpu::AttentionPacked(context_, shape, q, k, v, cu_seqlens, out, lse);
  }
  void AttentionPackedBackward(const AttentionShape& shape, const Tensor& d_out, const Tensor& q, const Tensor& k,
                               const Tensor& v, const Tensor& out, const Tensor& lse,
                               std::span<const int32_t> cu_seqlens, const Tensor& d_q, const Tensor& d_k,
                               const Tensor& d_v) override {
    cpu::AttentionPackedBackward(context_, shape, d_out, q, k, v, out, lse, cu_seqlens, d_q, d_k, d_v);
  }
  void SwiGlu(const Tensor& gate_up, const Tensor& out) override { cpu::SwiGlu(context_, gate_up, out); }
  void SwiGluBackward(const Tensor& d_out, const Tensor& gate_up, const Tensor& d_gate_up) override {
    cpu::SwiGluBackward(context_, d_out, gate_up, d_gate_up);
  }
  void RouteTopK(const Tensor& logits, int64_t top_k, bool normalize, int32_t* experts, float* weights) override {
    cpu::RouteTopK(context_, logits, top_k, normalize, experts, weights);
  }
  void RouteGiven(const Tensor& logits, std::span<const int32_t> experts, bool normalize, float* weights) override {
    cpu::RouteGiven(context_, logits, experts, normalize, weights);
  }
  void RouteTopKBackward(const Tensor& logits, std::span<const int32_t> experts, bool normalize, const float* products,
                         const Tensor& d_logits) override {
    cpu::RouteTopKBackward(context_, logits, experts, normalize, products, d_logits);
  }
  void GatherRows(const Tensor& x, std::span<const int32_t> rows, const float* scale, const Tensor& out) override {
    cpu::GatherRows(context_, x, rows, scale, out);
  }
  void CombineRows(const Tensor& x, std::span<const int32_t> slots, const float* weights, const Tensor& residual,
                   const Tensor& out) override {
    cpu::CombineRows(context_, x, slots, weights, residual, out);
  }
  void RowDots(const Tensor& a, const Tensor& b, float* out) override { cpu::RowDots(context_, a, b, out); }
  void LogProb(const Tensor& x, const PackedMatrix& w, std::span<const int32_t> targets, float temperature,
               float* log_prob, float* entropy, float* lse) override {
    cpu::LogProb(context_, x, w, targets, temperature, log_prob, entropy, lse);
  }
  void LogProbBackward(const Tensor& x, const PackedMatrix& w, std::span<const int32_t> targets, float temperature,
                       const float* coefficient, const float* lse, const Tensor& d_x, const Tensor& d_w) override {
    cpu::LogProbBackward(context_, x, w, targets, temperature, coefficient, lse, d_x, d_w);
  }
  float LogSumExp(const float* logits, int64_t vocab_size, float temperature) override {
    return cpu::LogSumExp(logits, vocab_size, temperature);
  }

 private:
  cpu::CpuContext context_;
};

}  // namespace

std::unique_ptr<Ops> MakeCpuOps(Numerics numerics, int threads) { return std::make_unique<CpuOps>(numerics, threads); }

}  // namespace lockstep
