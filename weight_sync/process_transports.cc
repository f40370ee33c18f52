#include "weight_sync/process_transports.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
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

absl::StatusOr<Transports> ProcessTransports(const std::string& name, int process, bool on_gpu) {
  Transports transports = GlooOnly();
  const bool is_auto = name == "auto";
  if (name.empty() || name == "gloo" || (is_auto && !on_gpu)) return transports;
  if (!is_auto && name != "nccl" && name != "ipc") {
    return absl::InvalidArgumentError(
        absl::StrCat("weight_sync.transport \"", name, "\" is unknown; use one of auto, gloo, nccl, ipc"));
  }
  const absl::StatusOr<std::shared_ptr<DeviceRuntime>> runtime = MakeCudaRuntimeOfProcess(process);
  if (!runtime.ok()) return CannotHave(name, runtime.status());
  absl::StatusOr<std::shared_ptr<NcclApi>> nccl = nullptr;
  if (name != "ipc") nccl = LoadNccl();
  if (!nccl.ok()) {
    if (!is_auto) return CannotHave(name, nccl.status());
    LogInfo("weight_sync.transport auto: nccl cannot be used here: ", std::string(nccl.status().message()));
  }
  const auto device = std::make_shared<CommDevice>(*runtime, nccl.ok() ? *nccl : nullptr);
  if (name != "nccl") transports["ipc"] = IpcKind(device);
  if (device->nccl != nullptr) transports["nccl"] = NcclKind(device);
  return transports;
}

}  // namespace lockstep
