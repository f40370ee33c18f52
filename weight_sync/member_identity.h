// Which machine and which GPU a member of a group is on, and what must hold of a whole group. Exchanged through the
// group's table before anything that could hang.
#ifndef LOCKSTEP_WEIGHT_SYNC_MEMBER_IDENTITY_H_
#define LOCKSTEP_WEIGHT_SYNC_MEMBER_IDENTITY_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "weight_sync/rendezvous_store.h"

namespace lockstep {

struct MemberIdentity {
  std::string host;    // the kernel's boot id: the same in all containers of a machine
  std::string bus_id;  // of the GPU
};
std::string ThisHost();

// FAILED_PRECONDITION in one line unless every member has a GPU of its own (NCCL) / all have the same one (IPC).
absl::Status CheckOwnGpus(const std::vector<MemberIdentity>& members);
absl::Status CheckOneGpu(const std::vector<MemberIdentity>& members);

struct Meeting {
  int rank = 0;
  int size = 1;
  MemberIdentity self;
  absl::Time deadline;
  std::function<bool()> cancelled;
};

// Every member says who it is; rank 0 checks all of them and calls `make_answer`; its answer, or what is wrong in the
// words of rank 0, comes back on every member. DEADLINE_EXCEEDED names the first member that did not come.
absl::StatusOr<std::string> Meet(GroupTable& table, const Meeting& meeting,
                                 const std::function<absl::Status(const std::vector<MemberIdentity>&)>& check,
                                 const std::function<absl::StatusOr<std::string>()>& make_answer);

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_MEMBER_IDENTITY_H_
