#include "weight_sync/transport_ipc.h"

#include <atomic>
#include <map>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/check.h"
#include "engine/base/log.h"
#include "engine/base/mutex.h"
#include "weight_sync/device_wait.h"
#include "weight_sync/failpoints.h"
#include "weight_sync/member_identity.h"

namespace lockstep {
namespace {

constexpr uint64_t kSlots = 2;
constexpr size_t kMaxHandleBytes = 255;
constexpr int kMaxIpcReceivers = 64;  // keys of one bucket in the table

std::string BucketKey(uint64_t bucket) { return absl::StrCat("bucket/", bucket); }
std::string TakenKey(uint64_t bucket, int rank) { return absl::StrCat("taken/", bucket, "/", rank); }

// What a receiver needs for one bucket.
struct Offer {
  uint64_t bytes = 0;
  std::string memory, event;
};
// "BYTES MEMORY_LENGTH " and the two handles.
std::string Write(const Offer& offer) {
  return absl::StrCat(offer.bytes, " ", offer.memory.size(), " ", offer.memory, offer.event);
}
absl::StatusOr<Offer> Read(const std::string& text) {
  Offer offer;
  const size_t first = text.find(' ');
  const size_t second = first == std::string::npos ? first : text.find(' ', first + 1);
  size_t length = 0;
  if (second == std::string::npos || !absl::SimpleAtoi(text.substr(0, first), &offer.bytes) ||
      !absl::SimpleAtoi(text.substr(first + 1, second - first - 1), &length) || length > kMaxHandleBytes ||
      text.size() - second - 1 < length || text.size() - second - 1 - length > kMaxHandleBytes) {
    return absl::DataLossError("the sender's message about a bucket is not one");
  }
  offer.memory = text.substr(second + 1, length);
  offer.event = text.substr(second + 1 + length);
  return offer;
}

class IpcTransport : public WeightTransport {
 public:
  IpcTransport(std::shared_ptr<CommDevice> device, std::shared_ptr<GroupTable> table)
      : device_(std::move(device)), table_(std::move(table)) {}
  ~IpcTransport() override { Close(); }

  absl::Status Join(const TransportGroup& group, absl::Time deadline) override {
    if (group.size - 1 > kMaxIpcReceivers) {
      return absl::InvalidArgumentError(
          absl::StrCat(group.size - 1, " receivers on one GPU; the limit is ", kMaxIpcReceivers));
    }
    if (device_->stuck) return DeviceStuck();
    rank_ = group.rank;
    size_ = group.size;
    return Inside("joining", [&]() -> absl::Status {
      Meeting meeting;
      meeting.rank = rank_;
      meeting.size = size_;
      meeting.self = {ThisHost(), device_->runtime->bus_id()};
      meeting.deadline = deadline;
      meeting.cancelled = [this] { return closed_.load(); };
      const absl::Status met =
          Meet(*table_, meeting, CheckOneGpu, []() -> absl::StatusOr<std::string> { return std::string(); }).status();
      if (!met.ok()) return met;
      absl::StatusOr<void*> stream = device_->runtime->MakeStream();
      if (stream.ok()) stream_ = *stream;
      return stream.status();
    });
  }

  absl::Status Send(uint64_t bucket, const void* data, uint64_t bytes, absl::Time deadline) override {
    LOCKSTEP_CHECK(rank_ == 0, "only rank 0 sends");
    if (FailpointFires("transport.skip_send")) return absl::OkStatus();
    return Inside(absl::StrCat("sending bucket ", bucket), [&] { return Offered(bucket, data, bytes, deadline); });
  }
  absl::Status Receive(uint64_t bucket, void* data, uint64_t bytes, absl::Time deadline) override {
    LOCKSTEP_CHECK(rank_ != 0, "rank 0 does not receive");
    const absl::Status status =
        Inside(absl::StrCat("receiving bucket ", bucket), [&] { return Taken(bucket, data, bytes, deadline); });
    if (status.ok() && !device_->runtime->IsDeviceMemory(data) && FailpointFires("transport.corrupt_bucket")) {
      static_cast<char*>(data)[bytes / 2] ^= 0x10;
    }
    return status;
  }

  void Close() override {
    closed_ = true;
    MutexLock lock(&mutex_);
    if (!active_) End();  // else the thread that is inside does it
  }

 private:
  // `body` on the one thread that is inside; a failure uses the object up.
  template <typename Body>
  absl::Status Inside(const std::string& what, const Body& body) {
    {
      MutexLock lock(&mutex_);
      LOCKSTEP_CHECK(!active_, "one thread uses a transport");
      if (closed_) return GroupClosed();
      active_ = true;
    }
    absl::Status status = body();
    MutexLock lock(&mutex_);
    active_ = false;
    if (status.ok() && !closed_) return status;
    const bool was_closed = closed_.exchange(true);
    End();
    return was_closed ? GroupClosed()
                      : absl::Status(status.code(), absl::StrCat(what, ": ", std::string(status.message())));
  }

  absl::Status Offered(uint64_t bucket, const void* data, uint64_t bytes, absl::Time deadline) {
    DeviceRuntime& runtime = *device_->runtime;
    absl::Status status = bucket < kSlots ? absl::OkStatus() : AwaitTaken(bucket - kSlots, deadline);
    if (!status.ok()) return status;
    StagingPool::Buffer& slot = slots_[bucket % kSlots];
    if (slot.bytes < bytes) {
      if (slot.memory != nullptr) device_->staging.Return(slot);
      slot = {};
      absl::StatusOr<StagingPool::Buffer> larger = device_->staging.Take(bytes);
      if (!larger.ok()) return larger.status();
      slot = *larger;
    }
    status = runtime.Copy(slot.memory, data, bytes, stream_);
    if (status.ok()) status = runtime.Record(slot.event, stream_);
    if (!status.ok()) return status;
    absl::StatusOr<std::string> memory = runtime.ExportMemory(slot.memory);
    if (!memory.ok()) return memory.status();
    absl::StatusOr<std::string> event = runtime.ExportEvent(slot.event);
    if (!event.ok()) return event.status();
    // The receivers wait for the event themselves.
    status = table_->Set(BucketKey(bucket), Write({bytes, *memory, *event}), deadline);
    if (!status.ok()) return status;
    return WaitForDevice("the copy into its slot", deadline, closed_, [&] { return runtime.StreamDone(stream_); });
  }

  absl::Status AwaitTaken(uint64_t bucket, absl::Time deadline) {
    for (int rank = 1; rank < size_; ++rank) {
      const absl::Status taken =
          table_->Get(TakenKey(bucket, rank), deadline, [this] { return closed_.load(); }).status();
      if (absl::IsDeadlineExceeded(taken)) {
        return absl::DeadlineExceededError(
            absl::StrCat("rank ", rank, " has not taken bucket ", bucket, " within the deadline; it died or stopped"));
      }
      if (!taken.ok()) return taken;
      table_->Erase(TakenKey(bucket, rank));
    }
    table_->Erase(BucketKey(bucket));
    return absl::OkStatus();
  }

  absl::Status Taken(uint64_t bucket, void* data, uint64_t bytes, absl::Time deadline) {
    DeviceRuntime& runtime = *device_->runtime;
    const absl::StatusOr<std::string> text =
        table_->Get(BucketKey(bucket), deadline, [this] { return closed_.load(); });
    if (absl::IsDeadlineExceeded(text.status())) {
      return absl::DeadlineExceededError("the sender has not offered it within the deadline; it died or stopped");
    }
    if (!text.ok()) return text.status();
    const absl::StatusOr<Offer> offer = Read(*text);
    if (!offer.ok()) return offer.status();
    if (offer->bytes != bytes) {
      return absl::DataLossError(absl::StrCat("the sender offers ", offer->bytes, " bytes, expected are ", bytes));
    }
    const absl::StatusOr<void*> memory = Opened(&memories_, offer->memory, &DeviceRuntime::OpenMemory);
    if (!memory.ok()) return memory.status();
    const absl::StatusOr<void*> event = Opened(&events_, offer->event, &DeviceRuntime::OpenEvent);
    if (!event.ok()) return event.status();
    absl::Status status =
        WaitForDevice("the sender's copy", deadline, closed_, [&] { return runtime.EventDone(*event); });
    if (status.ok()) status = runtime.Copy(data, *memory, bytes, stream_);
    if (status.ok()) {
      status = WaitForDevice("the copy from its slot", deadline, closed_, [&] { return runtime.StreamDone(stream_); });
    }
    return status.ok() ? table_->Set(TakenKey(bucket, rank_), "", deadline) : status;
  }

  // Each handle is opened once.
  absl::StatusOr<void*> Opened(std::map<std::string, void*>* opened, const std::string& handle,
                               absl::StatusOr<void*> (DeviceRuntime::*open)(const std::string&)) {
    const auto found = opened->find(handle);
    if (found != opened->end()) return found->second;
    absl::StatusOr<void*> made = (device_->runtime.get()->*open)(handle);
    if (made.ok()) opened->emplace(handle, *made);
    return made;
  }

  // Waits for the copy that may be under way: the caller's memory must not be written once the call is back.
  void End() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    void* const stream = std::exchange(stream_, nullptr);
    if (stream == nullptr) return;
    const std::atomic<bool> never{false};
    const absl::Status idle = WaitForDevice("the last copy", absl::Now() + kCopyLimit, never,
                                            [&] { return device_->runtime->StreamDone(stream); });
    if (absl::IsDeadlineExceeded(idle)) {
      device_->stuck = true;  // and everything stays as it is
      LogError("a copy on the device is not done after ", absl::FormatDuration(kCopyLimit),
               "; this process takes part in no further group and must be started again");
      return;
    }
    device_->runtime->FreeStream(stream);
    for (const auto& [handle, memory] : memories_) device_->runtime->CloseMemory(memory);
    for (const auto& [handle, event] : events_) device_->runtime->FreeEvent(event);
    memories_.clear();
    events_.clear();
    for (StagingPool::Buffer& slot : slots_) {
      if (slot.memory != nullptr) device_->staging.Return(slot);
      slot = {};
    }
  }

  static constexpr absl::Duration kCopyLimit = absl::Seconds(2);

  const std::shared_ptr<CommDevice> device_;
  const std::shared_ptr<GroupTable> table_;
  int rank_ = 0;
  int size_ = 1;
  std::atomic<bool> closed_{false};
  Mutex mutex_;
  bool active_ ABSL_GUARDED_BY(mutex_) = false;
  // Of the thread that is inside, or of End when none is.
  void* stream_ = nullptr;
  StagingPool::Buffer slots_[kSlots];      // sender
  std::map<std::string, void*> memories_;  // receivers: by handle
  std::map<std::string, void*> events_;
};

}  // namespace

std::unique_ptr<WeightTransport> MakeIpcTransport(std::shared_ptr<CommDevice> device,
                                                  std::shared_ptr<GroupTable> table) {
  return std::make_unique<IpcTransport>(std::move(device), std::move(table));
}

TransportKind IpcKind(std::shared_ptr<CommDevice> device) {
  return {[device](std::shared_ptr<GroupTable> table) { return MakeIpcTransport(device, std::move(table)); }, device};
}

}  // namespace lockstep
