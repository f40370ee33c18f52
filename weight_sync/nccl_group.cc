#include "weight_sync/nccl_group.h"

#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/check.h"
#include "engine/base/log.h"
#include "weight_sync/device_wait.h"
#include "weight_sync/member_identity.h"

namespace lockstep {
namespace {

constexpr char kFailedKey[] = "failed";
constexpr absl::Duration kTellLimit = absl::Seconds(1);

// Runs `body` on a thread of its own. False: it is not back within the limit, and is left to itself.
bool FinishesWithin(absl::Duration limit, std::function<void()> body) {
  struct State {
    Mutex mutex;
    CondVar changed;
    bool done ABSL_GUARDED_BY(mutex) = false;
  };
  auto state = std::make_shared<State>();
  std::thread thread([state, body = std::move(body)] {
    body();
    MutexLock lock(&state->mutex);
    state->done = true;
    state->changed.SignalAll();
  });
  const absl::Time deadline = absl::Now() + limit;
  bool done = false;
  {
    MutexLock lock(&state->mutex);
    while (!state->done && absl::Now() < deadline) state->changed.WaitWithDeadline(&state->mutex, deadline);
    done = state->done;
  }
  if (done) {
    thread.join();
  } else {
    thread.detach();
  }
  return done;
}

}  // namespace

absl::Status NcclGroup::Join(const NcclGroupOptions& options) {
  LOCKSTEP_CHECK(device_->nccl != nullptr, "a NCCL group needs NCCL");
  if (device_->stuck) return DeviceStuck();
  {
    MutexLock lock(&mutex_);
    LOCKSTEP_CHECK(comm_ == nullptr && !active_, "a group is joined once");
    if (closed_) return GroupClosed();
    active_ = true;
  }
  rank_ = options.rank;
  size_ = options.size;
  return Leave(MeetAndInit(options));
}

absl::Status NcclGroup::MeetAndInit(const NcclGroupOptions& options) {
  const std::string what = absl::StrCat("joining a NCCL group as rank ", rank_, " of ", size_);
  Meeting meeting;
  meeting.rank = rank_;
  meeting.size = size_;
  meeting.self = {ThisHost(), device_->runtime->bus_id()};
  // Half for all members to come, half for NCCL's own connections.
  meeting.deadline = absl::Now() + (options.deadline - absl::Now()) / 2;
  meeting.cancelled = [this] { return closed_.load(); };
  const absl::StatusOr<std::string> id =
      Meet(*options.table, meeting, CheckOwnGpus, [this] { return device_->nccl->UniqueId(); });
  if (!id.ok()) return absl::Status(id.status().code(), absl::StrCat(what, ": ", std::string(id.status().message())));
  absl::Status status = Init(options, *id);
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(what, ": ", std::string(status.message())));
}

absl::Status NcclGroup::Init(const NcclGroupOptions& options, const std::string& id) {
  absl::Status status = device_->runtime->Bind();
  if (!status.ok()) return status;
  absl::StatusOr<void*> stream = device_->runtime->MakeStream();
  if (!stream.ok()) return stream.status();
  void* comm = nullptr;
  status = device_->nccl->InitRank(&comm, size_, id, rank_);
  {
    MutexLock lock(&mutex_);
    stream_ = *stream;
    comm_ = comm;
  }
  if (!status.ok()) return status;
  status = WaitForDevice("connecting", options.deadline, closed_, [&] { return device_->nccl->Done(comm); });
  if (status.ok() && options.share_failures) news_ = options.table;
  return status;
}

absl::Status NcclGroup::Enter() {
  MutexLock lock(&mutex_);
  LOCKSTEP_CHECK(!active_, "one thread uses a group");
  if (closed_ || comm_ == nullptr) return GroupClosed();
  active_ = true;
  return absl::OkStatus();
}

absl::Status NcclGroup::Leave(absl::Status status) {
  if (!status.ok() && !closed_ && news_ != nullptr) {
    (void)news_->Set(kFailedKey, absl::StrCat("rank ", rank_, ": ", std::string(status.message())).substr(0, 500),
                     absl::Now() + kTellLimit);
  }
  MutexLock lock(&mutex_);
  active_ = false;
  if (status.ok() && !closed_) return status;
  const bool was_closed = closed_.exchange(true);
  End(/*in_peace=*/false);
  return was_closed ? GroupClosed() : status;
}

// What another member has put into the table.
absl::Status NcclGroup::News(NewsAsked* asked) const {
  if (news_ == nullptr || absl::Now() < asked->next) return absl::OkStatus();
  const absl::StatusOr<std::string> failed = news_->Get(kFailedKey, absl::Now(), nullptr);
  asked->next = absl::Now() + kNewsPeriod;
  if (failed.ok()) return absl::AbortedError(absl::StrCat("another member failed: ", failed->substr(0, 500)));
  // The table is with rank 0. One lost call may be chance.
  asked->lost = absl::IsUnavailable(failed.status()) ? asked->lost + 1 : 0;
  return asked->lost < 2 ? absl::OkStatus() : absl::AbortedError("rank 0 does not answer any more");
}

absl::Status NcclGroup::Run(const std::string& what, absl::Time deadline, const Begin& begin) {
  absl::Status status = Enter();
  if (!status.ok()) return status;
  void *comm = nullptr, *stream = nullptr;
  {
    MutexLock lock(&mutex_);
    comm = comm_;
    stream = stream_;
  }
  status = device_->runtime->Bind();
  if (status.ok()) {
    status = begin(*device_->nccl, comm, stream);
    if (!status.ok()) status = Prefixed(what, status);
  }
  if (status.ok()) {
    NewsAsked asked;
    status = WaitForDevice(what, deadline, closed_, [&]() -> absl::StatusOr<bool> {
      // First that it has been enqueued, then that the stream is empty.
      const absl::StatusOr<bool> enqueued = device_->nccl->Done(comm);
      if (!enqueued.ok()) return enqueued;
      if (*enqueued) {
        const absl::StatusOr<bool> done = device_->runtime->StreamDone(stream);
        if (!done.ok() || *done) return done;
      }
      const absl::Status news = News(&asked);
      if (!news.ok()) return news;
      return false;
    });
  }
  return Leave(status);
}

void NcclGroup::Finish(absl::Duration timeout) {
  if (!Enter().ok()) return;
  void* comm = nullptr;
  {
    MutexLock lock(&mutex_);
    comm = comm_;
  }
  absl::Status status = device_->nccl->Finalize(comm);
  if (status.ok()) {
    status = WaitForDevice("finalize", absl::Now() + timeout, closed_, [&] { return device_->nccl->Done(comm); });
  }
  MutexLock lock(&mutex_);
  active_ = false;
  closed_ = true;
  End(/*in_peace=*/status.ok());
}

bool NcclGroup::Usable() {
  if (!Enter().ok()) return false;
  void* comm = nullptr;
  {
    MutexLock lock(&mutex_);
    comm = comm_;
  }
  const absl::StatusOr<bool> done = device_->nccl->Done(comm);
  absl::Status status = done.status();
  if (status.ok() && !*done) status = absl::InternalError("an operation is in progress in an idle group");
  return Leave(std::move(status)).ok();
}

void NcclGroup::Close() {
  closed_ = true;
  MutexLock lock(&mutex_);
  if (!active_) End(/*in_peace=*/false);  // else the thread that is inside does it
}

void NcclGroup::End(bool in_peace) {
  void* const comm = std::exchange(comm_, nullptr);
  void* const stream = std::exchange(stream_, nullptr);
  if (comm == nullptr && stream == nullptr) return;
  const bool ended = comm == nullptr || FinishesWithin(abort_limit_, [device = device_, comm, in_peace] {
                       const absl::Status status = in_peace ? device->nccl->Destroy(comm) : device->nccl->Abort(comm);
                       if (!status.ok()) LogWarning("end of a NCCL group: ", status.message());
                     });
  if (ended) {
    device_->runtime->FreeStream(stream);
    return;
  }
  device_->stuck = true;
  LogError("ncclCommAbort is not back after ", absl::FormatDuration(abort_limit_),
           "; this process takes part in no further group and must be started again");
}

}  // namespace lockstep
