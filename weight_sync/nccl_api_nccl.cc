#include <dlfcn.h>
#include <nccl.h>
#include <nccl_home.h>

#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "weight_sync/nccl_api.h"

namespace lockstep {
namespace {

static_assert(kNcclIdBytes == NCCL_UNIQUE_ID_BYTES);

// The library's functions with the types of its header.
struct Functions {
  decltype(&ncclGetVersion) GetVersion;
  decltype(&ncclGetUniqueId) GetUniqueId;
  decltype(&ncclCommInitRankConfig) CommInitRankConfig;
  decltype(&ncclCommGetAsyncError) CommGetAsyncError;
  decltype(&ncclBroadcast) Broadcast;
  decltype(&ncclAllReduce) AllReduce;
  decltype(&ncclCommFinalize) CommFinalize;
  decltype(&ncclCommDestroy) CommDestroy;
  decltype(&ncclCommAbort) CommAbort;
  decltype(&ncclGetErrorString) GetErrorString;
  decltype(&ncclGetLastError) GetLastError;
};

template <typename Function>
bool Find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  return *function != nullptr;
}

// The first name that the library lacks; null when it has all.
const char* FindAll(void* library, Functions* f) {
  if (!Find(library, "ncclGetVersion", &f->GetVersion)) return "ncclGetVersion";
  if (!Find(library, "ncclGetUniqueId", &f->GetUniqueId)) return "ncclGetUniqueId";
  if (!Find(library, "ncclCommInitRankConfig", &f->CommInitRankConfig)) return "ncclCommInitRankConfig";
  if (!Find(library, "ncclCommGetAsyncError", &f->CommGetAsyncError)) return "ncclCommGetAsyncError";
  if (!Find(library, "ncclBroadcast", &f->Broadcast)) return "ncclBroadcast";
  if (!Find(library, "ncclAllReduce", &f->AllReduce)) return "ncclAllReduce";
  if (!Find(library, "ncclCommFinalize", &f->CommFinalize)) return "ncclCommFinalize";
  if (!Find(library, "ncclCommDestroy", &f->CommDestroy)) return "ncclCommDestroy";
  if (!Find(library, "ncclCommAbort", &f->CommAbort)) return "ncclCommAbort";
  if (!Find(library, "ncclGetErrorString", &f->GetErrorString)) return "ncclGetErrorString";
  if (!Find(library, "ncclGetLastError", &f->GetLastError)) return "ncclGetLastError";
  return nullptr;
}

std::string VersionText(int code) { return absl::StrCat(code / 10000, ".", code / 100 % 100, ".", code % 100); }

ncclComm_t Comm(void* comm) { return static_cast<ncclComm_t>(comm); }
cudaStream_t Stream(void* stream) { return static_cast<cudaStream_t>(stream); }

class Nccl : public NcclApi {
 public:
  Nccl(const Functions& functions, int version) : f_(functions), version_(version) {}

  std::string version() const override { return VersionText(version_); }

  absl::StatusOr<std::string> UniqueId() override {
    ncclUniqueId id;
    const absl::Status status = Began("ncclGetUniqueId", f_.GetUniqueId(&id), nullptr);
    if (!status.ok()) return status;
    return std::string(id.internal, sizeof(id.internal));
  }

  absl::Status InitRank(void** comm, int size, const std::string& bytes, int rank) override {
    *comm = nullptr;
    ncclUniqueId id;
    if (bytes.size() != sizeof(id.internal)) {
      return absl::InvalidArgumentError(
          absl::StrCat("a NCCL id has ", sizeof(id.internal), " bytes, not ", bytes.size()));
    }
    std::memcpy(id.internal, bytes.data(), sizeof(id.internal));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;  // the only kind that can be aborted
    ncclComm_t made = nullptr;
    const ncclResult_t result = f_.CommInitRankConfig(&made, size, id, rank, &config);
    *comm = made;
    return Began("ncclCommInitRankConfig", result, made);
  }

  absl::StatusOr<bool> Done(void* comm) override {
    ncclResult_t state = ncclSuccess;
    absl::Status status = Began("ncclCommGetAsyncError", f_.CommGetAsyncError(Comm(comm), &state), Comm(comm));
    if (!status.ok()) return status;
    status = Began("NCCL", state, Comm(comm));
    if (!status.ok()) return status;
    return state == ncclSuccess;
  }

  absl::Status Broadcast(void* data, uint64_t bytes, void* comm, void* stream) override {
    return Began("ncclBroadcast", f_.Broadcast(data, data, bytes, ncclInt8, 0, Comm(comm), Stream(stream)), Comm(comm));
  }
  absl::Status AllReduce(void* data, uint64_t count, NcclType type, NcclReduce reduce, void* comm,
                         void* stream) override {
    const ncclDataType_t nccl_type = type == NcclType::kFloat    ? ncclFloat
                                     : type == NcclType::kDouble ? ncclDouble
                                                                 : ncclUint8;
    const ncclRedOp_t nccl_reduce = reduce == NcclReduce::kSum   ? ncclSum
                                    : reduce == NcclReduce::kMax ? ncclMax
                                                                 : ncclMin;
    return Began("ncclAllReduce", f_.AllReduce(data, data, count, nccl_type, nccl_reduce, Comm(comm), Stream(stream)),
                 Comm(comm));
  }
  absl::Status Finalize(void* comm) override {
    return Began("ncclCommFinalize", f_.CommFinalize(Comm(comm)), Comm(comm));
  }
  absl::Status Destroy(void* comm) override { return Began("ncclCommDestroy", f_.CommDestroy(Comm(comm)), nullptr); }
  absl::Status Abort(void* comm) override { return Began("ncclCommAbort", f_.CommAbort(Comm(comm)), nullptr); }

 private:
  // OK also while in progress.
  absl::Status Began(const char* what, ncclResult_t result, ncclComm_t comm) const {
    if (result == ncclSuccess || result == ncclInProgress) return absl::OkStatus();
    std::string text = absl::StrCat(what, ": ", f_.GetErrorString(result));
    const char* last = comm == nullptr ? nullptr : f_.GetLastError(comm);
    if (last != nullptr && *last != '\0') absl::StrAppend(&text, " (", last, ")");
    for (char& c : text) {
      if (c == '\n' || c == '\r') c = ' ';
    }
    if (result == ncclRemoteError) return absl::AbortedError(text);
    if (result == ncclInvalidUsage || result == ncclInvalidArgument) return absl::FailedPreconditionError(text);
    return absl::InternalError(text);
  }

  const Functions f_;
  const int version_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<NcclApi>> LoadNccl() {
  std::vector<std::string> names = {"libnccl.so.2"};
  for (const char* folder : {"/lib", "/lib64", "/lib/x86_64-linux-gnu"}) {
    names.push_back(absl::StrCat(LOCKSTEP_NCCL_HOME, folder, "/libnccl.so.2"));
  }
  void* library = nullptr;
  std::string reason;
  for (const std::string& name : names) {
    library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);  // stays loaded: NCCL has threads of its own
    if (library != nullptr) break;
    if (reason.empty()) reason = dlerror();
  }
  if (library == nullptr) {
    return absl::UnavailableError(absl::StrCat("no NCCL: ", reason, "; put its folder into LD_LIBRARY_PATH"));
  }
  Functions functions;
  if (const char* missing = FindAll(library, &functions); missing != nullptr) {
    return absl::UnavailableError(absl::StrCat("no NCCL: libnccl.so.2 has no ", missing, "; it is older than 2.14"));
  }
  int version = 0;
  if (functions.GetVersion(&version) != ncclSuccess || version / 10000 != NCCL_MAJOR) {
    return absl::UnavailableError(absl::StrCat("no NCCL: libnccl.so.2 is version ", VersionText(version),
                                               ", this build needs ", NCCL_MAJOR, ".x"));
  }
  return std::make_shared<Nccl>(functions, version);
}

}  // namespace lockstep
