#include "weight_sync/process_transports.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "weight_sync/comm_device.h"
#include "weight_sync/transport_ipc.h"
#include "weight_sync/transport_nccl.h"

namespace lockstep {
namespace {

absl::Status CannotHave(const std::string& name, const absl::Status& why) {
  return absl::UnavailableError(absl::StrCat("weight_sync.transport \"", name, "\" cannot be used here: ",
                                             std::string(why.message()), "; or set it to \"gloo\""));
}

}  // namespace

absl::StatusOr<Transports> ProcessTransports(const std::string& name, int process) {
  Transports transports = GlooOnly();
  if (name.empty() || name == "gloo") return transports;
  if (name != "nccl" && name != "ipc") {
    return absl::InvalidArgumentError(
        absl::StrCat("weight_sync.transport \"", name, "\" is unknown; use one of gloo, nccl, ipc"));
  }
  const absl::StatusOr<std::shared_ptr<DeviceRuntime>> runtime = MakeCudaRuntimeOfProcess(process);
  if (!runtime.ok()) return CannotHave(name, runtime.status());
  if (name == "ipc") {
    transports["ipc"] = IpcKind(std::make_shared<CommDevice>(*runtime, nullptr));
    return transports;
  }
  absl::StatusOr<std::shared_ptr<NcclApi>> nccl = LoadNccl();
  if (!nccl.ok()) return CannotHave(name, nccl.status());
  transports["nccl"] = NcclKind(std::make_shared<CommDevice>(*runtime, *nccl));
  return transports;
}

}  // namespace lockstep
