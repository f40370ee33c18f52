// TimedOps: an Ops that forwards to another and keeps, for each operation, calls, seconds and the FLOP of its products.
// For benchmarks: where a step's time goes.
#ifndef LOCKSTEP_ENGINE_MODEL_TIMED_OPS_H_
#define LOCKSTEP_ENGINE_MODEL_TIMED_OPS_H_

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "engine/kernels/ops.h"

namespace lockstep {

class TimedOps : public Ops {
 public:
  struct Entry {
    int64_t calls = 0;
    double seconds = 0;
    double flop = 0;
  };

  explicit TimedOps(std::unique_ptr<Ops> ops) : ops_(std::move(ops)) {}
  const std::map<std::string, Entry>& entries() const { return entries_; }
  void Reset() { entries_.clear(); }
  // Sum over the products with weights: Linear, its backward passes, and LogProb.
  Entry Gemms() const {
    Entry sum;
    for (const auto& [name, entry] : entries_) {
      if (entry.flop == 0) continue;
      sum.calls += entry.calls;
      sum.seconds += entry.seconds;
      sum.flop += entry.flop;
    }
    return sum;
  }

  void Embedding(std::span<const int32_t> ids, const PackedMatrix& table, const Tensor& out) override {
    Time("Embedding", 0, [&] { ops_->Embedding(ids, table, out); });
  }
  void EmbeddingBackward(std::span<const int32_t> ids, const Tensor& d_out, const Tensor& d_table) override {
    Time("EmbeddingBackward", 0, [&] { ops_->EmbeddingBackward(ids, d_out, d_table); });
  }
  void RmsNorm(const Tensor& x, const Tensor& weight, float eps, const Tensor& out, float* rstd) override {
    Time("RmsNorm", 0, [&] { ops_->RmsNorm(x, weight, eps, out, rstd); });
  }
  void RmsNormBackward(const Tensor& d_out, const Tensor& x, const Tensor& weight, const float* rstd,
                       const Tensor& d_residual, const Tensor& d_x, const Tensor& d_weight) override {
    Time("RmsNormBackward", 0, [&] { ops_->RmsNormBackward(d_out, x, weight, rstd, d_residual, d_x, d_weight); });
  }
  void Linear(const Tensor& x, const PackedMatrix& w, const Tensor& bias, const Tensor& residual,
              const Tensor& out) override {
    Time("Linear " + Shape(w), Product(x.rows, w), [&] { ops_->Linear(x, w, bias, residual, out); });
  }
  void LinearBackwardInput(const Tensor& d_out, const PackedMatrix& w, const Tensor& d_x, bool accumulate) override {
    Time("LinearBackwardInput " + Shape(w), Product(d_out.rows, w),
         [&] { ops_->LinearBackwardInput(d_out, w, d_x, accumulate); });
  }
  void LinearBackwardWeight(const Tensor& d_out, const Tensor& x, const Tensor& d_w, const Tensor& d_bias) override {
    Time("LinearBackwardWeight " + std::to_string(d_w.rows) + "x" + std::to_string(d_w.cols),
         2.0 * x.rows * d_w.rows * d_w.cols, [&] { ops_->LinearBackwardWeight(d_out, x, d_w, d_bias); });
  }
  void LowRankBackward(const Tensor& d_out, const Tensor& x, const Tensor& a, const Tensor& b, float scale,
                       const Tensor& d_a, const Tensor& d_b) override {
    Time("LowRankBackward", 4.0 * x.rows * a.rows * (d_out.cols + x.cols),
         [&] { ops_->LowRankBackward(d_out, x, a, b, scale, d_a, d_b); });
  }
  void Rope(const Tensor& x, int64_t num_heads, int64_t head_dim, std::span<const int32_t> positions,
            const Tensor& cos_sin, bool backward) override {
    Time("Rope", 0, [&] { ops_->Rope(x, num_heads, head_dim, positions, cos_sin, backward); });
  }
  void WriteKv(const AttentionShape& shape, const Tensor& k, const Tensor& v, std::span<const PagedSequence> sequences,
               const KvPages& cache) override {
    Time("WriteKv", 0, [&] { ops_->WriteKv(shape, k, v, sequences, cache); });
  }
  void AttentionPaged(const AttentionShape& shape, const Tensor& q, std::span<const PagedSequence> sequences,
                      const KvPages& cache, const Tensor& out) override {
    Time("AttentionPaged", 0, [&] { ops_->AttentionPaged(shape, q, sequences, cache, out); });
  }
  void AttentionPacked(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                       std::span<const int32_t> cu_seqlens, const Tensor& out, const Tensor& lse) override {
    Time("AttentionPacked", 0, [&] { ops_->AttentionPacked(shape, q, k, v, cu_seqlens, out, lse); });
  }
  void AttentionPackedBackward(const AttentionShape& shape, const Tensor& d_out, const Tensor& q, const Tensor& k,
                               const Tensor& v, const Tensor& out, const Tensor& lse,
                               std::span<const int32_t> cu_seqlens, const Tensor& d_q, const Tensor& d_k,
                               const Tensor& d_v) override {
    Time("AttentionPackedBackward", 0,
         [&] { ops_->AttentionPackedBackward(shape, d_out, q, k, v, out, lse, cu_seqlens, d_q, d_k, d_v); });
  }
  void SwiGlu(const Tensor& gate_up, const Tensor& out) override {
    Time("SwiGlu", 0, [&] { ops_->SwiGlu(gate_up, out); });
  }
  void SwiGluBackward(const Tensor& d_out, const Tensor& gate_up, const Tensor& d_gate_up) override {
    Time("SwiGluBackward", 0, [&] { ops_->SwiGluBackward(d_out, gate_up, d_gate_up); });
  }
  void RouteTopK(const Tensor& logits, int64_t top_k, bool normalize, int32_t* experts, float* weights) override {
    Time("RouteTopK", 0, [&] { ops_->RouteTopK(logits, top_k, normalize, experts, weights); });
  }
  void RouteGiven(const Tensor& logits, std::span<const int32_t> experts, bool normalize, float* weights) override {
    Time("RouteGiven", 0, [&] { ops_->RouteGiven(logits, experts, normalize, weights); });
  }
  void RouteTopKBackward(const Tensor& logits, std::span<const int32_t> experts, bool normalize, const float* products,
                         const Tensor& d_logits) override {
    Time("RouteTopKBackward", 0, [&] { ops_->RouteTopKBackward(logits, experts, normalize, products, d_logits); });
  }
  void GatherRows(const Tensor& x, std::span<const int32_t> rows, const float* scale, const Tensor& out) override {
    Time("GatherRows", 0, [&] { ops_->GatherRows(x, rows, scale, out); });
  }
  void CombineRows(const Tensor& x, std::span<const int32_t> slots, const float* weights, const Tensor& residual,
                   const Tensor& out) override {
    Time("CombineRows", 0, [&] { ops_->CombineRows(x, slots, weights, residual, out); });
  }
  void RowDots(const Tensor& a, const Tensor& b, float* out) override {
    Time("RowDots", 0, [&] { ops_->RowDots(a, b, out); });
  }
  void LogProb(const Tensor& x, const PackedMatrix& w, std::span<const int32_t> targets, float temperature,
               float* log_prob, float* entropy, float* lse) override {
    Time("LogProb", Product(x.rows, w), [&] { ops_->LogProb(x, w, targets, temperature, log_prob, entropy, lse); });
  }
  void LogProbBackward(const Tensor& x, const PackedMatrix& w, std::span<const int32_t> targets, float temperature,
                       const float* coefficient, const float* lse, const Tensor& d_x, const Tensor& d_w) override {
    // Logits again, then the two gradients.
    Time("LogProbBackward", 3 * Product(x.rows, w),
         [&] { ops_->LogProbBackward(x, w, targets, temperature, coefficient, lse, d_x, d_w); });
  }
  float LogSumExp(const float* logits, int64_t vocab_size, float temperature) override {
    float result = 0;
    Time("LogSumExp", 0, [&] { result = ops_->LogSumExp(logits, vocab_size, temperature); });
    return result;
  }

 private:
  static std::string Shape(const PackedMatrix& w) { return std::to_string(w.n()) + "x" + std::to_string(w.k()); }
  static double Product(int64_t rows, const PackedMatrix& w) { return 2.0 * rows * w.n() * w.k(); }

  template <typename Body>
  void Time(const std::string& name, double flop, Body body) {
    const auto begin = std::chrono::steady_clock::now();
    body();
    Entry& entry = entries_[name];
    entry.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    entry.calls += 1;
    entry.flop += flop;
  }

  std::unique_ptr<Ops> ops_;
  std::map<std::string, Entry> entries_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_MODEL_TIMED_OPS_H_
