#include "weight_sync/transport_ipc.h"

#include <atomic>
#include <deque>
#include <optional>
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
// Buckets in memory that stays which may be offered before the first of them is taken.
constexpr size_t kAhead = 4;
constexpr size_t kMaxHandleBytes = 255;
constexpr int kMaxIpcReceivers = 64;  // keys of one bucket in the table

std::string BucketKey(uint64_t bucket) { return absl::StrCat("bucket/", bucket); }
std::string TakenKey(uint64_t bucket, int rank) { return absl::StrCat("taken/", bucket, "/", rank); }

// What a receiver needs for one bucket. A handle is of a whole allocation.
struct Offer {
  uint64_t bytes = 0;
  uint64_t offset = 0;      // of the bucket in the allocation
  uint64_t allocation = 0;  // bytes
  std::string memory;
  std::string event;  // after which the bytes are there; empty: they are
};
// "BYTES OFFSET ALLOCATION MEMORY_LENGTH " and the two handles.
std::string Write(const Offer& offer) {
  return absl::StrCat(offer.bytes, " ", offer.offset, " ", offer.allocation, " ", offer.memory.size(), " ",
                      offer.memory, offer.event);
}
absl::StatusOr<Offer> Read(const std::string& text) {
  Offer offer;
  uint64_t length = 0;
  size_t at = 0;
  const auto number = [&](uint64_t* value) {
    const size_t space = text.find(' ', at);
    const bool good = space != std::string::npos && absl::SimpleAtoi(text.substr(at, space - at), value);
    at = good ? space + 1 : text.size();
    return good;
  };
  const bool numbers = number(&offer.bytes) && number(&offer.offset) && number(&offer.allocation) && number(&length);
  if (!numbers || length > kMaxHandleBytes || text.size() - at < length ||
      text.size() - at - length > kMaxHandleBytes || offer.offset > offer.allocation ||
      offer.bytes > offer.allocation - offer.offset) {
    return absl::DataLossError("the sender's message about a bucket is not one");
  }
  offer.memory = text.substr(at, length);
  offer.event = text.substr(at + length);
  return offer;
}

// That all members have met, and by what name the sender goes.
struct KeptIpc : KeptGroup {
  KeptIpc(std::string name, int rank, int size, std::string owner)
      : KeptGroup(std::move(name), rank, size), owner(std::move(owner)) {}
  bool Usable() override { return true; }
  std::string owner;
};

class IpcTransport : public WeightTransport {
 public:
  IpcTransport(std::shared_ptr<CommDevice> device, std::shared_ptr<GroupTable> table, std::shared_ptr<KeptSlot> slot)
      : device_(std::move(device)), table_(std::move(table)), slot_(std::move(slot)) {}
  ~IpcTransport() override { Close(); }

  absl::Status Join(const TransportGroup& group, absl::Time deadline) override {
    if (group.size - 1 > kMaxIpcReceivers) {
      return absl::InvalidArgumentError(
          absl::StrCat(group.size - 1, " receivers on one GPU; the limit is ", kMaxIpcReceivers));
    }
    if (device_->stuck) return DeviceStuck();
    rank_ = group.rank;
    size_ = group.size;
    name_ = group.kept.empty() ? group.name : group.kept;
    return Inside("joining", [&]() -> absl::Status {
      const absl::StatusOr<std::string> owner = Owner(group, deadline);
      if (!owner.ok()) return owner.status();
      owner_ = *owner;
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
  absl::Status Finish(absl::Time deadline) override {
    if (untaken_.empty()) return absl::OkStatus();
    return Inside("waiting for the last buckets to be taken", [&] { return AwaitTaken(untaken_.back(), deadline); });
  }
  absl::Status Receive(uint64_t bucket, void* data, uint64_t bytes, absl::Time deadline) override {
    LOCKSTEP_CHECK(rank_ != 0, "rank 0 does not receive");
    const absl::Status status =
        Inside(absl::StrCat("receiving bucket ", bucket), [&] { return Taken(bucket, data, bytes, deadline); });
    if (!status.ok() || !FailpointFires("transport.corrupt_bucket")) return status;
    return CorruptByte(*device_->runtime, static_cast<char*>(data) + bytes / 2);
  }

  void Close() override {
    closed_ = true;
    MutexLock lock(&mutex_);
    if (!active_) End();  // else the thread that is inside does it
  }
  void Keep() override {
    const bool was_closed = closed_;
    Close();
    if (slot_ == nullptr || name_.empty() || was_closed || device_->stuck) return;
    slot_->Put(std::make_unique<KeptIpc>(name_, rank_, size_, owner_));
  }

 private:
  // The sender's name for itself: of a kept group, or said at the meeting of a new one.
  absl::StatusOr<std::string> Owner(const TransportGroup& group, absl::Time deadline) {
    const std::unique_ptr<KeptGroup> kept = slot_ == nullptr ? nullptr : slot_->Take(group);
    if (kept != nullptr) return static_cast<KeptIpc*>(kept.get())->owner;
    if (!group.kept.empty()) return absl::AbortedError("the kept IPC group is not here any more; form a new one");
    Meeting meeting;
    meeting.rank = rank_;
    meeting.size = size_;
    meeting.self = {ThisHost(), device_->runtime->bus_id()};
    meeting.deadline = deadline;
    meeting.cancelled = [this] { return closed_.load(); };
    return Meet(*table_, meeting, CheckOneGpu,
                [this]() -> absl::StatusOr<std::string> { return device_->incarnation; });
  }

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
    const std::optional<StagingPool::Buffer> image = device_->images.Find(data, bytes);
    const absl::Status status =
        image ? OfferImage(bucket, *image, data, bytes, deadline) : OfferSlot(bucket, data, bytes, deadline);
    if (status.ok()) untaken_.push_back(bucket);
    return status;
  }

  // Memory that stays, and in which the bytes are: it is offered itself, and nothing is copied or awaited here.
  absl::Status OfferImage(uint64_t bucket, const StagingPool::Buffer& image, const void* data, uint64_t bytes,
                          absl::Time deadline) {
    if (untaken_.size() >= kAhead) {
      const absl::Status status = AwaitTaken(untaken_[untaken_.size() - kAhead], deadline);
      if (!status.ok()) return status;
    }
    if (exported_ != image.memory) {
      absl::StatusOr<std::string> handle = device_->runtime->ExportMemory(image.memory);
      if (!handle.ok()) return handle.status();
      exported_ = image.memory;
      handle_ = *std::move(handle);
    }
    const auto offset = static_cast<uint64_t>(static_cast<const char*>(data) - static_cast<const char*>(image.memory));
    return table_->Set(BucketKey(bucket), Write({bytes, offset, image.bytes, handle_, ""}), deadline);
  }

  absl::Status OfferSlot(uint64_t bucket, const void* data, uint64_t bytes, absl::Time deadline) {
    DeviceRuntime& runtime = *device_->runtime;
    Slot& slot = slots_[bucket % kSlots];
    if (slot.bucket) {
      const absl::Status status = AwaitTaken(*slot.bucket, deadline);
      if (!status.ok()) return status;
    }
    if (slot.buffer.bytes < bytes) {
      if (slot.buffer.memory != nullptr) device_->staging.Return(slot.buffer);
      slot.buffer = {};
      absl::StatusOr<StagingPool::Buffer> larger = device_->staging.Take(bytes);
      if (!larger.ok()) return larger.status();
      slot.buffer = *larger;
    }
    slot.bucket = bucket;
    absl::Status status = runtime.Copy(slot.buffer.memory, data, bytes, stream_);
    if (status.ok()) status = runtime.Record(slot.buffer.event, stream_);
    if (!status.ok()) return status;
    absl::StatusOr<std::string> memory = runtime.ExportMemory(slot.buffer.memory);
    if (!memory.ok()) return memory.status();
    absl::StatusOr<std::string> event = runtime.ExportEvent(slot.buffer.event);
    if (!event.ok()) return event.status();
    // The receivers wait for the event themselves.
    status = table_->Set(BucketKey(bucket), Write({bytes, 0, slot.buffer.bytes, *memory, *event}), deadline);
    if (!status.ok()) return status;
    return WaitForDevice("the copy into its slot", deadline, closed_, [&] { return runtime.StreamDone(stream_); });
  }

  // This bucket and all before it.
  absl::Status AwaitTaken(uint64_t bucket, absl::Time deadline) {
    for (; !untaken_.empty() && untaken_.front() <= bucket; untaken_.pop_front()) {
      const uint64_t next = untaken_.front();
      for (int rank = 1; rank < size_; ++rank) {
        const absl::Status taken =
            table_->Get(TakenKey(next, rank), deadline, [this] { return closed_.load(); }).status();
        if (absl::IsDeadlineExceeded(taken)) {
          return absl::DeadlineExceededError(
              absl::StrCat("rank ", rank, " has not taken bucket ", next, " within the deadline; it died or stopped"));
        }
        if (!taken.ok()) return taken;
        table_->Erase(TakenKey(next, rank));
      }
      table_->Erase(BucketKey(next));
    }
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
    const absl::StatusOr<void*> memory = device_->opened.Open(HandleKind::kMemory, owner_, offer->memory, &opened_);
    if (!memory.ok()) return memory.status();
    absl::Status status;
    if (!offer->event.empty()) {
      const absl::StatusOr<void*> event = device_->opened.Open(HandleKind::kEvent, owner_, offer->event, &opened_);
      if (!event.ok()) return event.status();
      status = WaitForDevice("the sender's copy", deadline, closed_, [&] { return runtime.EventDone(*event); });
    }
    if (status.ok()) status = runtime.Copy(data, static_cast<const char*>(*memory) + offer->offset, bytes, stream_);
    if (status.ok()) {
      status = WaitForDevice("the copy of the bucket", deadline, closed_, [&] { return runtime.StreamDone(stream_); });
    }
    return status.ok() ? table_->Set(TakenKey(bucket, rank_), "", deadline) : status;
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
    device_->opened.Keep(std::move(opened_));
    opened_.clear();
    for (Slot& slot : slots_) {
      if (slot.buffer.memory != nullptr) device_->staging.Return(slot.buffer);
      slot = {};
    }
  }

  static constexpr absl::Duration kCopyLimit = absl::Seconds(2);
  struct Slot {
    StagingPool::Buffer buffer;
    std::optional<uint64_t> bucket;  // what is in it
  };

  const std::shared_ptr<CommDevice> device_;
  const std::shared_ptr<GroupTable> table_;
  const std::shared_ptr<KeptSlot> slot_;  // may be null
  std::string name_;
  int rank_ = 0;
  int size_ = 1;
  std::atomic<bool> closed_{false};
  Mutex mutex_;
  bool active_ ABSL_GUARDED_BY(mutex_) = false;
  // Of the thread that is inside, or of End when none is.
  void* stream_ = nullptr;
  Slot slots_[kSlots];              // sender, as are the next three
  std::deque<uint64_t> untaken_;    // offered buckets, ascending
  const void* exported_ = nullptr;  // the image that handle_ is of
  std::string handle_;
  std::string owner_;  // receivers
  OpenedSet opened_;
};

}  // namespace

std::unique_ptr<WeightTransport> MakeIpcTransport(std::shared_ptr<CommDevice> device, std::shared_ptr<GroupTable> table,
                                                  std::shared_ptr<KeptSlot> slot) {
  return std::make_unique<IpcTransport>(std::move(device), std::move(table), std::move(slot));
}

TransportKind IpcKind(std::shared_ptr<CommDevice> device) {
  auto slot = std::make_shared<KeptSlot>();
  return {
      [device, slot](std::shared_ptr<GroupTable> table) { return MakeIpcTransport(device, std::move(table), slot); },
      device, [slot] { return slot->Name(); }};
}

}  // namespace lockstep
