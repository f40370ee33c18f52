#include "engine/kernels/cpu/gemm.h"

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <utility>

#include "engine/base/check.h"

namespace lockstep::cpu {
namespace {

constexpr int64_t kRows = 6;          // of a register tile
constexpr int64_t kDepth = 512;       // k block
constexpr int64_t kGroupPanels = 16;  // panels whose slices stay in L2 together
constexpr int64_t kSuperRows = 1026;  // rows whose accumulators are held at once; a multiple of kRows
constexpr int64_t kTileColumns = kGroupPanels * kPanelWidth;
// Up to this many rows every panel is taken over the whole of K, so that memory is read in long runs, in groups that
// the later row blocks still find in L2.
constexpr int64_t kFewRows = 16;
constexpr int64_t kFewRowsGroupBytes = 128 << 10;

// Eight values of B at `p`, as FP32.
template <DType kType>
inline __m256 LoadB(const char* p) {
  if constexpr (kType == DType::kF32) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
  } else if constexpr (kType == DType::kF16) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  } else {
    const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
  }
}

// Bytes ahead of the loads that the tile asks for; its last steps ask for the start of the next P panels instead.
constexpr int64_t kPrefetchBytes = 4096;

// R rows x P panels over `depth` of k: c[r][p * 16 ..] = fma chain, continued from c or begun at zero. R * 2P is at
// most 12: with the smaller side held (broadcasts or B) and one register for the other, the tile needs 16.
template <int R, int P, DType kType>
void Tile(const float* a, const char* b, int64_t panel_stride_bytes, int64_t depth, bool continue_chain, float* c,
          int64_t c_stride) {
  constexpr int64_t kStep = kPanelWidth * static_cast<int64_t>(DTypeSize(kType));
  __m256 acc[R][2 * P];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < 2 * P; ++v) {
      acc[r][v] = continue_chain ? _mm256_loadu_ps(c + r * c_stride + v * 8) : _mm256_setzero_ps();
    }
  }
  const auto run = [&](int64_t k_begin, int64_t k_end, int64_t ahead) __attribute__((always_inline)) {
    for (int64_t k = k_begin; k < k_end; ++k) {
      const char* at = b + k * kStep;
      if constexpr (P == 1) {
        _mm_prefetch(at + ahead, _MM_HINT_T0);
        const __m256 low = LoadB<kType>(at), high = LoadB<kType>(at + kStep / 2);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const __m256 value = _mm256_broadcast_ss(a + k * R + r);
          acc[r][0] = _mm256_fmadd_ps(value, low, acc[r][0]);
          acc[r][1] = _mm256_fmadd_ps(value, high, acc[r][1]);
        }
      } else {
        __m256 values[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) values[r] = _mm256_broadcast_ss(a + k * R + r);
#pragma GCC unroll 8
        for (int v = 0; v < 2 * P; ++v) {
          if (v % 2 == 0) _mm_prefetch(at + v / 2 * panel_stride_bytes + ahead, _MM_HINT_T0);
          const __m256 column = LoadB<kType>(at + v / 2 * panel_stride_bytes + v % 2 * (kStep / 2));
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) acc[r][v] = _mm256_fmadd_ps(values[r], column, acc[r][v]);
        }
      }
    }
  };
  const int64_t last = std::max<int64_t>(0, depth - kPrefetchBytes / kStep);
  run(0, last, kPrefetchBytes);
  run(last, depth, P * panel_stride_bytes - last * kStep);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < 2 * P; ++v) _mm256_storeu_ps(c + r * c_stride + v * 8, acc[r][v]);
  }
}

using TileFunction = void (*)(const float*, const char*, int64_t, int64_t, bool, float*, int64_t);

// Panels that one call covers, by rows: enough chains to hide the FMA latency (4 cycles, two a cycle: 8 registers).
constexpr int PanelsAtOnce(int64_t rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }

template <DType kType>
constexpr std::array<std::array<TileFunction, 3>, kRows> kTiles = {{
    {Tile<1, 1, kType>, Tile<1, 2, kType>, Tile<1, 4, kType>},
    {Tile<2, 1, kType>, Tile<2, 2, kType>, nullptr},
    {Tile<3, 1, kType>, Tile<3, 2, kType>, nullptr},
    {Tile<4, 1, kType>, nullptr, nullptr},
    {Tile<5, 1, kType>, nullptr, nullptr},
    {Tile<6, 1, kType>, nullptr, nullptr},
}};

TileFunction FindTile(DType dtype, int64_t rows, int panels) {
  const int slot = panels / 2;  // 1, 2, 4
  switch (dtype) {
    case DType::kF32:
      return kTiles<DType::kF32>[static_cast<size_t>(rows - 1)][static_cast<size_t>(slot)];
    case DType::kF16:
      return kTiles<DType::kF16>[static_cast<size_t>(rows - 1)][static_cast<size_t>(slot)];
    case DType::kBF16:
      return kTiles<DType::kBF16>[static_cast<size_t>(rows - 1)][static_cast<size_t>(slot)];
  }
  return nullptr;
}

// Row blocks of m rows: as few as 6-row tiles allow, of even sizes (8 = 4 + 4, not 6 + 2).
struct RowBlocks {
  explicit RowBlocks(int64_t m) : m(m), count((m + kRows - 1) / kRows) {}
  int64_t Begin(int64_t block) const { return m * block / count; }
  int64_t m, count;
};

// Tiles of one row block against consecutive panels; partial sums are added where the chain is not continued.
struct BlockCall {
  const float* a;
  int64_t rows;
  const char* b;
  int64_t panel_stride_bytes;
  int64_t panels;
  int64_t depth;
  bool first;
  bool matched;
  DType dtype;
  float* c;
  int64_t c_stride;
};

void RunBlock(const BlockCall& call) {
  int64_t panel = 0;
  while (panel < call.panels) {
    int at_once = PanelsAtOnce(call.rows);
    while (at_once > call.panels - panel) at_once /= 2;
    const TileFunction tile = FindTile(call.dtype, call.rows, at_once);
    const char* b = call.b + panel * call.panel_stride_bytes;
    float* c = call.c + panel * kPanelWidth;
    if (call.first || call.matched) {
      tile(call.a, b, call.panel_stride_bytes, call.depth, !call.first, c, call.c_stride);
    } else {
      float partial[kRows * 4 * kPanelWidth];
      const int64_t width = at_once * kPanelWidth;
      tile(call.a, b, call.panel_stride_bytes, call.depth, false, partial, width);
      for (int64_t r = 0; r < call.rows; ++r) {
        for (int64_t j = 0; j < width; ++j) c[r * call.c_stride + j] += partial[r * width + j];
      }
    }
    panel += at_once;
  }
}

// One thread's panels for one super block of rows.
class PanelWorker {
 public:
  PanelWorker(const GemmShape& shape, bool matched, const RowBlocks& blocks, int64_t row_begin, const float* a,
              const void* b, const PackPanel* pack_b, float* tile, void* panel_scratch)
      : shape_(shape),
        matched_(matched),
        blocks_(blocks),
        row_begin_(row_begin),
        a_(a),
        b_(static_cast<const char*>(b)),
        pack_b_(pack_b),
        tile_(tile),
        panel_scratch_(panel_scratch),
        element_(static_cast<int64_t>(DTypeSize(shape.b_dtype))) {
    if (pack_b != nullptr || blocks.m > kFewRows) return;
    depth_ = std::max<int64_t>(1, shape.k);
    if (blocks.count > 1) {
      const int64_t panel_bytes = std::max<int64_t>(1, shape.k * kPanelWidth * element_);
      group_panels_ = std::clamp<int64_t>(kFewRowsGroupBytes / panel_bytes, 1, kGroupPanels);
    }
  }

  void Run(int64_t panel_begin, int64_t panel_end, Epilogue epilogue) {
    const int64_t panels = panel_end - panel_begin;
    if (panels <= 0) return;
    const int64_t groups = (panels + group_panels_ - 1) / group_panels_;
    for (int64_t g = 0; g < groups; ++g) {
      RunGroup(panel_begin + panels * g / groups, panel_begin + panels * (g + 1) / groups, epilogue);
    }
  }

 private:
  void RunGroup(int64_t panel_begin, int64_t panel_end, Epilogue epilogue) {
    const int64_t panels = panel_end - panel_begin;
    const int64_t width = panels * kPanelWidth;
    if (shape_.k == 0) std::fill(tile_, tile_ + blocks_.m * width, 0.0f);
    for (int64_t k = 0; k < shape_.k; k += depth_) {
      const int64_t depth = std::min(depth_, shape_.k - k);
      const char* b = b_ + (panel_begin * shape_.k + k) * kPanelWidth * element_;
      int64_t stride = shape_.k * kPanelWidth * element_;
      if (pack_b_ != nullptr) {
        stride = depth * kPanelWidth * element_;
        for (int64_t p = 0; p < panels; ++p) {
          (*pack_b_)(panel_begin + p, k, depth, static_cast<char*>(panel_scratch_) + p * stride);
        }
        b = static_cast<const char*>(panel_scratch_);
      }
      for (int64_t block = 0; block < blocks_.count; ++block) {
        const int64_t row = blocks_.Begin(block);
        const int64_t rows = blocks_.Begin(block + 1) - row;
        RunBlock({a_ + row * shape_.k + k * rows, rows, b, stride, panels, depth, k == 0, matched_, shape_.b_dtype,
                  tile_ + row * width, width});
      }
    }
    const int64_t column = panel_begin * kPanelWidth;
    const int64_t columns = std::min(width, shape_.n - column);
    for (int64_t r = 0; r < blocks_.m; ++r) epilogue(row_begin_ + r, column, columns, tile_ + r * width);
  }

  const GemmShape& shape_;
  const bool matched_;
  const RowBlocks& blocks_;
  const int64_t row_begin_;
  const float* a_;
  const char* b_;
  const PackPanel* pack_b_;
  float* tile_;
  void* panel_scratch_;
  const int64_t element_;
  int64_t depth_ = kDepth;
  int64_t group_panels_ = kGroupPanels;
};

void Gemm(CpuContext& context, const GemmShape& shape, PackRows pack_a, const void* b, const PackPanel* pack_b,
          Epilogue epilogue) {
  if (shape.m == 0 || shape.n == 0) return;
  const int64_t panels = (shape.n + kPanelWidth - 1) / kPanelWidth;
  const int64_t super_rows = std::min(shape.m, kSuperRows);
  const int threads = context.pool.threads();
  float* a = context.gemm_a.Get<float>(static_cast<size_t>(super_rows * shape.k));
  const size_t tile_floats = static_cast<size_t>(super_rows * std::min(kTileColumns, panels * kPanelWidth));
  const size_t panel_bytes = pack_b == nullptr ? 0 : static_cast<size_t>(kTileColumns * kDepth) * sizeof(float);
  const size_t thread_bytes = tile_floats * sizeof(float) + panel_bytes + 4096;
  char* scratch = context.gemm_tile.Get<char>(thread_bytes * static_cast<size_t>(threads));
  for (int64_t row_begin = 0; row_begin < shape.m; row_begin += super_rows) {
    const RowBlocks blocks(std::min(super_rows, shape.m - row_begin));
    const auto pack = [&](int thread, int thread_count) {
      const auto [begin, end] = StaticSplit(blocks.count, 1, thread, thread_count);
      for (int64_t block = begin; block < end; ++block) {
        const int64_t row = blocks.Begin(block);
        pack_a(row_begin + row, blocks.Begin(block + 1) - row, a + row * shape.k);
      }
    };
    // Few rows are packed by the caller: a barrier costs more than the copy.
    if (blocks.count == 1) {
      pack(0, 1);
    } else {
      context.pool.Run(pack);
    }
    context.pool.Run([&](int thread, int thread_count) {
      char* own = scratch + thread_bytes * static_cast<size_t>(thread);
      const auto [begin, end] = StaticSplit(panels, 1, thread, thread_count);
      PanelWorker(shape, context.numerics == Numerics::kMatched, blocks, row_begin, a, b, pack_b,
                  reinterpret_cast<float*>(own), own + tile_floats * sizeof(float))
          .Run(begin, end, epilogue);
    });
  }
}

}  // namespace

void GemmPackedB(CpuContext& context, const GemmShape& shape, PackRows pack_a, const void* b, Epilogue epilogue) {
  Gemm(context, shape, pack_a, b, nullptr, epilogue);
}

void GemmPackingB(CpuContext& context, const GemmShape& shape, PackRows pack_a, PackPanel pack_b, Epilogue epilogue) {
  Gemm(context, shape, pack_a, nullptr, &pack_b, epilogue);
}

}  // namespace lockstep::cpu
