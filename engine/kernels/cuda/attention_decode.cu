// Attention of decode rows, for 16-bit dtypes. A block of four warps has a row's query heads of one kv head, and of its
// keys all or one state's: so few rows are there that a warp's way through a block of keys is the time of a step. The
// warps share each block of keys (attention_forward.cuh): a warp multiplies 16 of its 64 keys and takes their
// exponents, all learn the weights by shared memory and sum them for themselves, and a warp multiplies every fourth 16
// columns of the values. Every sum is the one that a warp on its own makes, so a row's bits are those of the tiles.
#include <algorithm>

#include "engine/kernels/cuda/attention_forward.cuh"

namespace lockstep::cuda {
namespace {

constexpr int kDecodeWarps = 4;
constexpr int kDecodeThreads = kDecodeWarps * kWarp;
static_assert(kDecodeWarps * 16 == kBlockKeys);
// Blocks of threads that keep a device busy with copies on their way; with fewer rows than that, keys are split.
constexpr int64_t kBusyBlocks = 512;

// Columns of the output that a warp has: pairs of 8, warp w the pairs w, w + 4, ..
template <int E>
constexpr int kOwnBlocks = (E / 16 + kDecodeWarps - 1) / kDecodeWarps * 2;
template <int E>
using DecodeTile = WarpTile<E, kOwnBlocks<E>>;

__device__ inline int OwnWarp() { return static_cast<int>(threadIdx.x) / kWarp; }
// First of the 8 columns that block n of a warp's own is, and whether there are any.
__device__ inline int OwnColumn(int n) { return (n / 2 * kDecodeWarps + OwnWarp()) * 16 + n % 2 * 8; }
template <int E>
__device__ bool HasColumn(int n) {
  return E % (16 * kDecodeWarps) == 0 || OwnColumn(n) < E;
}

// What the warps tell each other of a block of keys: weights as each thread of a warp on its own would have them, and
// the maxima of the 16 rows.
struct Exchange {
  Quad weights[kBlockKeys / 8][kWarp];
  float maxima[kDecodeWarps][kWarpRows];
};

template <int E>
constexpr int64_t DecodeSharedBytes() {
  return 2 * int64_t{2 * kBlockKeys * kSharedRow<E>} + static_cast<int64_t>(sizeof(Exchange)) +
         int64_t{kOwnBlocks<E>} * kDecodeThreads * static_cast<int64_t>(sizeof(Quad));
}

// s = q k of the warp's 16 keys, times scale and hidden behind a row's own position; tells the rows' maxima.
template <typename T, int E, typename Keys>
__device__ void OwnScores(const DecodeTile<E>& tile, const T* keys, int begin, float scale, float (&s)[2][4],
                          Exchange& exchange) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, first_key = begin + OwnWarp() * 16 + lane % 4 * 2;
#pragma unroll
  for (int c = 0; c < 4; ++c) s[0][c] = s[1][c] = 0;
#pragma unroll
  for (int k = 0; k < E / 16; ++k) {
    uint32_t b[4];
    Keys::LoadKeys(b, keys, OwnWarp(), k);
    MmaPair<T>(s[0], s[1], tile.q[k], b);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float max = kNoScore;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int c = 2 * i; c < 2 * i + 2; ++c) {
        s[n][c] = first_key + n * 8 + c % 2 <= tile.position[i] ? s[n][c] * scale : kNoScore;
        max = ScalarLane::Max(s[n][c], max);
      }
    }
    max = QuadMax(max);
    if (lane % 4 == 0) exchange.maxima[OwnWarp()][lane / 4 + i * 8] = max;
  }
}

// Takes the block into the states, scales o for what is added next, and tells the weights of the warp's keys.
template <typename Exponential, int E>
__device__ void TellWeights(DecodeTile<E>& tile, const float (&s)[2][4], Exchange& exchange) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  Quad weights[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float max = kNoScore;
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) max = ScalarLane::Max(exchange.maxima[w][lane / 4 + i * 8], max);
    const float factor = Extend<Exponential>(tile.state[i], max);
    const float center = Center(tile.state[i].max);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int c = 2 * i; c < 2 * i + 2; ++c) weights[n].at[c] = Exponential::Of(s[n][c] - center);
    }
#pragma unroll
    for (int n = 0; n < kOwnBlocks<E>; ++n) {
      tile.o[n][2 * i] *= factor;
      tile.o[n][2 * i + 1] *= factor;
    }
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) exchange.weights[OwnWarp() * 2 + n][lane] = weights[n];
}

// Adds all weights to the states' sums, and the values of the warp's columns times weights to o.
template <typename T, int E>
__device__ void AddOwnValues(DecodeTile<E>& tile, const T* values, const Exchange& exchange) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float weights[kBlockKeys / 8][4];
#pragma unroll
  for (int n = 0; n < kBlockKeys / 8; ++n) {
    const Quad quad = exchange.weights[n][lane];
#pragma unroll
    for (int c = 0; c < 4; ++c) weights[n][c] = quad.at[c];
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float sum = 0;
#pragma unroll
    for (int n = 0; n < kBlockKeys / 8; ++n) {
#pragma unroll
      for (int c = 2 * i; c < 2 * i + 2; ++c) sum += weights[n][c];
    }
    tile.state[i].sum += QuadSum(sum);
  }
#pragma unroll
  for (int k = 0; k < kBlockKeys / 16; ++k) {
    uint32_t p[4];
    PackOperand<T>(p, weights[2 * k], weights[2 * k + 1]);
#pragma unroll
    for (int n = 0; n < kOwnBlocks<E>; n += 2) {
      if (!HasColumn<E>(n)) break;
      uint32_t b[4];
      LoadDepthRows<E>(b, values, k, OwnColumn(n) / 16);
      MmaPair<T>(tile.o[n], tile.o[n + 1], p, b);
    }
  }
}

// As AttendTile, by the four warps together.
template <typename Exponential, typename T, int E, typename Keys>
__device__ void AttendTogether(DecodeTile<E>& tile, const Keys& keys, const BlockRange& range, int end_position,
                               float scale) {
  T* const key_rows = reinterpret_cast<T*>(DynamicShared());
  T* const value_rows = key_rows + kBlockKeys * kSharedRow<E>;
  Exchange& exchange = *reinterpret_cast<Exchange*>(value_rows + kBlockKeys * kSharedRow<E>);
  Quad* const values = reinterpret_cast<Quad*>(&exchange + 1);
  SoftmaxState total[2] = {};
  bool merged = false;
  Clear(tile);
  keys.CopyKeys(key_rows, range.first * kBlockKeys, end_position);
  CpAsyncCommit();
  keys.CopyValues(value_rows, range.first * kBlockKeys, end_position);
  CpAsyncCommit();
  for (int block = range.first; block < range.end; ++block) {
    const bool last = block + 1 == range.end;
    const int next = (block + 1) * kBlockKeys;
    float s[2][4];
    CpAsyncWait<1>();
    __syncthreads();  // the keys are there
    OwnScores<T, E, Keys>(tile, key_rows, block * kBlockKeys, scale, s, exchange);
    __syncthreads();  // the maxima are there, and the keys no longer read
    if (!last) keys.CopyKeys(key_rows, next, end_position);
    CpAsyncCommit();
    TellWeights<Exponential>(tile, s, exchange);
    CpAsyncWait<1>();
    __syncthreads();  // the values and all weights are there
    AddOwnValues<T>(tile, value_rows, exchange);
    __syncthreads();  // neither is read any longer
    if (!last) keys.CopyValues(value_rows, next, end_position);
    CpAsyncCommit();
    EndBlock<Exponential>(tile, range, block, total, merged, values);
  }
  tile.state[0] = total[0];
  tile.state[1] = total[1];
}

// Stores the warp's columns of two rows, times a factor each.
template <int E, typename T>
__device__ void StoreOwnColumns(T* const (&rows)[2], const float (&o)[kOwnBlocks<E>][4], const float (&factors)[2]) {
#pragma unroll
  for (int n = 0; n < kOwnBlocks<E>; ++n) {
    if (!HasColumn<E>(n)) break;
    T* const at[2] = {rows[0] == nullptr ? nullptr : rows[0] + OwnColumn(n),
                      rows[1] == nullptr ? nullptr : rows[1] + OwnColumn(n)};
    const float sums[1][4] = {{o[n][0], o[n][1], o[n][2], o[n][3]}};
    StoreRows<8>(at, sums, factors);
  }
}

// Stores the states of a split and their values, not yet divided.
template <int E>
__device__ void StoreState(const DecodeTile<E>& tile, const int64_t (&at)[2], SoftmaxState* states, float* values) {
  const int column = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (at[i] < 0) continue;
    if (column == 0 && OwnWarp() == 0) states[at[i]] = tile.state[i];
#pragma unroll
    for (int n = 0; n < kOwnBlocks<E>; ++n) {
      if (!HasColumn<E>(n)) break;
      float* to = values + at[i] * E + OwnColumn(n) + column;
      to[0] = tile.o[n][2 * i];
      to[1] = tile.o[n][2 * i + 1];
    }
  }
}

// Block x: a row, a kv head and 16 of its query heads; y: a split of the keys.
template <typename Exponential, typename T, int E>
__global__ __launch_bounds__(kDecodeThreads, E >= 64 ? 4 : 3) void AttentionDecodeKernel(PagedArgs<T> a) {
  AwaitPrevious();
  const int group = a.forward.group, chunks = (group + kWarpRows - 1) / kWarpRows;
  const int chunk = static_cast<int>(blockIdx.x) % chunks;
  const int kv_head = static_cast<int>(blockIdx.x) / chunks % a.forward.kv_heads;
  const int token = static_cast<int>(blockIdx.x) / chunks / a.forward.kv_heads;
  const bool split = gridDim.y > 1;
  const int first_head = chunk * kWarpRows;
  const TileRows rows = {token, first_head, group - first_head < kWarpRows ? group - first_head : kWarpRows, group};
  const int row[2] = {rows.OfWarp(0, 0), rows.OfWarp(0, 1)};  // all four warps have the same
  T* const out[2] = {rows.In(a.forward.out, row[0], kv_head, E), rows.In(a.forward.out, row[1], kv_head, E)};
  const int sequence = a.row_sequence[token];
  DecodeTile<E> tile;
  if (sequence < 0) {
    const float factors[2] = {};
    Clear(tile);
    if (!split) StoreOwnColumns<E>(out, tile.o, factors);
    return;
  }
  const int position = a.positions[token], blocks = position / kBlockKeys + 1;
  const int64_t first = int64_t{blockIdx.y} * a.block_blocks;
  if (first >= blocks) return;
  const int end = blocks - first < a.block_blocks ? blocks : static_cast<int>(first) + a.block_blocks;
  const T* const q[2] = {rows.In(a.forward.q, row[0], kv_head, E), rows.In(a.forward.q, row[1], kv_head, E)};
  LoadRowOperands<E>(tile.q, q);
  for (int i = 0; i < 2; ++i) tile.position[i] = row[i] < 0 ? -1 : position;
  AttendTogether<Exponential, T, E>(tile, KeysOf<E>(a, sequence, kv_head),
                                    {static_cast<int>(first), end, a.forward.state_blocks}, position + 1,
                                    a.forward.scale);
  if (!split) {
    const float factors[2] = {1.0f / tile.state[0].sum, 1.0f / tile.state[1].sum};
    return StoreOwnColumns<E>(out, tile.o, factors);
  }
  const int64_t head = (int64_t{token} * a.forward.kv_heads + kv_head) * group;
  int64_t at[2];
  for (int i = 0; i < 2; ++i) at[i] = row[i] < 0 ? -1 : (head + row[i]) * gridDim.y + blockIdx.y;
  StoreState<E>(tile, at, a.states, a.state_values);
}

constexpr int kMergeThreads = 128;

// A warp merges the splits of one row and query head, ascending.
template <typename Exponential, typename T, int E>
__global__ void AttentionMergeKernel(PagedArgs<T> a, int heads, int splits) {
  constexpr int kColumns = (E + kWarp - 1) / kWarp;
  AwaitPrevious();
  const int64_t index = (int64_t{blockIdx.x} * kMergeThreads + threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (index >= int64_t{a.end_row} * heads) return;
  const int64_t token = index / heads, head = index % heads;
  SoftmaxState state;
  float o[kColumns] = {};
  const int used = a.row_sequence[token] < 0 ? 0 : a.positions[token] / kBlockKeys / a.block_blocks + 1;
#pragma unroll 4
  for (int s = 0; s < used; ++s) {  // the loads of four at a time do not wait for one another
    const MergeFactors factors = Merge<Exponential>(state, a.states[index * splits + s]);
    const float* values = a.state_values + (index * splits + s) * E;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int column = i * kWarp + lane;
      if (column < E) o[i] = MergeValues(o[i], values[column], factors);
    }
  }
  const float factor = used == 0 ? 0.0f : 1.0f / state.sum;
  T* out = a.forward.out.data + token * a.forward.out.stride + head * E;
  for (int i = 0; i < kColumns; ++i) {
    const int column = i * kWarp + lane;
    if (column < E) out[column] = FromFloat<T>(o[i] * factor + 0.0f);
  }
}

// How the keys of decode rows are shared out.
struct SplitPlan {
  int64_t splits;    // blocks of threads that share a row
  int block_blocks;  // blocks of keys of each
  int state_blocks;
};

// Splits with which `rows` keep the device busy.
int64_t WantedSplits(const AttentionShape& shape, int64_t rows) {
  return CeilDiv(kBusyBlocks, rows * shape.num_kv_heads * CeilDiv(shape.num_heads / shape.num_kv_heads, kWarpRows));
}

SplitPlan PlanSplits(const AttentionShape& shape, int64_t rows, int64_t max_position, Numerics numerics) {
  const int64_t blocks = max_position / kBlockKeys + 1, wanted = WantedSplits(shape, rows);
  if (numerics == Numerics::kNative) {
    const int64_t each = CeilDiv(blocks, std::min(wanted, blocks));
    return {CeilDiv(blocks, each), static_cast<int>(each), kAllBlocks};
  }
  constexpr int kStateBlocks = static_cast<int>(kAttentionSplit / kBlockKeys);
  if (wanted == 1 || blocks <= kStateBlocks) return {1, kAllBlocks, kStateBlocks};
  return {CeilDiv(blocks, kStateBlocks), kStateBlocks, kStateBlocks};
}

// States of one row and query head are next to each other, the values behind all states, at a multiple of 16 bytes.
int64_t StatesOf(const AttentionShape& shape, int64_t rows, int64_t splits) {
  return CeilDiv(rows * shape.num_heads * splits, 2) * 2;
}

template <typename Exponential, typename T, int E>
cudaError_t LaunchDecode(PagedArgs<T> args, const AttentionShape& shape, const SplitPlan& plan, int64_t rows,
                         void* scratch, cudaStream_t stream) {
  args.block_blocks = plan.block_blocks;
  args.forward.state_blocks = plan.state_blocks;
  args.end_row = static_cast<int>(rows);
  if (plan.splits > 1) {
    args.states = static_cast<SoftmaxState*>(scratch);
    args.state_values = reinterpret_cast<float*>(args.states + StatesOf(shape, rows, plan.splits));
  }
  const int64_t chunks = CeilDiv(args.forward.group, kWarpRows);
  const cudaError_t error = LaunchBehind(AttentionDecodeKernel<Exponential, T, E>, rows * shape.num_kv_heads * chunks,
                                         plan.splits, kDecodeThreads, DecodeSharedBytes<E>(), stream, args);
  if (error != cudaSuccess || plan.splits == 1) return error;
  return LaunchBehind(AttentionMergeKernel<Exponential, T, E>, CeilDiv(rows * shape.num_heads * kWarp, kMergeThreads),
                      1, kMergeThreads, 0, stream, args, shape.num_heads, plan.splits);
}

}  // namespace

int64_t AttentionPagedScratchBytes(const AttentionShape& shape, DType dtype, int64_t decode_rows, int64_t max_position,
                                   Numerics numerics) {
  if (dtype == DType::kF32) return 0;
  // Fewer rows may have more splits, and under native numerics fewer positions too.
  const int64_t blocks = max_position / kBlockKeys + 1;
  int64_t most = 0;
  for (int64_t rows = 1; rows <= decode_rows; ++rows) {
    const int64_t splits = numerics == Numerics::kNative ? std::min(WantedSplits(shape, rows), blocks)
                                                         : PlanSplits(shape, rows, max_position, numerics).splits;
    if (splits > 1) most = std::max(most, StatesOf(shape, rows, splits));
  }
  return most * (static_cast<int64_t>(sizeof(SoftmaxState)) + shape.head_dim * static_cast<int64_t>(sizeof(float)));
}

cudaError_t AttentionDecode(const AttentionShape& shape, const Tensor& q, const PagedView& view, int64_t max_position,
                            Numerics numerics, void* scratch, const Tensor& out, cudaStream_t stream) {
  const SplitPlan plan = PlanSplits(shape, view.decode_rows, max_position, numerics);
  LOCKSTEP_CHECK(plan.splits == 1 || scratch != nullptr, "split keys need AttentionPagedScratchBytes of scratch");
  return WithAttentionTypes(
      q.dtype, shape.head_dim, numerics,
      [&]<typename T, int E, typename Exponential>(T, std::integral_constant<int, E>, Exponential) {
        return LaunchDecode<Exponential, T, E>(MakePagedArgs<T>(shape, q, view, numerics, out), shape, plan,
                                               view.decode_rows, scratch, stream);
      });
}

}  // namespace lockstep::cuda
