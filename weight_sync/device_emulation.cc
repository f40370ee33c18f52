// Memory, streams and events. NCCL is in nccl_emulation.cc.
#include "weight_sync/device_emulation.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/base/digest.h"
#include "engine/base/mutex.h"
#include "weight_sync/emulated_stream.h"

namespace lockstep {
namespace {

// Memory that several processes can map.
struct Mapping {
  int fd = -1;  // -1: opened from another's handle
  uint64_t bytes = 0;
};

// In a mapping of its own.
struct EventPage {
  std::atomic<uint64_t> recorded;
  std::atomic<uint64_t> done;
};

class EmulatedRuntime : public DeviceRuntime {
 public:
  explicit EmulatedRuntime(std::string bus_id) : bus_id_(std::move(bus_id)) {}
  ~EmulatedRuntime() override {
    MutexLock lock(&mutex_);
    for (const auto& [address, mapping] : mappings_) Unmap(address, mapping);
  }

  absl::Status Bind() override { return absl::OkStatus(); }
  std::string bus_id() const override { return bus_id_; }

  absl::StatusOr<void*> Allocate(uint64_t bytes) override {
    const int fd = memfd_create("lockstep-emulated-device", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, static_cast<off_t>(bytes)) != 0) {
      if (fd >= 0) close(fd);
      return absl::ResourceExhaustedError(absl::StrCat("emulated allocation of ", bytes, " bytes"));
    }
    return Map(fd, {fd, bytes});
  }
  void Free(void* memory) override {
    MutexLock lock(&mutex_);
    const auto found = mappings_.find(memory);
    LOCKSTEP_CHECK(found != mappings_.end(), "only what was allocated or opened is freed");
    Unmap(found->first, found->second);
    mappings_.erase(found);
  }
  bool IsDeviceMemory(const void* memory) const override {
    MutexLock lock(&mutex_);
    auto after = mappings_.upper_bound(const_cast<void*>(memory));
    if (after == mappings_.begin()) return false;
    --after;
    return static_cast<const char*>(memory) < static_cast<const char*>(after->first) + after->second.bytes;
  }

  absl::StatusOr<void*> MakeStream() override { return static_cast<void*>(new EmulatedStream); }
  void FreeStream(void* stream) override { delete static_cast<EmulatedStream*>(stream); }
  absl::Status Copy(void* to, const void* from, uint64_t bytes, void* stream) override {
    auto* const queue = static_cast<EmulatedStream*>(stream);
    LOCKSTEP_CHECK((IsDeviceMemory(to) && IsDeviceMemory(from)) || queue->idle(),
                   "a copy with memory of the host would wait for what the stream holds");
    queue->Enqueue([to, from, bytes] { std::memcpy(to, from, bytes); });
    return absl::OkStatus();
  }
  absl::Status DigestsOfBlocks(const void* data, uint64_t bytes, uint64_t* digests, void* stream) override {
    LOCKSTEP_CHECK(IsDeviceMemory(data) && IsDeviceMemory(digests), "a kernel works on memory of the device");
    static_cast<EmulatedStream*>(stream)->Enqueue(
        [data, bytes, digests] { lockstep::DigestsOfBlocks(data, bytes, digests); });
    return absl::OkStatus();
  }
  absl::StatusOr<bool> StreamDone(void* stream) override { return static_cast<EmulatedStream*>(stream)->idle(); }

  absl::StatusOr<void*> MakeEvent() override { return Allocate(sizeof(EventPage)); }
  void FreeEvent(void* event) override { Free(event); }
  absl::Status Record(void* event, void* stream) override {
    auto* const page = static_cast<EventPage*>(event);
    const uint64_t number = ++page->recorded;
    static_cast<EmulatedStream*>(stream)->Enqueue([page, number] { page->done = number; });
    return absl::OkStatus();
  }
  absl::StatusOr<bool> EventDone(void* event) override {
    const auto* const page = static_cast<const EventPage*>(event);
    return page->done == page->recorded;
  }

  absl::StatusOr<std::string> ExportMemory(void* memory) override {
    MutexLock lock(&mutex_);
    const auto found = mappings_.find(memory);
    LOCKSTEP_CHECK(found != mappings_.end() && found->second.fd >= 0, "only an own allocation is exported");
    return absl::StrCat(getpid(), " ", found->second.fd, " ", found->second.bytes);
  }
  absl::StatusOr<std::string> ExportEvent(void* event) override { return ExportMemory(event); }
  absl::StatusOr<void*> OpenMemory(const std::string& handle) override {
    int pid = 0, number = 0;
    unsigned long long bytes = 0;
    if (std::sscanf(handle.c_str(), "%d %d %llu", &pid, &number, &bytes) != 3) {
      return absl::InvalidArgumentError("an emulated handle is not one");
    }
    const int fd = open(absl::StrCat("/proc/", pid, "/fd/", number).c_str(), O_RDWR | O_CLOEXEC);
    if (fd < 0) return absl::InternalError("the process that exported the memory is gone");
    absl::StatusOr<void*> memory = Map(fd, {-1, bytes});
    close(fd);
    return memory;
  }
  void CloseMemory(void* memory) override { Free(memory); }
  absl::StatusOr<void*> OpenEvent(const std::string& handle) override { return OpenMemory(handle); }

 private:
  absl::StatusOr<void*> Map(int fd, const Mapping& mapping) {
    void* const memory = mmap(nullptr, mapping.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) return absl::ResourceExhaustedError("emulated memory cannot be mapped");
    MutexLock lock(&mutex_);
    mappings_[memory] = mapping;
    return memory;
  }
  static void Unmap(void* address, const Mapping& mapping) {
    munmap(address, mapping.bytes);
    if (mapping.fd >= 0) close(mapping.fd);
  }

  const std::string bus_id_;
  mutable Mutex mutex_;
  std::map<void*, Mapping> mappings_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

std::shared_ptr<DeviceRuntime> MakeEmulatedRuntime(const std::string& bus_id) {
  return std::make_shared<EmulatedRuntime>(bus_id);
}

std::shared_ptr<CommDevice> MakeEmulatedDevice(const std::string& bus_id, std::shared_ptr<EmulatedFaults> faults) {
  return std::make_shared<CommDevice>(MakeEmulatedRuntime(bus_id), MakeEmulatedNccl(std::move(faults)));
}

}  // namespace lockstep
