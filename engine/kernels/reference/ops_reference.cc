// Every operation as nested loops that read like the formula: the slow truth that the backends are tested against.
// Rounding points are those of engine/kernels/ops.h; sums are in double, so the reference has no order of its own.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "engine/kernels/ops.h"

namespace lockstep {
namespace {

double Get(const Tensor& t, int64_t row, int64_t col) {
  float value = 0;
  const char* at = static_cast<const char*>(t.Row(row)) + col * static_cast<int64_t>(DTypeSize(t.dtype));
  ConvertToFloat(t.dtype, at, &value, 1);
  return static_cast<double>(value);
}

void Set(const Tensor& t, int64_t row, int64_t col, double value) {
  const float rounded = static_cast<float>(value);
  char* at = static_cast<char*>(t.Row(row)) + col * static_cast<int64_t>(DTypeSize(t.dtype));
  ConvertFromFloat(t.dtype, &rounded, at, 1);
}

void Add(const Tensor& t, int64_t row, int64_t col, double value) { Set(t, row, col, Get(t, row, col) + value); }

// W as a row-major FP32 copy.
struct Matrix {
  explicit Matrix(const PackedMatrix& w)
      : data(static_cast<size_t>(w.n() * w.k())), view(data.data(), DType::kF32, w.n(), w.k()) {
    if (w.n() > 0 && w.k() > 0) w.GetRows(0, view);
  }
  std::vector<float> data;
  Tensor view;
};

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

class ReferenceOps : public Ops {
 public:
  void Embedding(std::span<const int32_t> ids, const PackedMatrix& table, const Tensor& out) override {
    for (size_t t = 0; t < ids.size(); ++t) table.GetRows(ids[t], out.Rows(static_cast<int64_t>(t), 1));
  }

  void EmbeddingBackward(std::span<const int32_t> ids, const Tensor& d_out, const Tensor& d_table) override {
    for (size_t t = 0; t < ids.size(); ++t) {
      for (int64_t i = 0; i < d_out.cols; ++i) Add(d_table, ids[t], i, Get(d_out, static_cast<int64_t>(t), i));
    }
  }

  void RmsNorm(const Tensor& x, const Tensor& weight, float eps, const Tensor& out, float* rstd) override {
    const int64_t d = weight.cols, groups = x.cols / d;
    for (int64_t t = 0; t < x.rows; ++t) {
      for (int64_t begin = 0; begin < x.cols; begin += d) {
        double squares = 0;
        for (int64_t i = begin; i < begin + d; ++i) squares += Get(x, t, i) * Get(x, t, i);
        const double r = 1 / std::sqrt(squares / static_cast<double>(d) + static_cast<double>(eps));
        if (rstd != nullptr) rstd[t * groups + begin / d] = static_cast<float>(r);
        for (int64_t i = begin; i < begin + d; ++i) Set(out, t, i, Get(x, t, i) * r * Get(weight, 0, i - begin));
      }
    }
  }

  void RmsNormBackward(const Tensor& d_out, const Tensor& x, const Tensor& weight, const float* rstd,
                       const Tensor& d_residual, const Tensor& d_x, const Tensor& d_weight) override {
    const int64_t d = weight.cols, groups = x.cols / d;
    for (int64_t t = 0; t < x.rows; ++t) {
      for (int64_t begin = 0; begin < x.cols; begin += d) {
        const double r = static_cast<double>(rstd[t * groups + begin / d]);
        double dot = 0;
        for (int64_t i = begin; i < begin + d; ++i) dot += Get(weight, 0, i - begin) * Get(d_out, t, i) * Get(x, t, i);
        for (int64_t i = begin; i < begin + d; ++i) {
          const double g = Get(d_out, t, i), v = Get(x, t, i);
          if (d_weight.data != nullptr) Add(d_weight, 0, i - begin, g * v * r);
          double result = r * (Get(weight, 0, i - begin) * g - v * r * r / static_cast<double>(d) * dot);
          if (d_residual.data != nullptr) result += Get(d_residual, t, i);
          Set(d_x, t, i, result);
        }
      }
    }
  }

  void Linear(const Tensor& x, const PackedMatrix& w, const Tensor& bias, const Tensor& residual,
              const Tensor& out) override {
    const Matrix matrix(w);
    for (int64_t t = 0; t < x.rows; ++t) {
      for (int64_t n = 0; n < w.n(); ++n) {
        double sum = 0;
        for (int64_t k = 0; k < w.k(); ++k) sum += Get(x, t, k) * Get(matrix.view, n, k);
        if (bias.data != nullptr) sum += Get(bias, 0, n);
        if (residual.data != nullptr) {
          sum = static_cast<double>(RoundTo(out.dtype, static_cast<float>(sum))) + Get(residual, t, n);
        }
        Set(out, t, n, sum);
      }
    }
  }

  void LinearBackwardInput(const Tensor& d_out, const PackedMatrix& w, const Tensor& d_x, bool accumulate) override {
    const Matrix matrix(w);
    for (int64_t t = 0; t < d_x.rows; ++t) {
      for (int64_t k = 0; k < w.k(); ++k) {
        double sum = accumulate ? Get(d_x, t, k) : 0;
        for (int64_t n = 0; n < w.n(); ++n) sum += Get(d_out, t, n) * Get(matrix.view, n, k);
        Set(d_x, t, k, sum);
      }
    }
  }

  void LinearBackwardWeight(const Tensor& d_out, const Tensor& x, const Tensor& d_w, const Tensor& d_bias) override {
    for (int64_t n = 0; n < d_out.cols; ++n) {
      for (int64_t k = 0; k < x.cols; ++k) {
        double sum = 0;
        for (int64_t t = 0; t < x.rows; ++t) sum += Get(d_out, t, n) * Get(x, t, k);
        Add(d_w, n, k, sum);
      }
      if (d_bias.data == nullptr) continue;
      for (int64_t t = 0; t < d_out.rows; ++t) Add(d_bias, 0, n, Get(d_out, t, n));
    }
  }

  void LowRankBackward(const Tensor& d_out, const Tensor& x, const Tensor& a, const Tensor& b, float scale,
                       const Tensor& d_a, const Tensor& d_b) override {
    for (int64_t j = 0; j < a.rows; ++j) {
      for (int64_t t = 0; t < x.rows; ++t) {
        double down = 0, up = 0;
        for (int64_t k = 0; k < x.cols; ++k) down += Get(x, t, k) * Get(a, j, k);
        for (int64_t n = 0; n < d_out.cols; ++n) up += Get(d_out, t, n) * Get(b, n, j);
        for (int64_t k = 0; k < x.cols; ++k) Add(d_a, j, k, static_cast<double>(scale) * up * Get(x, t, k));
        for (int64_t n = 0; n < d_out.cols; ++n) Add(d_b, n, j, static_cast<double>(scale) * down * Get(d_out, t, n));
      }
    }
  }

  void Rope(const Tensor& x, int64_t num_heads, int64_t head_dim, std::span<const int32_t> positions,
            const Tensor& cos_sin, bool backward) override {
    const int64_t half = head_dim / 2;
    for (int64_t t = 0; t < x.rows; ++t) {
      for (int64_t h = 0; h < num_heads; ++h) {
        for (int64_t i = 0; i < half; ++i) {
          const double c = Get(cos_sin, positions[static_cast<size_t>(t)], i);
          const double s = Get(cos_sin, positions[static_cast<size_t>(t)], half + i) * (backward ? -1 : 1);
          const int64_t low = h * head_dim + i;
          const double a = Get(x, t, low), b = Get(x, t, low + half);
          Set(x, t, low, a * c - b * s);
          Set(x, t, low + half, b * c + a * s);
        }
      }
    }
  }

  void WriteKv(const AttentionShape& shape, const Tensor& k, const Tensor& v, std::span<const PagedSequence> sequences,
               const KvPages& cache) override {
    for (const PagedSequence& sequence : sequences) {
      for (int64_t r = 0; r < sequence.row_count; ++r) {
        for (int64_t g = 0; g < shape.num_kv_heads; ++g) {
          for (int64_t e = 0; e < shape.head_dim; ++e) {
            const int64_t position = sequence.position_begin + r;
            Set(Keys(shape, cache), 0, KeyAt(shape, sequence, g, position, e),
                Get(k, sequence.row_begin + r, g * shape.head_dim + e));
            Set(Values(shape, cache), 0, ValueAt(shape, sequence, g, position, e),
                Get(v, sequence.row_begin + r, g * shape.head_dim + e));
          }
        }
      }
    }
  }

  void AttentionPaged(const AttentionShape& shape, const Tensor& q, std::span<const PagedSequence> sequences,
                      const KvPages& cache, const Tensor& out) override {
    for (const PagedSequence& sequence : sequences) {
      for (int64_t r = 0; r < sequence.row_count; ++r) {
        for (int64_t h = 0; h < shape.num_heads; ++h) {
          const int64_t g = h / (shape.num_heads / shape.num_kv_heads);
          const int64_t row = sequence.row_begin + r;
          Row(
              shape, sequence.position_begin + r + 1, [&](int64_t e) { return Get(q, row, h * shape.head_dim + e); },
              [&](int64_t j, int64_t e) { return Get(Keys(shape, cache), 0, KeyAt(shape, sequence, g, j, e)); },
              [&](int64_t j, int64_t e) { return Get(Values(shape, cache), 0, ValueAt(shape, sequence, g, j, e)); },
              [&](int64_t e, double value) { Set(out, row, h * shape.head_dim + e, value); });
        }
      }
    }
  }

  void AttentionPacked(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                       std::span<const int32_t> cu_seqlens, const Tensor& out, const Tensor& lse) override {
    for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s) {
      for (int64_t row = cu_seqlens[s]; row < cu_seqlens[s + 1]; ++row) {
        for (int64_t h = 0; h < shape.num_heads; ++h) {
          const int64_t g = h / (shape.num_heads / shape.num_kv_heads);
          const double log_sum = Row(
              shape, row - cu_seqlens[s] + 1, [&](int64_t e) { return Get(q, row, h * shape.head_dim + e); },
              [&](int64_t j, int64_t e) { return Get(k, cu_seqlens[s] + j, g * shape.head_dim + e); },
              [&](int64_t j, int64_t e) { return Get(v, cu_seqlens[s] + j, g * shape.head_dim + e); },
              [&](int64_t e, double value) { Set(out, row, h * shape.head_dim + e, value); });
          if (lse.data != nullptr) Set(lse, row, h, log_sum);
        }
      }
    }
  }

  void AttentionPackedBackward(const AttentionShape& shape, const Tensor& d_out, const Tensor& q, const Tensor& k,
                               const Tensor& v, const Tensor& out, const Tensor& lse,
                               std::span<const int32_t> cu_seqlens, const Tensor& d_q, const Tensor& d_k,
                               const Tensor& d_v) override {
    const int64_t e_count = shape.head_dim;
    std::vector<double> dk(static_cast<size_t>(k.rows * k.cols), 0.0), dv(dk);
    for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s) {
      for (int64_t row = cu_seqlens[s]; row < cu_seqlens[s + 1]; ++row) {
        for (int64_t h = 0; h < shape.num_heads; ++h) {
          const int64_t g = h / (shape.num_heads / shape.num_kv_heads);
          double delta = 0;
          for (int64_t e = 0; e < e_count; ++e)
            delta += Get(d_out, row, h * e_count + e) * Get(out, row, h * e_count + e);
          std::vector<double> dq(static_cast<size_t>(e_count), 0.0);
          for (int64_t j = cu_seqlens[s]; j <= row; ++j) {
            double score = 0, dp = 0;
            for (int64_t e = 0; e < e_count; ++e) {
              score += Get(q, row, h * e_count + e) * Get(k, j, g * e_count + e);
              dp += Get(d_out, row, h * e_count + e) * Get(v, j, g * e_count + e);
            }
            const double p = std::exp(score * static_cast<double>(shape.scale) - Get(lse, row, h));
            const double ds = p * (dp - delta) * static_cast<double>(shape.scale);
            for (int64_t e = 0; e < e_count; ++e) {
              const size_t at = static_cast<size_t>(j * k.cols + g * e_count + e);
              dq[static_cast<size_t>(e)] += ds * Get(k, j, g * e_count + e);
              dk[at] += ds * Get(q, row, h * e_count + e);
              dv[at] += p * Get(d_out, row, h * e_count + e);
            }
          }
          for (int64_t e = 0; e < e_count; ++e) Set(d_q, row, h * e_count + e, dq[static_cast<size_t>(e)]);
        }
      }
    }
    for (int64_t row = 0; row < k.rows; ++row) {
      for (int64_t i = 0; i < k.cols; ++i) {
        Set(d_k, row, i, dk[static_cast<size_t>(row * k.cols + i)]);
        Set(d_v, row, i, dv[static_cast<size_t>(row * k.cols + i)]);
      }
    }
  }

  void SwiGlu(const Tensor& gate_up, const Tensor& out) override {
    for (int64_t t = 0; t < out.rows; ++t) {
      for (int64_t i = 0; i < out.cols; ++i) {
        const double gate = Get(gate_up, t, i);
        Set(out, t, i, gate * Sigmoid(gate) * Get(gate_up, t, out.cols + i));
      }
    }
  }

  void SwiGluBackward(const Tensor& d_out, const Tensor& gate_up, const Tensor& d_gate_up) override {
    for (int64_t t = 0; t < d_out.rows; ++t) {
      for (int64_t i = 0; i < d_out.cols; ++i) {
        const double gate = Get(gate_up, t, i), up = Get(gate_up, t, d_out.cols + i), d = Get(d_out, t, i);
        const double s = Sigmoid(gate);
        Set(d_gate_up, t, i, d * up * s * (1 + gate * (1 - s)));
        Set(d_gate_up, t, d_out.cols + i, d * gate * s);
      }
    }
  }

  void RouteTopK(const Tensor& logits, int64_t top_k, bool normalize, int32_t* experts, float* weights) override {
    for (int64_t t = 0; t < logits.rows; ++t) {
      std::vector<int32_t> order(static_cast<size_t>(logits.cols));
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(),
                       [&](int32_t a, int32_t b) { return Get(logits, t, a) > Get(logits, t, b); });
      std::sort(order.begin(), order.begin() + top_k);
      std::copy(order.begin(), order.begin() + top_k, experts + t * top_k);
    }
    RouteGiven(logits, {experts, static_cast<size_t>(logits.rows * top_k)}, normalize, weights);
  }

  void RouteGiven(const Tensor& logits, std::span<const int32_t> experts, bool normalize, float* weights) override {
    if (logits.rows == 0) return;
    const size_t top_k = experts.size() / static_cast<size_t>(logits.rows);
    for (int64_t t = 0; t < logits.rows; ++t) {
      const std::span<const int32_t> chosen = experts.subspan(static_cast<size_t>(t) * top_k, top_k);
      const std::vector<double> q = RouterSoftmax(logits, t, chosen, normalize);
      for (size_t j = 0; j < top_k; ++j) {
        weights[static_cast<size_t>(t) * top_k + j] = static_cast<float>(q[static_cast<size_t>(chosen[j])]);
      }
    }
  }

  void RouteTopKBackward(const Tensor& logits, std::span<const int32_t> experts, bool normalize, const float* products,
                         const Tensor& d_logits) override {
    if (logits.rows == 0) return;
    const size_t top_k = experts.size() / static_cast<size_t>(logits.rows);
    for (int64_t t = 0; t < logits.rows; ++t) {
      const std::span<const int32_t> chosen = experts.subspan(static_cast<size_t>(t) * top_k, top_k);
      const std::vector<double> q = RouterSoftmax(logits, t, chosen, normalize);
      const float* own = products + static_cast<size_t>(t) * top_k;
      double sum = 0;
      for (size_t j = 0; j < top_k; ++j) sum += static_cast<double>(own[j]);
      std::vector<double> d(q.size());
      for (size_t i = 0; i < q.size(); ++i) d[i] = -q[i] * sum;
      for (size_t j = 0; j < top_k; ++j) d[static_cast<size_t>(chosen[j])] += static_cast<double>(own[j]);
      for (size_t i = 0; i < q.size(); ++i) Set(d_logits, t, static_cast<int64_t>(i), d[i]);
    }
  }

  void GatherRows(const Tensor& x, std::span<const int32_t> rows, const float* scale, const Tensor& out) override {
    for (size_t i = 0; i < rows.size(); ++i) {
      const double factor = scale == nullptr ? 1 : static_cast<double>(scale[i]);
      for (int64_t c = 0; c < x.cols; ++c) Set(out, static_cast<int64_t>(i), c, factor * Get(x, rows[i], c));
    }
  }

  void CombineRows(const Tensor& x, std::span<const int32_t> slots, const float* weights, const Tensor& residual,
                   const Tensor& out) override {
    if (out.rows == 0) return;
    const size_t top_k = slots.size() / static_cast<size_t>(out.rows);
    for (int64_t t = 0; t < out.rows; ++t) {
      for (int64_t c = 0; c < out.cols; ++c) {
        double sum = 0;
        for (size_t i = static_cast<size_t>(t) * top_k; i < static_cast<size_t>(t + 1) * top_k; ++i) {
          sum += (weights == nullptr ? 1 : static_cast<double>(weights[i])) * Get(x, slots[i], c);
        }
        if (residual.data != nullptr) {
          sum = static_cast<double>(RoundTo(out.dtype, static_cast<float>(sum))) + Get(residual, t, c);
        }
        Set(out, t, c, sum);
      }
    }
  }

  void RowDots(const Tensor& a, const Tensor& b, float* out) override {
    for (int64_t i = 0; i < a.rows; ++i) {
      double sum = 0;
      for (int64_t c = 0; c < a.cols; ++c) sum += Get(a, i, c) * Get(b, i, c);
      out[i] = static_cast<float>(sum);
    }
  }

  void LogProb(const Tensor& x, const PackedMatrix& w, std::span<const int32_t> targets, float temperature,
               float* log_prob, float* entropy, float* lse) override {
    for (int64_t t = 0; t < x.rows; ++t) {
      const std::vector<double> z = Logits(x, t, Matrix(w), temperature);
      const double log_sum = LogSum(z);
      double mean = 0;
      for (const double value : z) mean += std::exp(value - log_sum) * value;
      log_prob[t] = static_cast<float>(z[static_cast<size_t>(targets[static_cast<size_t>(t)])] - log_sum);
      if (entropy != nullptr) entropy[t] = static_cast<float>(log_sum - mean);
      if (lse != nullptr) lse[t] = static_cast<float>(log_sum);
    }
  }

  void LogProbBackward(const Tensor& x, const PackedMatrix& w, std::span<const int32_t> targets, float temperature,
                       const float* coefficient, const float*, const Tensor& d_x, const Tensor& d_w) override {
    const Matrix matrix(w);
    for (int64_t t = 0; t < x.rows; ++t) {
      const std::vector<double> z = Logits(x, t, matrix, temperature);
      const double log_sum = LogSum(z);
      std::vector<double> dx(static_cast<size_t>(x.cols), 0.0);
      for (int64_t v = 0; v < w.n(); ++v) {
        const double onehot = v == targets[static_cast<size_t>(t)] ? 1 : 0;
        const double dz = static_cast<double>(coefficient[t]) *
                          (onehot - std::exp(z[static_cast<size_t>(v)] - log_sum)) / static_cast<double>(temperature);
        for (int64_t i = 0; i < x.cols; ++i) {
          dx[static_cast<size_t>(i)] += dz * Get(matrix.view, v, i);
          if (d_w.data != nullptr) Add(d_w, v, i, dz * Get(x, t, i));
        }
      }
      for (int64_t i = 0; i < x.cols; ++i) Set(d_x, t, i, dx[static_cast<size_t>(i)]);
    }
  }

  float LogSumExp(const float* logits, int64_t vocab_size, float temperature) override {
    std::vector<double> z(static_cast<size_t>(vocab_size));
    for (size_t v = 0; v < z.size(); ++v) z[v] = static_cast<double>(logits[v]) / static_cast<double>(temperature);
    return static_cast<float>(LogSum(z));
  }

 private:
  // [N]: the softmax of a row over the chosen experts (0 elsewhere), or over all.
  static std::vector<double> RouterSoftmax(const Tensor& logits, int64_t row, std::span<const int32_t> chosen,
                                           bool over_chosen) {
    std::vector<double> z(static_cast<size_t>(logits.cols)), q(z.size(), 0.0), entering;
    for (size_t i = 0; i < z.size(); ++i) z[i] = Get(logits, row, static_cast<int64_t>(i));
    for (size_t i = 0; i < z.size(); ++i) {
      const bool is_chosen = std::find(chosen.begin(), chosen.end(), static_cast<int32_t>(i)) != chosen.end();
      if (is_chosen || !over_chosen) entering.push_back(z[i]);
    }
    const double log_sum = LogSum(entering);
    for (size_t i = 0; i < z.size(); ++i) {
      const bool is_chosen = std::find(chosen.begin(), chosen.end(), static_cast<int32_t>(i)) != chosen.end();
      if (is_chosen || !over_chosen) q[i] = std::exp(z[i] - log_sum);
    }
    return q;
  }

  // softmax(q k^T scale) v over keys 0 .. keys-1; returns the log of the denominator.
  template <typename Q, typename K, typename V, typename Out>
  static double Row(const AttentionShape& shape, int64_t keys, Q q, K k, V v, Out out) {
    std::vector<double> scores(static_cast<size_t>(keys));
    for (int64_t j = 0; j < keys; ++j) {
      double dot = 0;
      for (int64_t e = 0; e < shape.head_dim; ++e) dot += q(e) * k(j, e);
      scores[static_cast<size_t>(j)] = dot * static_cast<double>(shape.scale);
    }
    const double log_sum = LogSum(scores);
    for (int64_t e = 0; e < shape.head_dim; ++e) {
      double sum = 0;
      for (int64_t j = 0; j < keys; ++j) sum += std::exp(scores[static_cast<size_t>(j)] - log_sum) * v(j, e);
      out(e, sum);
    }
    return log_sum;
  }

  static double LogSum(const std::vector<double>& z) {
    const double largest = *std::max_element(z.begin(), z.end());
    double sum = 0;
    for (const double value : z) sum += std::exp(value - largest);
    return largest + std::log(sum);
  }

  static std::vector<double> Logits(const Tensor& x, int64_t row, const Matrix& matrix, float temperature) {
    std::vector<double> z(static_cast<size_t>(matrix.view.rows), 0.0);
    for (int64_t v = 0; v < matrix.view.rows; ++v) {
      for (int64_t i = 0; i < x.cols; ++i) z[static_cast<size_t>(v)] += Get(x, row, i) * Get(matrix.view, v, i);
      z[static_cast<size_t>(v)] /= static_cast<double>(temperature);
    }
    return z;
  }

  static Tensor Keys(const AttentionShape& shape, const KvPages& cache) {
    return Tensor(cache.keys, cache.dtype, 1, cache.num_pages * shape.num_kv_heads * shape.head_dim * kPageTokens);
  }
  static Tensor Values(const AttentionShape& shape, const KvPages& cache) {
    return Tensor(cache.values, cache.dtype, 1, cache.num_pages * shape.num_kv_heads * shape.head_dim * kPageTokens);
  }
  static int64_t Head(const AttentionShape& shape, const PagedSequence& sequence, int64_t g, int64_t position) {
    return sequence.pages[static_cast<size_t>(position / kPageTokens)] * shape.num_kv_heads + g;
  }
  static int64_t KeyAt(const AttentionShape& shape, const PagedSequence& sequence, int64_t g, int64_t position,
                       int64_t e) {
    return (Head(shape, sequence, g, position) * shape.head_dim + e) * kPageTokens + position % kPageTokens;
  }
  static int64_t ValueAt(const AttentionShape& shape, const PagedSequence& sequence, int64_t g, int64_t position,
                         int64_t e) {
    return (Head(shape, sequence, g, position) * kPageTokens + position % kPageTokens) * shape.head_dim + e;
  }
};

}  // namespace

std::unique_ptr<Ops> MakeReferenceOps() { return std::make_unique<ReferenceOps>(); }

}  // namespace lockstep
