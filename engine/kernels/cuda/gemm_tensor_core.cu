// FP16 and BF16 products: which kernel and which tile.
#include <algorithm>

#include "engine/kernels/cuda/gemm_skinny.cuh"
#include "engine/kernels/cuda/gemm_tile.cuh"

namespace lockstep::cuda {
namespace {

using Tile64 = TileShape<64, 64, 32, 32, 2>;
using Tile128 = TileShape<128, 128, 64, 32, 2>;
// With slices a thread has two sets of sums: twice the threads.
using SlicedTile128 = TileShape<128, 128, 64, 32, 1>;

// Blocks of 128 x 128 from which on a device of today has enough to do; below, tiles of 64 x 64.
constexpr int64_t kManyBlocks = 192;
// Rows of x (of an expert, on average) up to which the skinny kernel is taken; with slices and without.
constexpr int64_t kFewRowsSliced = 64, kFewRows = 16;

int64_t SlicesOf(const Product& product) {
  return product.slice == 0 ? 1 : std::max<int64_t>(1, CeilDiv(product.reduction, product.slice));
}

int64_t RowsOfAnExpert(const Product& product) {
  return product.cut == ExpertCut::kRows ? product.size_j / product.experts.num_experts : product.size_j;
}

// Linear alone has x and w by lines of the reduction.
bool IsLinear(const Product& product) { return !product.a.by_reduction && !product.b.by_reduction; }

GemmTile PickTile(Product product) {
  const int64_t rows = RowsOfAnExpert(product);
  if (IsLinear(product) && rows <= (SlicesOf(product) > 1 ? kFewRowsSliced : kFewRows)) return GemmTile::kSkinny;
  const int64_t blocks = PlaceBlocks(product, Tile128::kExtentI, Tile128::kExtentJ);
  return rows > 64 && product.size_i > 64 && blocks >= kManyBlocks ? GemmTile::k128 : GemmTile::k64;
}

template <typename Shape>
cudaError_t LaunchTile(void (*kernel)(Product), Product product, cudaStream_t stream) {
  const int64_t blocks = PlaceBlocks(product, Shape::kExtentI, Shape::kExtentJ);
  return LaunchBehind(kernel, blocks, 1, Shape::kThreads, Shape::kShared, stream, product);
}

template <typename T, typename Shape, typename SlicedShape>
cudaError_t LaunchTile(const Product& product, cudaStream_t stream) {
  if (SlicesOf(product) > 1) {
    return LaunchTile<SlicedShape>(TileKernel<T, SlicedShape, false, false, true>, product, stream);
  }
  if (product.b.by_reduction) return LaunchTile<Shape>(TileKernel<T, Shape, true, true, false>, product, stream);
  if (product.a.by_reduction) return LaunchTile<Shape>(TileKernel<T, Shape, true, false, false>, product, stream);
  return LaunchTile<Shape>(TileKernel<T, Shape, false, false, false>, product, stream);
}

template <typename T, typename Shape>
cudaError_t LaunchSkinny(Product product, cudaStream_t stream) {
  const int64_t slices = SlicesOf(product), ways = CeilDiv(slices, Shape::kShare);
  LOCKSTEP_CHECK(ways <= Shape::kWarpsMax, "a block of the skinny kernel has warps for all slices");
  const int64_t warps = ways >= 4 ? ways : 4 / ways * ways, extent = warps / ways * Shape::kI;
  const int64_t blocks = PlaceBlocks(product, extent, Shape::kJ);
  return LaunchBehind(SkinnyKernel<T, Shape>, blocks, 1, warps * kWarp, warps * Shape::kWarpBytes, stream, product,
                      slices);
}

template <typename T>
cudaError_t LaunchSkinny(const Product& product, cudaStream_t stream) {
  const int64_t rows = RowsOfAnExpert(product);
  if (rows <= SkinnyFew::kJ) return LaunchSkinny<T, SkinnyFew>(product, stream);
  if (rows <= SkinnySome::kJ) return LaunchSkinny<T, SkinnySome>(product, stream);
  return LaunchSkinny<T, SkinnyMany>(product, stream);
}

template <typename T>
cudaError_t LaunchAs(const Product& product, GemmTile tile, cudaStream_t stream) {
  if (tile == GemmTile::kAutomatic) tile = PickTile(product);
  if (tile == GemmTile::kSkinny && IsLinear(product)) return LaunchSkinny<T>(product, stream);
  if (tile == GemmTile::k128) return LaunchTile<T, Tile128, SlicedTile128>(product, stream);
  return LaunchTile<T, Tile64, Tile64>(product, stream);
}

}  // namespace

int64_t GemmSliceLength(int64_t n, int64_t k) {
  int64_t slices = 1;
  while (n < 4096 && slices < kSkinnySlicesMax && k / (2 * slices) >= 2 * kDepth) slices *= 2;
  return std::max<int64_t>(1, CeilDiv(CeilDiv(k, kDepth), slices)) * kDepth;
}

cudaError_t LaunchTensorCoreProduct(const Product& product, GemmTile tile, cudaStream_t stream) {
  LOCKSTEP_CHECK(product.slice % kDepth == 0 && (product.slice > 0 || !IsLinear(product)),
                 "slices are whole steps of the tiles");
  return product.dtype == DType::kF16 ? LaunchAs<__half>(product, tile, stream)
                                      : LaunchAs<__nv_bfloat16>(product, tile, stream);
}

}  // namespace lockstep::cuda
