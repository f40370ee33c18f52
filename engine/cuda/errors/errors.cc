#include "engine/cuda/errors/errors.h"

#include <cstdlib>

#include "absl/strings/cord.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace lockstep::cuda {
namespace {

constexpr char kRecoveryPayload[] = "lockstep/device-recovery";

// What follows a sticky error. Kernels run behind the host's back, so the call that reports one is often not its cause.
constexpr char kRestart[] =
    "every further call of this process fails: restart it; if this comes back, run once with CUDA_LAUNCH_BLOCKING=1 "
    "for the place, and see the kernel log (dmesg | grep NVRM) for an Xid";
constexpr char kReset[] =
    "drain the device and reset it (nvidia-smi --gpu-reset), or reboot the machine; the kernel log (dmesg | grep NVRM) "
    "has the Xid";

struct Kind {
  cudaError_t error;
  absl::StatusCode code;
  Recovery recovery;
  const char* meaning;
  const char* advice;
};

// Errors that have one text. Driver, device count and memory have their own below.
constexpr Kind kKinds[] = {
    // The machine is not set up.
    {cudaErrorStubLibrary, absl::StatusCode::kFailedPrecondition, Recovery::kNone,
     "libcuda.so is the toolkit's stub, not a driver", "take the toolkit's stubs folder off LD_LIBRARY_PATH"},
    {cudaErrorSystemDriverMismatch, absl::StatusCode::kFailedPrecondition, Recovery::kNone,
     "the driver's library and its kernel module have different versions",
     "reboot, or reload the nvidia modules; in a container, start it anew"},
    {cudaErrorCompatNotSupportedOnDevice, absl::StatusCode::kFailedPrecondition, Recovery::kNone,
     "the forward compatibility package does not support this device",
     "remove the package (cuda-compat), or install a newer driver"},
    {cudaErrorSystemNotReady, absl::StatusCode::kFailedPrecondition, Recovery::kNone,
     "the system is not ready for CUDA", "start the driver's daemons (on NVSwitch machines nvidia-fabricmanager)"},
    {cudaErrorInitializationError, absl::StatusCode::kFailedPrecondition, Recovery::kNone,
     "driver and runtime cannot be initialized",
     "see that nvidia-smi works on this machine; a process that was forked after CUDA had begun cannot use it"},
    {cudaErrorDevicesUnavailable, absl::StatusCode::kFailedPrecondition, Recovery::kNone,
     "the device is busy or its compute mode forbids this process",
     "end its other users (nvidia-smi), or set the mode back: nvidia-smi --compute-mode=DEFAULT"},
    {cudaErrorInvalidDevice, absl::StatusCode::kInvalidArgument, Recovery::kNone, "there is no such device",
     "nvidia-smi --list-gpus lists them"},
    // The kernels do not fit the device.
    {cudaErrorNoKernelImageForDevice, absl::StatusCode::kFailedPrecondition, Recovery::kNone,
     "this build has no kernels for the device", "Lockstep needs compute capability 8.0 (Ampere) or newer"},
    {cudaErrorInvalidDeviceFunction, absl::StatusCode::kFailedPrecondition, Recovery::kNone,
     "this build has no such kernel for the device", "Lockstep needs compute capability 8.0 (Ampere) or newer"},
    {cudaErrorUnsupportedPtxVersion, absl::StatusCode::kFailedPrecondition, Recovery::kNone,
     "the driver cannot compile this build's PTX for the device", "install a driver as new as the CUDA runtime"},
    {cudaErrorJitCompilerNotFound, absl::StatusCode::kFailedPrecondition, Recovery::kNone,
     "the driver's PTX compiler is missing", "install libnvidia-ptxjitcompiler with the driver"},
    // The context is lost, the device is not.
    {cudaErrorIllegalAddress, absl::StatusCode::kInternal, Recovery::kRestartProcess,
     "a kernel accessed an illegal address", kRestart},
    {cudaErrorLaunchTimeout, absl::StatusCode::kInternal, Recovery::kRestartProcess, "a kernel ran into a time limit",
     kRestart},
    {cudaErrorAssert, absl::StatusCode::kInternal, Recovery::kRestartProcess, "an assertion failed in a kernel",
     kRestart},
    {cudaErrorHardwareStackError, absl::StatusCode::kInternal, Recovery::kRestartProcess,
     "a kernel's call stack is corrupt", kRestart},
    {cudaErrorIllegalInstruction, absl::StatusCode::kInternal, Recovery::kRestartProcess,
     "a kernel ran an illegal instruction", kRestart},
    {cudaErrorMisalignedAddress, absl::StatusCode::kInternal, Recovery::kRestartProcess,
     "a kernel accessed a misaligned address", kRestart},
    {cudaErrorInvalidAddressSpace, absl::StatusCode::kInternal, Recovery::kRestartProcess,
     "a kernel accessed a wrong address space", kRestart},
    {cudaErrorInvalidPc, absl::StatusCode::kInternal, Recovery::kRestartProcess, "a kernel jumped to nowhere",
     kRestart},
    {cudaErrorLaunchFailure, absl::StatusCode::kInternal, Recovery::kRestartProcess, "a kernel failed", kRestart},
    {cudaErrorTensorMemoryLeak, absl::StatusCode::kInternal, Recovery::kRestartProcess, "a kernel kept tensor memory",
     kRestart},
    {cudaErrorContextIsDestroyed, absl::StatusCode::kInternal, Recovery::kRestartProcess,
     "the process has lost its context", kRestart},
    {cudaErrorExternalDevice, absl::StatusCode::kInternal, Recovery::kRestartProcess,
     "a device that this one waited for has failed", kRestart},
    {cudaErrorMpsClientTerminated, absl::StatusCode::kInternal, Recovery::kRestartProcess,
     "the MPS server has ended this client", kRestart},
    {cudaErrorContained, absl::StatusCode::kInternal, Recovery::kRestartProcess,
     "a memory or NVLink error was contained (Xid 94)", kRestart},
    // The device itself.
    {cudaErrorECCUncorrectable, absl::StatusCode::kInternal, Recovery::kResetDevice,
     "an uncorrectable ECC error: what the device held is not to be trusted (Xid 48, 95)", kReset},
    {cudaErrorNvlinkUncorrectable, absl::StatusCode::kInternal, Recovery::kResetDevice,
     "an uncorrectable NVLink error (Xid 74)", kReset},
    {cudaErrorUnknown, absl::StatusCode::kInternal, Recovery::kResetDevice,
     "the driver does not know what happened; a device that has fallen off the bus (Xid 79) or whose firmware hangs "
     "(Xid 119) says this",
     kReset},
};

const Kind* FindKind(cudaError_t error) {
  for (const Kind& kind : kKinds) {
    if (kind.error == error) return &kind;
  }
  return nullptr;
}

// The first driver branch of a CUDA major version; later ones run all minor versions of it.
int DriverBranch(int runtime_version) {
  const int major = runtime_version / 1000;
  if (major >= 13) return major == 13 ? 580 : 0;
  return major == 12 ? 525 : 0;
}

absl::Status DriverStatus(const std::string& attempted, const std::string& name) {
  int driver = 0, runtime = 0;
  static_cast<void>(cudaDriverGetVersion(&driver));
  static_cast<void>(cudaRuntimeGetVersion(&runtime));
  // A driver of the runtime's own major version is new enough for most calls; then only the version itself helps.
  const int branch = driver / 1000 == runtime / 1000 ? 0 : DriverBranch(runtime);
  const std::string needed = branch == 0 ? absl::StrCat("an NVIDIA driver for CUDA ", VersionText(runtime), " or newer")
                                         : absl::StrCat("NVIDIA driver ", branch, " or newer");
  if (driver == 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        attempted, ": no NVIDIA driver (", name, "); install ", needed,
        " (in a container: run it with the NVIDIA container toolkit, --gpus all), or use the CPU backend"));
  }
  return absl::FailedPreconditionError(
      absl::StrCat(attempted, ": the NVIDIA driver supports CUDA ", VersionText(driver), ", this build's runtime is ",
                   VersionText(runtime), " (", name, "); install ", needed, ", or build with a toolkit of CUDA ",
                   VersionText(driver), " (CUDA_HOME)"));
}

absl::Status NoDeviceStatus(const std::string& attempted, const std::string& name) {
  return absl::FailedPreconditionError(absl::StrCat(
      attempted, ": the driver sees no device (", name, VisibleDevicesText(),
      "); see nvidia-smi --list-gpus (in a container: --gpus all), and dmesg | grep NVRM for a device that has fallen "
      "off the bus (Xid 79)"));
}

absl::Status MemoryStatus(const std::string& attempted, const std::string& name, size_t bytes) {
  size_t free_bytes = 0, total_bytes = 0;
  std::string there;
  if (cudaMemGetInfo(&free_bytes, &total_bytes) == cudaSuccess) {
    there = absl::StrCat(", ", SizeText(free_bytes), " of ", SizeText(total_bytes), " are free");
  }
  const std::string asked = bytes == 0 ? "" : absl::StrCat(" ", SizeText(bytes), " do not fit");
  return absl::ResourceExhaustedError(
      absl::StrCat(attempted, ": out of memory:", asked.empty() ? " nothing fits" : asked, there, " (", name,
                   "); end other users of the device (nvidia-smi), or make model, batch or KV cache smaller"));
}

}  // namespace

Recovery RecoveryOf(cudaError_t error) {
  const Kind* kind = FindKind(error);
  return kind == nullptr ? Recovery::kNone : kind->recovery;
}

Recovery RecoveryOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kRecoveryPayload);
  if (!payload.has_value()) return Recovery::kNone;
  return *payload == "reset" ? Recovery::kResetDevice : Recovery::kRestartProcess;
}

int ExitCodeOf(const absl::Status& status, int otherwise) {
  switch (RecoveryOf(status)) {
    case Recovery::kNone:
      break;
    case Recovery::kRestartProcess:
      return kExitRestartProcess;
    case Recovery::kResetDevice:
      return kExitResetDevice;
  }
  return otherwise;
}

absl::Status DeviceStatus(cudaError_t error, const Attempt& attempt) {
  if (error == cudaSuccess) return absl::OkStatus();
  static_cast<void>(cudaGetLastError());
  int device = attempt.device;
  if (device == kCurrentDevice && cudaGetDevice(&device) != cudaSuccess) device = kCurrentDevice;
  const std::string attempted =
      device == kCurrentDevice ? std::string(attempt.what) : absl::StrCat(attempt.what, " on CUDA device ", device);
  const std::string name = cudaGetErrorName(error);
  if (error == cudaErrorInsufficientDriver || error == cudaErrorCallRequiresNewerDriver) {
    return DriverStatus(std::string(attempt.what), name);
  }
  if (error == cudaErrorNoDevice) return NoDeviceStatus(std::string(attempt.what), name);
  if (error == cudaErrorMemoryAllocation) return MemoryStatus(attempted, name, attempt.bytes);
  const Kind* kind = FindKind(error);
  if (kind == nullptr) {
    return absl::InternalError(absl::StrCat(attempted, ": ", cudaGetErrorString(error), " (", name, ")"));
  }
  absl::Status status(kind->code,
                      absl::StrCat(attempted, ": ", kind->meaning, " (", name,
                                   error == cudaErrorInvalidDevice ? VisibleDevicesText() : "", "); ", kind->advice));
  if (kind->recovery != Recovery::kNone) {
    status.SetPayload(kRecoveryPayload, absl::Cord(kind->recovery == Recovery::kResetDevice ? "reset" : "restart"));
  }
  return status;
}

std::string VersionText(int version) {
  return version == 0 ? "none" : absl::StrCat(version / 1000, ".", version % 1000 / 10);
}

std::string SizeText(size_t bytes) {
  constexpr size_t kMiB = size_t{1} << 20, kGiB = size_t{1} << 30;
  if (bytes >= kGiB) return absl::StrFormat("%.1f GiB", static_cast<double>(bytes) / static_cast<double>(kGiB));
  return absl::StrCat(bytes / kMiB + (bytes % kMiB == 0 ? 0 : 1), " MiB");
}

std::string VisibleDevicesText() {
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  if (visible == nullptr) return "";
  return absl::StrCat(", CUDA_VISIBLE_DEVICES is '", absl::CHexEscape(absl::string_view(visible).substr(0, 64)), "'");
}

}  // namespace lockstep::cuda
