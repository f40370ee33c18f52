#include "engine/kernels/cpu/elementwise.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/base/check.h"
#include "engine/kernels/contract.h"
#include "engine/kernels/cpu/for_rows.h"
#include "engine/kernels/cpu/vector_math.h"

namespace lockstep::cpu {

void Embedding(CpuContext& context, std::span<const int32_t> ids, const PackedMatrix& table, const Tensor& out) {
  LOCKSTEP_CHECK(table.dtype() == out.dtype && out.cols == table.k(), "embedding table and output have one dtype");
  ForRows(context, static_cast<int64_t>(ids.size()), table.k(), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int32_t id = ids[static_cast<size_t>(t)];
      LOCKSTEP_CHECK(id >= 0 && id < table.n(), "token id outside of the vocabulary");
      table.GetRows(id, out.Rows(t, 1));
    }
  });
}

void EmbeddingBackward(CpuContext& context, std::span<const int32_t> ids, const Tensor& d_out, const Tensor& d_table) {
  // Columns are split, so that each element of d_table is summed by one thread in ascending t.
  context.pool.Run([&](int thread, int threads) {
    const auto [begin, end] = StaticSplit(d_out.cols, kLanes, thread, threads);
    for (size_t t = 0; t < ids.size(); ++t) {
      float* to = static_cast<float*>(d_table.Row(ids[t]));
      const void* from = d_out.Row(static_cast<int64_t>(t));
      for (int64_t i = begin; i < end; i += kLanes) {
        const int64_t n = end - i;
        StoreFloats(to + i, _mm256_add_ps(LoadFloats(to + i, n), Load(d_out.dtype, Offset(d_out.dtype, from, i), n)),
                    n);
      }
    }
  });
}

namespace {

// One group of d elements; returns rstd.
float NormGroup(DType dtype, const void* x, DType weight_dtype, const void* weight, int64_t d, float eps,
                DType out_dtype, void* out) {
  __m256 squares = _mm256_setzero_ps();
  for (int64_t i = 0; i < d; i += kLanes) {
    const __m256 v = Load(dtype, Offset(dtype, x, i), d - i);
    squares = _mm256_fmadd_ps(v, v, squares);
  }
  const float r = 1.0f / std::sqrt(SumLanes(squares) / static_cast<float>(d) + eps);
  const __m256 scale = _mm256_set1_ps(r);
  for (int64_t i = 0; i < d; i += kLanes) {
    const __m256 v = Load(dtype, Offset(dtype, x, i), d - i);
    const __m256 w = Load(weight_dtype, Offset(weight_dtype, weight, i), d - i);
    Store(out_dtype, Offset(out_dtype, out, i), _mm256_mul_ps(_mm256_mul_ps(v, scale), w), d - i);
  }
  return r;
}

// Columns [begin, begin + weight.cols) of row t; adds to sums [weight.cols].
void NormGroupBackward(const Tensor& d_out, const Tensor& x, const Tensor& weight, float r, const Tensor& d_residual,
                       const Tensor& d_x, int64_t t, int64_t begin, float* sums) {
  const int64_t d = weight.cols;
  const void* x_row = Offset(x.dtype, x.Row(t), begin);
  const void* d_out_row = Offset(d_out.dtype, d_out.Row(t), begin);
  const __m256 scale = _mm256_set1_ps(r);
  __m256 dot = _mm256_setzero_ps();
  for (int64_t i = 0; i < d; i += kLanes) {
    const __m256 v = Load(x.dtype, Offset(x.dtype, x_row, i), d - i);
    const __m256 g = Load(d_out.dtype, Offset(d_out.dtype, d_out_row, i), d - i);
    const __m256 w = Load(weight.dtype, Offset(weight.dtype, weight.data, i), d - i);
    dot = _mm256_fmadd_ps(_mm256_mul_ps(w, g), v, dot);
  }
  const __m256 c = _mm256_set1_ps(SumLanes(dot) * r * r / static_cast<float>(d));
  for (int64_t i = 0; i < d; i += kLanes) {
    const int64_t n = d - i;
    const __m256 v = Load(x.dtype, Offset(x.dtype, x_row, i), n);
    const __m256 g = Load(d_out.dtype, Offset(d_out.dtype, d_out_row, i), n);
    const __m256 w = Load(weight.dtype, Offset(weight.dtype, weight.data, i), n);
    StoreFloats(sums + i, _mm256_fmadd_ps(_mm256_mul_ps(g, v), scale, LoadFloats(sums + i, n)), n);
    __m256 result = _mm256_mul_ps(scale, _mm256_fnmadd_ps(v, c, _mm256_mul_ps(w, g)));
    if (d_residual.data != nullptr) {
      const void* residual = Offset(d_residual.dtype, d_residual.Row(t), begin + i);
      result = _mm256_add_ps(result, Load(d_residual.dtype, residual, n));
    }
    Store(d_x.dtype, Offset(d_x.dtype, d_x.Row(t), begin + i), result, n);
  }
}

}  // namespace

void RmsNorm(CpuContext& context, const Tensor& x, const Tensor& weight, float eps, const Tensor& out, float* rstd) {
  const int64_t d = weight.cols, groups = x.cols / d;
  LOCKSTEP_CHECK(x.cols == groups * d && out.cols == x.cols, "rows of an RMSNorm are whole groups");
  ForRows(context, x.rows, x.cols, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t group = 0; group < groups; ++group) {
        const float r = NormGroup(x.dtype, Offset(x.dtype, x.Row(t), group * d), weight.dtype, weight.data, d, eps,
                                  out.dtype, Offset(out.dtype, out.Row(t), group * d));
        if (rstd != nullptr) rstd[t * groups + group] = r;
      }
    }
  });
}

void RmsNormBackward(CpuContext& context, const Tensor& d_out, const Tensor& x, const Tensor& weight, const float* rstd,
                     const Tensor& d_residual, const Tensor& d_x, const Tensor& d_weight) {
  // y_i = x_i r w_i:  dx_i = r (w_i dy_i - x_i r^2 / d * sum_j w_j dy_j x_j),  dw_i = sum_t dy_i x_i r.
  const int64_t d = weight.cols, groups = x.cols / d;
  LOCKSTEP_CHECK(x.cols == groups * d && d_x.cols == x.cols, "rows of an RMSNorm are whole groups");
  const int64_t slices = std::min(kNormSlices, std::max<int64_t>(x.rows, 1));
  float* partial = context.general.Get<float>(static_cast<size_t>(slices * d));
  std::memset(partial, 0, static_cast<size_t>(slices * d) * sizeof(float));
  context.pool.Run([&](int thread, int threads) {
    const auto [slice_begin, slice_end] = StaticSplit(slices, 1, thread, threads);
    for (int64_t slice = slice_begin; slice < slice_end; ++slice) {
      for (int64_t t = x.rows * slice / slices; t < x.rows * (slice + 1) / slices; ++t) {
        for (int64_t group = 0; group < groups; ++group) {
          NormGroupBackward(d_out, x, weight, rstd[t * groups + group], d_residual, d_x, t, group * d,
                            partial + slice * d);
        }
      }
    }
  });
  if (d_weight.data == nullptr) return;
  float* total = static_cast<float*>(d_weight.data);
  for (int64_t slice = 0; slice < slices; ++slice) {
    for (int64_t i = 0; i < d; ++i) total[i] += partial[slice * d + i];
  }
}

void Rope(CpuContext& context, const Tensor& x, int64_t num_heads, int64_t head_dim, std::span<const int32_t> positions,
          const Tensor& cos_sin, bool backward) {
  const int64_t half = head_dim / 2;
  const __m256 sign = backward ? _mm256_set1_ps(-0.0f) : _mm256_setzero_ps();
  ForRows(context, x.rows, num_heads * head_dim, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      LOCKSTEP_CHECK(positions[static_cast<size_t>(t)] < cos_sin.rows, "position beyond the rotary table");
      const float* cosines = static_cast<const float*>(cos_sin.Row(positions[static_cast<size_t>(t)]));
      const float* sines = cosines + half;
      for (int64_t head = 0; head < num_heads; ++head) {
        void* low = Offset(x.dtype, x.Row(t), head * head_dim);
        void* high = Offset(x.dtype, low, half);
        for (int64_t i = 0; i < half; i += kLanes) {
          const int64_t n = half - i;
          const __m256 c = LoadFloats(cosines + i, n);
          const __m256 s = _mm256_xor_ps(LoadFloats(sines + i, n), sign);
          const __m256 a = Load(x.dtype, Offset(x.dtype, low, i), n);
          const __m256 b = Load(x.dtype, Offset(x.dtype, high, i), n);
          Store(x.dtype, Offset(x.dtype, low, i), _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)), n);
          Store(x.dtype, Offset(x.dtype, high, i), _mm256_fmadd_ps(b, c, _mm256_mul_ps(a, s)), n);
        }
      }
    }
  });
}

void SwiGlu(CpuContext& context, const Tensor& gate_up, const Tensor& out) {
  const int64_t f = out.cols;
  const __m256 one = _mm256_set1_ps(1.0f);
  ForRows(context, out.rows, f, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const void* row = gate_up.Row(t);
      for (int64_t i = 0; i < f; i += kLanes) {
        const int64_t n = f - i;
        const __m256 g = Load(gate_up.dtype, Offset(gate_up.dtype, row, i), n);
        const __m256 u = Load(gate_up.dtype, Offset(gate_up.dtype, row, f + i), n);
        const __m256 silu = _mm256_div_ps(g, _mm256_add_ps(one, Exp(_mm256_sub_ps(_mm256_setzero_ps(), g))));
        Store(out.dtype, Offset(out.dtype, out.Row(t), i), _mm256_mul_ps(silu, u), n);
      }
    }
  });
}

void SwiGluBackward(CpuContext& context, const Tensor& d_out, const Tensor& gate_up, const Tensor& d_gate_up) {
  // silu(g) = g s, s = 1 / (1 + exp(-g)); silu'(g) = s (1 + g (1 - s)).
  const int64_t f = d_out.cols;
  const __m256 one = _mm256_set1_ps(1.0f);
  ForRows(context, d_out.rows, f, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const void* row = gate_up.Row(t);
      void* to = d_gate_up.Row(t);
      for (int64_t i = 0; i < f; i += kLanes) {
        const int64_t n = f - i;
        const __m256 g = Load(gate_up.dtype, Offset(gate_up.dtype, row, i), n);
        const __m256 u = Load(gate_up.dtype, Offset(gate_up.dtype, row, f + i), n);
        const __m256 d = Load(d_out.dtype, Offset(d_out.dtype, d_out.Row(t), i), n);
        const __m256 s = _mm256_div_ps(one, _mm256_add_ps(one, Exp(_mm256_sub_ps(_mm256_setzero_ps(), g))));
        const __m256 slope = _mm256_mul_ps(s, _mm256_fmadd_ps(g, _mm256_sub_ps(one, s), one));
        Store(d_gate_up.dtype, Offset(d_gate_up.dtype, to, i), _mm256_mul_ps(_mm256_mul_ps(d, u), slope), n);
        Store(d_gate_up.dtype, Offset(d_gate_up.dtype, to, f + i), _mm256_mul_ps(d, _mm256_mul_ps(g, s)), n);
      }
    }
  });
}

}  // namespace lockstep::cpu
