#include "engine/cuda/serving.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/cuda/device_weights.h"
#include "engine/model/routing.h"

namespace lockstep::cuda {
namespace {

// Draws of one mixed step, whose final hidden states are kept; a step that wants more is computed again for the rest.
constexpr int64_t kMixedDraws = 4096;
// 2^60 bytes, more than any device has: sums stay in 64 bits.
constexpr uint64_t kMostMiB = uint64_t{1} << 40;
constexpr size_t kMostBytes = size_t{1} << 60;

}  // namespace

ServingLimits ServingLimitsOf(const ServingShape& shape) {
  ServingLimits limits;
  limits.decode = {.rows = shape.max_decode_rows,
                   .sequence_pages = (shape.max_sequence_tokens + kPageTokens - 1) / kPageTokens};
  limits.decoder = DecodeStep::DecoderLimits(shape.config, limits.decode);
  // Prefills of one row stand among the decode rows.
  limits.decoder.rows = std::max(limits.decoder.rows, shape.max_decode_rows + shape.prefill_chunk_tokens);
  limits.decoder.decode_rows = limits.decoder.rows;
  limits.mixed = {.outputs = kMixedDraws,
                  .logit_rows = 0,  // the decode step's scratch
                  .rows = limits.decoder.rows,
                  .sequence_pages = limits.decode.sequence_pages};
  return limits;
}

size_t ServingScratchBytes(const ServingShape& shape) {
  const ServingLimits limits = ServingLimitsOf(shape);
  return DeviceDecoder::PagedBytes(shape.config, shape.dtype, shape.numerics, limits.decoder) +
         DecodeStep::Bytes(shape.config, shape.dtype, limits.decode) +
         MixedStep::Bytes(shape.config, shape.dtype, limits.mixed);
}

size_t ServingStepBytes(const ServingShape& shape, bool routing) {
  const auto rows = static_cast<size_t>(ServingLimitsOf(shape).decoder.rows);
  return routing ? rows * RoutingShape(shape.config).row_bytes() : 0;
}

absl::StatusOr<int64_t> ServingPages(const ServingShape& shape, uint64_t kv_cache_mib, size_t free_bytes) {
  const auto page_bytes = static_cast<int64_t>(DeviceKv::BytesPerPage(shape.config, shape.dtype));
  const int64_t one = ServingLimitsOf(shape).decode.sequence_pages;
  int64_t pages = shape.max_decode_rows * one;
  if (kv_cache_mib > 0) {
    pages = static_cast<int64_t>(std::min(kv_cache_mib, kMostMiB) << 20) / page_bytes;
  } else {
    const auto weights = 2 * static_cast<int64_t>(DeviceWeights::Bytes(shape.config, shape.dtype));
    const int64_t left = static_cast<int64_t>(std::min(free_bytes, kMostBytes)) - weights;
    pages = std::min(pages, std::max<int64_t>(left, 0) / 2 / page_bytes);
  }
  if (pages >= one) return pages;
  return absl::ResourceExhaustedError(
      absl::StrCat("the KV cache on the device would have ", pages, " blocks, and one sequence of ",
                   shape.max_sequence_tokens, " tokens takes ", one,
                   "; raise rollout.kv_cache_mib, lower rollout.max_tokens, or take a device with more free memory"));
}

}  // namespace lockstep::cuda
