// Rotary embedding, alone and as the end of the QKV projection (bias, rotation, paged KV write), and SwiGLU. A thread
// has 8 elements, or 8 pairs of a rotation.
#include "engine/kernels/cuda/bricks.cuh"
#include "engine/kernels/cuda/kernels.h"
#include "engine/kernels/cuda/launch.h"

namespace lockstep::cuda {
namespace {

constexpr int kThreads = 128;

__device__ int64_t GlobalThread() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }

// (low, high) turned by the angles at cosines, `half` floats before their sines.
__device__ void Rotate(const float* cosines, int64_t half, int64_t count, bool backward, float (&low)[kVector],
                       float (&high)[kVector]) {
  float c[kVector], s[kVector];
  Load(cosines, count, c);
  Load(cosines + half, count, s);
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    const float sine = backward ? -s[j] : s[j];
    const float a = low[j], b = high[j];
    low[j] = fmaf(a, c[j], -(b * sine));
    high[j] = fmaf(b, c[j], a * sine);
  }
}

struct RopeTable {
  const int32_t* positions;
  const float* cos_sin;
  int64_t half;  // E / 2
};

template <typename T>
__global__ void RopeKernel(Rows<T> x, int64_t rows, int64_t num_heads, RopeTable table, bool backward) {
  const int64_t vectors = (table.half + kVector - 1) / kVector;
  const int64_t at = GlobalThread();
  if (at >= rows * num_heads * vectors) return;
  const int64_t i = at % vectors * kVector, head = at / vectors % num_heads, t = at / vectors / num_heads;
  const int64_t count = table.half - i;
  T* low = x.data + t * x.stride + head * 2 * table.half + i;
  float a[kVector], b[kVector];
  Load(low, count, a);
  Load(low + table.half, count, b);
  Rotate(table.cos_sin + table.positions[t] * 2 * table.half + i, table.half, count, backward, a, b);
  Store(low, count, a);
  Store(low + table.half, count, b);
}

template <typename In, typename T>
struct RopeWriteArgs {
  Rows<const In> qkv;
  const T* bias;  // null: none
  RopeTable table;
  const int32_t* slots;
  Rows<T> q_out;
  T* keys;
  T* values;
  int64_t rows, num_heads, num_kv_heads;
};

// 8 projected values at column, as they are stored: with the bias, rounded.
template <typename In, typename T>
__device__ void LoadProjected(const RopeWriteArgs<In, T>& a, int64_t t, int64_t column, int64_t count,
                              float (&v)[kVector]) {
  Load(a.qkv.data + t * a.qkv.stride + column, count, v);
  if (a.bias == nullptr) return;
  float bias[kVector];
  Load(a.bias + column, count, bias);
#pragma unroll
  for (int j = 0; j < kVector; ++j) v[j] = ToFloat(FromFloat<T>(v[j] + bias[j]));
}

// A thread has pairs i .. i + 7 of one head of one row; heads are H of q, G of k, G of v.
template <typename In, typename T>
__global__ void RopeWriteKvKernel(RopeWriteArgs<In, T> a) {
  AwaitPrevious();
  const int64_t half = a.table.half, e = 2 * half;
  const auto vectors = static_cast<unsigned>((half + kVector - 1) / kVector);
  const auto heads = static_cast<unsigned>(a.num_heads + 2 * a.num_kv_heads);
  const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= a.rows * heads * vectors) return;
  const int64_t i = at % vectors * kVector, head = at / vectors % heads, t = at / vectors / heads;
  const int64_t count = half - i < kVector ? half - i : kVector;
  float low[kVector], high[kVector];
  LoadProjected(a, t, head * e + i, count, low);
  LoadProjected(a, t, head * e + half + i, count, high);
  if (head < a.num_heads + a.num_kv_heads) {
    Rotate(a.table.cos_sin + a.table.positions[t] * e + i, half, count, false, low, high);
  }
  if (head < a.num_heads) {
    T* to = a.q_out.data + t * a.q_out.stride + head * e + i;
    Store(to, count, low);
    Store(to + half, count, high);
    return;
  }
  const int32_t slot = a.slots[t];
  if (slot < 0) return;
  const int64_t page = slot / kPageTokens, token = slot % kPageTokens;
  const bool is_key = head < a.num_heads + a.num_kv_heads;
  const int64_t kv_head = head - a.num_heads - (is_key ? 0 : a.num_kv_heads);
  const int64_t block = (page * a.num_kv_heads + kv_head) * e * kPageTokens;
  if (is_key) {  // one element in each of E rows of 16 tokens
    T* to = a.keys + block + i * kPageTokens + token;
    for (int64_t j = 0; j < count; ++j) {
      to[j * kPageTokens] = FromFloat<T>(low[j]);
      to[(half + j) * kPageTokens] = FromFloat<T>(high[j]);
    }
  } else {
    T* to = a.values + block + token * e + i;
    Store(to, count, low);
    Store(to + half, count, high);
  }
}

template <typename T>
__global__ void SwiGluKernel(Rows<const T> gate_up, Rows<T> out, int64_t rows, int64_t f) {
  AwaitPrevious();
  const auto vectors = static_cast<unsigned>((f + kVector - 1) / kVector);
  const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= rows * vectors) return;
  const int64_t i = at % vectors * kVector, t = at / vectors, count = f - i;
  const T* gate = gate_up.data + t * gate_up.stride + i;
  float g[kVector], u[kVector];
  Load(gate, count, g);
  Load(gate + f, count, u);
#pragma unroll
  for (int j = 0; j < kVector; ++j) u[j] = g[j] / (1.0f + Exp(0.0f - g[j])) * u[j];
  Store(out.data + t * out.stride + i, count, u);
}

// silu(g) = g s, s = 1 / (1 + exp(-g)); silu'(g) = s (1 + g (1 - s)).
template <typename T>
__global__ void SwiGluBackwardKernel(Rows<const T> d_out, Rows<const T> gate_up, Rows<T> d_gate_up, int64_t rows,
                                     int64_t f) {
  const int64_t vectors = (f + kVector - 1) / kVector, at = GlobalThread();
  if (at >= rows * vectors) return;
  const int64_t i = at % vectors * kVector, t = at / vectors, count = f - i;
  const T* gate = gate_up.data + t * gate_up.stride + i;
  float g[kVector], u[kVector], d[kVector];
  Load(gate, count, g);
  Load(gate + f, count, u);
  Load(d_out.data + t * d_out.stride + i, count, d);
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    const float s = 1.0f / (1.0f + Exp(0.0f - g[j]));
    const float slope = s * fmaf(g[j], 1.0f - s, 1.0f);
    u[j] = d[j] * u[j] * slope;
    d[j] = d[j] * (g[j] * s);
  }
  T* to = d_gate_up.data + t * d_gate_up.stride + i;
  Store(to, count, u);
  Store(to + f, count, d);
}

void CheckTable(const Tensor& cos_sin, int64_t head_dim) {
  LOCKSTEP_CHECK(head_dim > 0 && head_dim % 2 == 0, "a rotated head has an even size");
  LOCKSTEP_CHECK(cos_sin.dtype == DType::kF32 && cos_sin.cols == head_dim && cos_sin.stride == head_dim,
                 "the rotary table is dense FP32 [positions, E]");
}

}  // namespace

cudaError_t Rope(const Tensor& x, int64_t num_heads, int64_t head_dim, const int32_t* positions, const Tensor& cos_sin,
                 bool backward, cudaStream_t stream) {
  CheckTable(cos_sin, head_dim);
  LOCKSTEP_CHECK(x.cols == num_heads * head_dim, "a rotated row is whole heads");
  const RopeTable table = {positions, cos_sin.As<float>(), head_dim / 2};
  const int64_t threads = x.rows * num_heads * CeilDiv(table.half, kVector);
  return WithStorageType(x.dtype, [&]<typename T>(T) {
    return Launch(RopeKernel<T>, CeilDiv(threads, kThreads), 1, kThreads, stream, RowsOf<T>(x), x.rows, num_heads,
                  table, backward);
  });
}

cudaError_t RopeWriteKv(const QkvShape& shape, const Tensor& qkv, const Tensor& bias, const int32_t* positions,
                        const int32_t* slots, const Tensor& cos_sin, const Tensor& q_out, void* key_pages,
                        void* value_pages, cudaStream_t stream) {
  CheckTable(cos_sin, shape.head_dim);
  const int64_t heads = shape.num_heads + 2 * shape.num_kv_heads;
  LOCKSTEP_CHECK(shape.num_kv_heads > 0 && qkv.cols == heads * shape.head_dim, "a projected row is q, k and v heads");
  LOCKSTEP_CHECK(q_out.rows == qkv.rows && q_out.cols == shape.num_heads * shape.head_dim, "q has the row's q heads");
  LOCKSTEP_CHECK(bias.data == nullptr ? qkv.dtype == q_out.dtype : qkv.dtype == DType::kF32,
                 "a bias is added to FP32 sums, before the one rounding");
  LOCKSTEP_CHECK(bias.data == nullptr || (bias.dtype == q_out.dtype && bias.cols == qkv.cols),
                 "the bias is a row in the storage dtype");
  const int64_t threads = qkv.rows * heads * CeilDiv(shape.head_dim / 2, kVector);
  LOCKSTEP_CHECK(threads <= kGridXMax, "threads are counted in 32 bits");
  const auto launch = [&]<typename In, typename T>(In, T) {
    const RopeWriteArgs<In, T> args = {RowsOf<const In>(qkv),
                                       bias.As<T>(),
                                       {positions, cos_sin.As<float>(), shape.head_dim / 2},
                                       slots,
                                       RowsOf<T>(q_out),
                                       static_cast<T*>(key_pages),
                                       static_cast<T*>(value_pages),
                                       qkv.rows,
                                       shape.num_heads,
                                       shape.num_kv_heads};
    return LaunchBehind(RopeWriteKvKernel<In, T>, CeilDiv(threads, kThreads), 1, kThreads, 0, stream, args);
  };
  return WithStorageType(q_out.dtype, [&]<typename T>(T type) {
    return bias.data == nullptr ? launch(type, type) : launch(float{}, type);
  });
}

cudaError_t SwiGlu(const Tensor& gate_up, const Tensor& out, cudaStream_t stream) {
  LOCKSTEP_CHECK(gate_up.dtype == out.dtype && gate_up.cols == 2 * out.cols && gate_up.rows == out.rows,
                 "gate and up have twice the output's columns");
  const int64_t threads = out.rows * CeilDiv(out.cols, kVector);
  LOCKSTEP_CHECK(threads <= kGridXMax, "threads are counted in 32 bits");
  return WithStorageType(out.dtype, [&]<typename T>(T) {
    return LaunchBehind(SwiGluKernel<T>, CeilDiv(threads, kThreads), 1, kThreads, 0, stream, RowsOf<const T>(gate_up),
                        RowsOf<T>(out), out.rows, out.cols);
  });
}

cudaError_t SwiGluBackward(const Tensor& d_out, const Tensor& gate_up, const Tensor& d_gate_up, cudaStream_t stream) {
  LOCKSTEP_CHECK(gate_up.dtype == d_out.dtype && gate_up.cols == 2 * d_out.cols && gate_up.rows == d_out.rows,
                 "gate and up have twice the output's columns");
  LOCKSTEP_CHECK(d_gate_up.dtype == d_out.dtype && d_gate_up.cols == gate_up.cols && d_gate_up.rows == d_out.rows,
                 "the gradient has the shape of gate and up");
  const int64_t threads = d_out.rows * CeilDiv(d_out.cols, kVector);
  return WithStorageType(d_out.dtype, [&]<typename T>(T) {
    return Launch(SwiGluBackwardKernel<T>, CeilDiv(threads, kThreads), 1, kThreads, stream, RowsOf<const T>(d_out),
                  RowsOf<const T>(gate_up), RowsOf<T>(d_gate_up), d_out.rows, d_out.cols);
  });
}

}  // namespace lockstep::cuda
