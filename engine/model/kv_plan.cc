#include "engine/model/kv_plan.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/machine_memory.h"
#include "engine/model/decoder.h"

namespace lockstep {

absl::StatusOr<int64_t> PlanKvPages(const ModelConfig& config, DType dtype, uint64_t kv_cache_mib,
                                    int64_t max_batch_size, int64_t max_sequence_tokens) {
  const auto page_bytes = static_cast<int64_t>(KvStorage::BytesPerPage(config, dtype));
  const int64_t sequence_pages = (max_sequence_tokens + kPageTokens - 1) / kPageTokens;
  int64_t bytes = static_cast<int64_t>(kv_cache_mib) << 20;
  if (kv_cache_mib == 0) {
    const auto memory = static_cast<int64_t>(ReadMachineMemory().total_bytes);
    // A page more a sequence for the copy of a shared, partly filled prompt page.
    bytes = std::min(page_bytes * (sequence_pages + 1) * max_batch_size, memory / 4);
  }
  const int64_t pages = std::min<int64_t>(bytes / page_bytes, INT32_MAX);
  if (pages < sequence_pages) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "KV cache of ", bytes >> 20, " MiB holds ", pages * kPageTokens, " tokens, fewer than one sequence of ",
        max_sequence_tokens, "; raise rollout.kv_cache_mib to ", (page_bytes * sequence_pages >> 20) + 1));
  }
  return pages;
}

}  // namespace lockstep
