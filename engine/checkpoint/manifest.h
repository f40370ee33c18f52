// manifest.json of a checkpoint folder: name, size and digest of every file, and a digest of the list itself.
#ifndef LOCKSTEP_ENGINE_CHECKPOINT_MANIFEST_H_
#define LOCKSTEP_ENGINE_CHECKPOINT_MANIFEST_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace lockstep {

// Lists and digests all files under `dir` and writes DIR/manifest.json, durable.
absl::Status WriteManifest(const std::string& dir, int64_t step);

// Re-reads every file that the manifest lists. DATA_LOSS names the first that is missing, has another size or another
// digest, or the manifest itself.
absl::Status VerifyManifest(const std::string& dir);

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_CHECKPOINT_MANIFEST_H_
