// The part of NCCL that is used, as an interface: for the same reasons as DeviceRuntime.
//
// Communicators are non-blocking: InitRank, Broadcast, AllReduce and Finalize only begin, and Done tells when they have
// been carried out on the host's side (an operation then lies on its stream, and the stream tells when it is over).
// Between the beginning of one call and Done the communicator takes no other but Abort. No two threads may be inside
// calls on one communicator, Abort included (nccl_group.h keeps both rules).
//
// Nothing here waits, with two exceptions: Destroy and Abort may take long, or for ever when the device hangs.
#ifndef LOCKSTEP_WEIGHT_SYNC_NCCL_API_H_
#define LOCKSTEP_WEIGHT_SYNC_NCCL_API_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lockstep {

inline constexpr size_t kNcclIdBytes = 128;

enum class NcclType { kBytes, kFloat, kDouble };
enum class NcclReduce { kSum, kMax, kMin };

class NcclApi {
 public:
  virtual ~NcclApi() = default;

  virtual std::string version() const = 0;  // "2.28.9"
  // Of a new group, on its rank 0: kNcclIdBytes bytes. Opens the socket at which the ranks will meet.
  virtual absl::StatusOr<std::string> UniqueId() = 0;
  // On the thread's current device. *comm is set when a communicator is left to Abort, also after an error.
  virtual absl::Status InitRank(void** comm, int size, const std::string& id, int rank) = 0;
  // False: in progress. An error, of this or of an earlier operation, is an error for good.
  virtual absl::StatusOr<bool> Done(void* comm) = 0;
  // In place, in device memory.
  virtual absl::Status Broadcast(void* data, uint64_t bytes, void* comm, void* stream) = 0;  // from rank 0
  virtual absl::Status AllReduce(void* data, uint64_t count, NcclType type, NcclReduce reduce, void* comm,
                                 void* stream) = 0;
  // Ends in peace: Finalize, Done, Destroy. Or at once: Abort, which ends what runs on the device.
  virtual absl::Status Finalize(void* comm) = 0;
  virtual absl::Status Destroy(void* comm) = 0;
  virtual absl::Status Abort(void* comm) = 0;
};

// libnccl.so.2, loaded when it is asked for: programs start without it. Looked for where the loader looks, then in the
// folder that the build found. UNAVAILABLE in one line where this build has no NCCL or the machine no library of it.
absl::StatusOr<std::shared_ptr<NcclApi>> LoadNccl();

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_NCCL_API_H_
