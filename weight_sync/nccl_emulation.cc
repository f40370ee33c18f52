// NCCL's part of device_emulation.h.
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <functional>
#include <map>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/check.h"
#include "engine/base/mutex.h"
#include "weight_sync/device_emulation.h"
#include "weight_sync/emulated_stream.h"

namespace lockstep {
namespace {

constexpr int kPollMilliseconds = 5;
constexpr int kSocketBytes = 16 << 10;  // small, so that a broadcast needs its receivers

struct Comm {
  int rank = 0, size = 1;
  std::shared_ptr<EmulatedFaults> faults;
  std::atomic<bool> aborted{false};
  std::atomic<bool> connected{false};
  std::atomic<bool> failed{false};
  std::atomic<int> inside{0};   // threads in calls
  std::atomic<int> running{0};  // operations on streams
  std::vector<int> sockets;     // by rank on rank 0; else [0]
  int listener = -1;
  std::thread connecting;
  // Of the thread that is inside.
  std::function<void()> to_launch;
  int polls_left = 0;
  int operations = 0;
  bool finalized = false;

  ~Comm() {
    for (const int fd : sockets) {
      if (fd >= 0) close(fd);
    }
    if (listener >= 0) close(listener);
  }
};

// Waits for the socket; false when aborted.
bool Ready(Comm& comm, int fd, short events) {
  while (!comm.aborted) {
    pollfd waiting{fd, events, 0};
    if (poll(&waiting, 1, kPollMilliseconds) <= 0) continue;
    if ((waiting.revents & events) != 0) return true;
    absl::SleepFor(absl::Milliseconds(kPollMilliseconds));  // a dead peer: no news of it
  }
  return false;
}

template <typename Move>
bool MoveAll(Comm& comm, int fd, short events, char* data, uint64_t bytes, const Move& move) {
  while (bytes > 0) {
    if (!Ready(comm, fd, events)) return false;
    const ssize_t moved = move(fd, data, bytes);
    if (moved <= 0) {
      absl::SleepFor(absl::Milliseconds(kPollMilliseconds));
      continue;
    }
    data += moved;
    bytes -= static_cast<uint64_t>(moved);
  }
  return true;
}
bool SendAll(Comm& comm, int fd, const void* data, uint64_t bytes) {
  return MoveAll(comm, fd, POLLOUT, static_cast<char*>(const_cast<void*>(data)), bytes,
                 [](int to, char* from, uint64_t n) { return send(to, from, n, MSG_NOSIGNAL | MSG_DONTWAIT); });
}
bool ReceiveAll(Comm& comm, int fd, void* data, uint64_t bytes) {
  return MoveAll(comm, fd, POLLIN, static_cast<char*>(data), bytes,
                 [](int from, char* to, uint64_t n) { return recv(from, to, n, MSG_DONTWAIT); });
}

sockaddr_un Address(const std::string& name, socklen_t* length) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, name.data(), name.size());  // abstract: no file
  *length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  return address;
}

void Adopt(Comm& comm, int rank, int fd) {
  setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kSocketBytes, sizeof(kSocketBytes));
  comm.sockets[static_cast<size_t>(rank)] = fd;
}

void ConnectRank0(Comm& comm) {
  for (int i = 1; i < comm.size; ++i) {
    if (!Ready(comm, comm.listener, POLLIN)) return;
    const int fd = accept4(comm.listener, nullptr, nullptr, SOCK_CLOEXEC);
    LOCKSTEP_CHECK(fd >= 0, "accept");
    int32_t rank = 0;
    const bool told = ReceiveAll(comm, fd, &rank, sizeof(rank));
    Adopt(comm, told ? rank : i, fd);
    if (!told) return;
  }
  for (size_t rank = 1; rank < comm.sockets.size(); ++rank) {
    if (!SendAll(comm, comm.sockets[rank], "!", 1)) return;
  }
  comm.connected = true;
}

void ConnectOther(Comm& comm, const std::string& name) {
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  Adopt(comm, 0, fd);
  socklen_t length = 0;
  const sockaddr_un address = Address(name, &length);
  while (connect(fd, reinterpret_cast<const sockaddr*>(&address), length) != 0) {
    if (comm.aborted) return;
    absl::SleepFor(absl::Milliseconds(kPollMilliseconds));
  }
  const int32_t rank = comm.rank;
  char go = 0;
  if (SendAll(comm, fd, &rank, sizeof(rank)) && ReceiveAll(comm, fd, &go, 1)) comm.connected = true;
}

// In two halves, with the faults between them. False: the operation does not end, or not well.
bool InHalves(Comm& comm, int operation, char* data, uint64_t bytes, const std::function<bool(char*, uint64_t)>& move) {
  const EmulatedFaults& faults = *comm.faults;
  if (faults.delay_ms > 0) absl::SleepFor(absl::Milliseconds(faults.delay_ms.load()));
  if (!move(data, bytes / 2)) return false;
  if (faults.error_in_operation == operation) {
    comm.failed = true;
    return false;
  }
  while (faults.silent_in_operation == operation && !comm.aborted) {
    absl::SleepFor(absl::Milliseconds(kPollMilliseconds));
  }
  return !comm.aborted && move(data + bytes / 2, bytes - bytes / 2);
}

bool MoveBroadcast(Comm& comm, char* data, uint64_t bytes) {
  if (comm.rank != 0) return ReceiveAll(comm, comm.sockets[0], data, bytes);
  for (size_t rank = 1; rank < comm.sockets.size(); ++rank) {
    if (!SendAll(comm, comm.sockets[rank], data, bytes)) return false;
  }
  return true;
}

template <typename T>
void ReduceInto(NcclReduce reduce, T* sum, const char* bytes, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    T value;
    std::memcpy(&value, bytes + i * sizeof(T), sizeof(T));
    sum[i] = reduce == NcclReduce::kSum   ? static_cast<T>(sum[i] + value)
             : reduce == NcclReduce::kMax ? std::max(sum[i], value)
                                          : std::min(sum[i], value);
  }
}

uint64_t SizeOf(NcclType type) {
  return type == NcclType::kFloat ? sizeof(float) : type == NcclType::kDouble ? sizeof(double) : 1;
}

// To rank 0, summed there in the order of ranks, and back.
bool MoveAllReduce(Comm& comm, char* data, uint64_t count, NcclType type, NcclReduce reduce) {
  const uint64_t bytes = count * SizeOf(type);
  if (comm.rank != 0) {
    return SendAll(comm, comm.sockets[0], data, bytes) && ReceiveAll(comm, comm.sockets[0], data, bytes);
  }
  std::vector<char> other(bytes);
  for (size_t rank = 1; rank < comm.sockets.size(); ++rank) {
    if (!ReceiveAll(comm, comm.sockets[rank], other.data(), bytes)) return false;
    if (type == NcclType::kFloat) ReduceInto(reduce, reinterpret_cast<float*>(data), other.data(), count);
    if (type == NcclType::kDouble) ReduceInto(reduce, reinterpret_cast<double*>(data), other.data(), count);
    if (type == NcclType::kBytes) ReduceInto(reduce, reinterpret_cast<uint8_t*>(data), other.data(), count);
  }
  return MoveBroadcast(comm, data, bytes);
}

class EmulatedNccl : public NcclApi {
 public:
  EmulatedNccl(std::shared_ptr<EmulatedFaults> faults, EnqueueOperation enqueue)
      : faults_(std::move(faults)), enqueue_(std::move(enqueue)) {}
  ~EmulatedNccl() override {
    for (const auto& [id, fd] : listeners_) close(fd);
  }

  std::string version() const override { return "emulated"; }

  absl::StatusOr<std::string> UniqueId() override {
    static std::atomic<int> number{0};
    const std::string name = absl::StrCat("lockstep-emulated-nccl-", getpid(), "-", ++number);
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t length = 0;
    const sockaddr_un address = Address(name, &length);
    LOCKSTEP_CHECK(bind(fd, reinterpret_cast<const sockaddr*>(&address), length) == 0 && listen(fd, 64) == 0, "listen");
    std::string id = name;
    id.resize(kNcclIdBytes, '\0');
    MutexLock lock(&mutex_);
    listeners_[id] = fd;
    return id;
  }

  absl::Status InitRank(void** out, int size, const std::string& id, int rank) override {
    LOCKSTEP_CHECK(id.size() == kNcclIdBytes, "an id comes whole");
    ++faults_->inits;
    auto comm = std::make_shared<Comm>();
    comm->rank = rank;
    comm->size = size;
    comm->faults = faults_;
    comm->sockets.resize(rank == 0 ? static_cast<size_t>(size) : 1, -1);
    MutexLock lock(&mutex_);
    if (rank == 0) {
      const auto listener = listeners_.find(id);
      LOCKSTEP_CHECK(listener != listeners_.end(), "rank 0 uses an id of its own, once");
      comm->listener = listener->second;
      listeners_.erase(listener);
    }
    comms_.insert(comm);
    *out = comm.get();
    if (faults_->never_connects) return absl::OkStatus();
    const std::string name = id.c_str();
    Comm* const raw = comm.get();
    comm->connecting = std::thread([raw, rank, name] { rank == 0 ? ConnectRank0(*raw) : ConnectOther(*raw, name); });
    return absl::OkStatus();
  }

  absl::StatusOr<bool> Done(void* handle) override {
    const Call call(*this, handle);
    Comm& comm = *call.comm;
    if (comm.connected && comm.to_launch == nullptr && comm.running == 0 && faults_->break_idle.exchange(false)) {
      comm.failed = true;
    }
    if (comm.failed) return absl::AbortedError("NCCL: an emulated asynchronous error");
    if (!comm.connected) return false;
    if (comm.finalized) return comm.running == 0;
    if (comm.to_launch == nullptr) return true;
    if (--comm.polls_left > 0) return false;
    comm.to_launch();
    comm.to_launch = nullptr;
    return true;
  }

  absl::Status Broadcast(void* data, uint64_t bytes, void* handle, void* stream) override {
    return Launch(handle, stream, [data, bytes](Comm& comm, int operation) {
      return InHalves(comm, operation, static_cast<char*>(data), bytes,
                      [&](char* part, uint64_t n) { return MoveBroadcast(comm, part, n); });
    });
  }
  absl::Status AllReduce(void* data, uint64_t count, NcclType type, NcclReduce reduce, void* handle,
                         void* stream) override {
    return Launch(handle, stream, [data, count, type, reduce](Comm& comm, int operation) {
      const uint64_t size = SizeOf(type), half = count / 2 * size;
      bool first = true;
      return InHalves(comm, operation, static_cast<char*>(data), count * size, [&](char*, uint64_t) {
        // Halves of elements, not of bytes.
        char* const part = static_cast<char*>(data) + (first ? 0 : half);
        const uint64_t n = first ? count / 2 : count - count / 2;
        first = false;
        return MoveAllReduce(comm, part, n, type, reduce);
      });
    });
  }

  absl::Status Finalize(void* handle) override {
    const Call call(*this, handle);
    call.comm->finalized = true;
    return absl::OkStatus();
  }
  absl::Status Destroy(void* handle) override {
    const Call call(*this, handle);
    LOCKSTEP_CHECK(call.comm->finalized && call.comm->running == 0, "Destroy comes after Finalize and Done");
    return End(call.comm);
  }
  absl::Status Abort(void* handle) override {
    const Call call(*this, handle);
    ++faults_->aborts;
    while (faults_->abort_hangs) absl::SleepFor(absl::Milliseconds(kPollMilliseconds));
    call.comm->aborted = true;
    return End(call.comm);
  }

 private:
  // Keeps the communicator for the time of a call, and the rule of one thread.
  struct Call {
    Call(EmulatedNccl& nccl, void* handle) : comm(nccl.Find(handle)) {
      LOCKSTEP_CHECK(++comm->inside == 1, "two threads are inside calls on one communicator");
      if (nccl.faults_->call_us > 0) absl::SleepFor(absl::Microseconds(nccl.faults_->call_us.load()));
    }
    ~Call() { --comm->inside; }
    const std::shared_ptr<Comm> comm;
  };

  std::shared_ptr<Comm> Find(void* handle) {
    MutexLock lock(&mutex_);
    for (const std::shared_ptr<Comm>& comm : comms_) {
      if (comm.get() == handle) return comm;
    }
    LOCKSTEP_CHECK(false, "a call on a communicator that has ended");
    return nullptr;
  }

  absl::Status Launch(void* handle, void* stream, std::function<bool(Comm&, int)> move) {
    const Call call(*this, handle);
    std::shared_ptr<Comm> comm = call.comm;
    LOCKSTEP_CHECK(comm->connected && comm->to_launch == nullptr, "an earlier call is still in progress");
    comm->polls_left = 2;
    const int operation = ++comm->operations;
    comm->to_launch = [enqueue = enqueue_, comm, stream, operation, move = std::move(move)] {
      ++comm->running;
      enqueue(stream, [comm, operation, move] {
        // A kernel whose communicator has failed does not end by itself.
        if (!move(*comm, operation)) {
          while (!comm->aborted) absl::SleepFor(absl::Milliseconds(kPollMilliseconds));
        }
        --comm->running;
      });
    };
    return absl::OkStatus();
  }

  absl::Status End(const std::shared_ptr<Comm>& comm) {
    while (comm->running > 0) absl::SleepFor(absl::Milliseconds(1));
    if (comm->connecting.joinable()) comm->connecting.join();
    comm->to_launch = nullptr;
    MutexLock lock(&mutex_);
    comms_.erase(comm);
    return absl::OkStatus();
  }

  const std::shared_ptr<EmulatedFaults> faults_;
  const EnqueueOperation enqueue_;
  Mutex mutex_;
  std::map<std::string, int> listeners_ ABSL_GUARDED_BY(mutex_);
  std::set<std::shared_ptr<Comm>> comms_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

std::shared_ptr<NcclApi> MakeEmulatedNccl(std::shared_ptr<EmulatedFaults> faults, EnqueueOperation enqueue) {
  if (enqueue == nullptr) {
    enqueue = [](void* stream, std::function<void()> operation) {
      static_cast<EmulatedStream*>(stream)->Enqueue(std::move(operation));
    };
  }
  return std::make_shared<EmulatedNccl>(std::move(faults), std::move(enqueue));
}

}  // namespace lockstep
