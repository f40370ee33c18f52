// A NCCL group by Status: every wait has a deadline, and Close may come from any thread. What gloo_group.h is for Gloo.
//
//   NcclGroup group(device);
//   RETURN(group.Join({.rank = 1, .size = 2, .table = table, .deadline = ...}));
//   RETURN(group.Run("broadcast", deadline, [&](NcclApi& nccl, void* comm, void* stream) {
//     return nccl.Broadcast(memory, bytes, comm, stream);
//   }));
//
// NCCL has no timeout on a collective and does not spread the news of a failure: a member whose peer is gone waits for
// ever, on the device too. So after a failure or Close the communicator is aborted and the object is used up. Abort is
// called by the thread that was inside the group if there is one, which asks every millisecond whether it is to, and
// by Close if there is none: never beside another call on the communicator.
//
// An abort may hang itself. It runs on a thread of its own; if it is not back within kAbortLimit, the communicator is
// left as it is, the device counts as stuck, and every later Join on it in this process is refused: the process has to
// be started again.
#ifndef LOCKSTEP_WEIGHT_SYNC_NCCL_GROUP_H_
#define LOCKSTEP_WEIGHT_SYNC_NCCL_GROUP_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "engine/base/mutex.h"
#include "weight_sync/comm_device.h"
#include "weight_sync/rendezvous_store.h"

namespace lockstep {

inline constexpr absl::Duration kAbortLimit = absl::Seconds(10);
// Asked of the table while an operation is awaited, where members tell each other of failures (share_failures).
inline constexpr absl::Duration kNewsPeriod = absl::Seconds(1);

struct NcclGroupOptions {
  int rank = 0;
  int size = 1;
  std::shared_ptr<GroupTable> table;
  absl::Time deadline;
  // For groups without a control plane of their own: a member that fails says so in the table, and the others look
  // there while they wait. Without it the news must come by Close.
  bool share_failures = false;
};

class NcclGroup {
 public:
  explicit NcclGroup(std::shared_ptr<CommDevice> device, absl::Duration abort_limit = kAbortLimit)
      : device_(std::move(device)), abort_limit_(abort_limit) {}
  ~NcclGroup() { Close(); }
  NcclGroup(const NcclGroup&) = delete;

  // Once. Members meet in the table first (who is where; rank 0's unique id), and only when all have come, in NCCL.
  absl::Status Join(const NcclGroupOptions& options) ABSL_LOCKS_EXCLUDED(mutex_);
  // Enqueues by `begin` and waits until it is over on the device. DEADLINE_EXCEEDED, CANCELLED (Close), ABORTED
  // (another member's failure), or what NCCL or the driver says. `what` begins the message.
  using Begin = std::function<absl::Status(NcclApi& nccl, void* comm, void* stream)>;
  absl::Status Run(const std::string& what, absl::Time deadline, const Begin& begin) ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends a group in which nothing failed, so that a member which is still inside the last operation is not cut off.
  void Finish(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mutex_);
  void Close() ABSL_LOCKS_EXCLUDED(mutex_);
  // Between two calls of Run: asks for an error that has come meanwhile, and closes the group if there is one.
  bool Usable() ABSL_LOCKS_EXCLUDED(mutex_);

  int rank() const { return rank_; }
  int size() const { return size_; }
  bool closed() const { return closed_; }
  // Null before Join and after the end.
  void* stream() ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    return stream_;
  }

 private:
  absl::Status Enter() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Leave(absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status MeetAndInit(const NcclGroupOptions& options);
  absl::Status Init(const NcclGroupOptions& options, const std::string& id);
  struct NewsAsked {
    absl::Time next = absl::Now() + kNewsPeriod;
    int lost = 0;  // calls in a row that rank 0 did not answer
  };
  absl::Status News(NewsAsked* asked) const;
  void End(bool in_peace) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::shared_ptr<CommDevice> device_;
  const absl::Duration abort_limit_;
  int rank_ = 0;
  int size_ = 1;
  std::shared_ptr<GroupTable> news_;  // null unless share_failures
  std::atomic<bool> closed_{false};
  Mutex mutex_;
  bool active_ ABSL_GUARDED_BY(mutex_) = false;  // a thread is inside: it alone may call NCCL
  void* comm_ ABSL_GUARDED_BY(mutex_) = nullptr;
  void* stream_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_NCCL_GROUP_H_
