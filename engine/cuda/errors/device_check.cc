#include "engine/cuda/errors/device_check.h"

#include <cuda_runtime.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/cuda/errors/errors.h"

namespace lockstep::cuda {
namespace {

absl::Status CheckOrdinal(int device, int count) {
  if (device >= 0 && device < count) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "CUDA device ", device, " does not exist: there ",
      count == 1 ? "is 1 device, 0" : absl::StrCat("are ", count, " devices, 0 to ", count - 1), VisibleDevicesText(),
      "; a device that has fallen off the bus is not counted (dmesg | grep NVRM: Xid 79)"));
}

absl::Status CheckCapability(const DeviceInfo& info) {
  if (info.capability >= kCapabilityMin) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("CUDA device ", info.device, " (", info.name, ") has compute capability ", info.capability / 10, ".",
                   info.capability % 10, ": Lockstep needs ", kCapabilityMin / 10, ".", kCapabilityMin % 10,
                   " (Ampere) or newer; use another device, or the CPU backend"));
}

absl::Status CheckMemory(const DeviceInfo& info, const DeviceNeeds& needs) {
  if (needs.bytes <= info.free_bytes) return absl::OkStatus();
  const char* advice = needs.bytes > info.total_bytes
                           ? "the device is too small: use a larger one, or make model, batch or KV cache smaller"
                           : "end its other users (nvidia-smi), or make model, batch or KV cache smaller";
  return absl::ResourceExhaustedError(absl::StrCat(
      "CUDA device ", info.device, " (", info.name, "): ", SizeText(needs.bytes), " needed for ", needs.purpose, ", ",
      SizeText(info.free_bytes), " of ", SizeText(info.total_bytes), " are free; ", advice));
}

}  // namespace

std::string DeviceInfo::Text() const {
  return absl::StrCat("CUDA device ", device, " of ", count, ": ", name, ", sm_", capability, ", ",
                      SizeText(free_bytes), " of ", SizeText(total_bytes), " free, driver CUDA ",
                      VersionText(driver_version), ", runtime ", VersionText(runtime_version));
}

absl::StatusOr<DeviceInfo> DeviceCheck(const DeviceNeeds& needs) {
  DeviceInfo info;
  info.device = needs.device;
  cudaError_t error = cudaGetDeviceCount(&info.count);
  if (error == cudaSuccess && info.count == 0) error = cudaErrorNoDevice;
  if (error != cudaSuccess) return DeviceStatus(error, {"looking for CUDA devices", needs.device});
  if (absl::Status status = CheckOrdinal(needs.device, info.count); !status.ok()) return status;
  static_cast<void>(cudaDriverGetVersion(&info.driver_version));
  static_cast<void>(cudaRuntimeGetVersion(&info.runtime_version));

  cudaDeviceProp properties = {};
  error = cudaGetDeviceProperties(&properties, needs.device);
  if (error != cudaSuccess) return DeviceStatus(error, {"reading the properties", needs.device});
  info.name = properties.name;
  info.capability = 10 * properties.major + properties.minor;
  if (absl::Status status = CheckCapability(info); !status.ok()) return status;

  error = cudaSetDevice(needs.device);
  if (error != cudaSuccess) return DeviceStatus(error, {"starting", needs.device});
  error = cudaMemGetInfo(&info.free_bytes, &info.total_bytes);
  if (error != cudaSuccess) return DeviceStatus(error, {"reading the free memory", needs.device});
  if (absl::Status status = CheckMemory(info, needs); !status.ok()) return status;
  return info;
}

int DeviceOfProcess(int process) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return process % count;
  static_cast<void>(cudaGetLastError());  // DeviceCheck meets it again
  return 0;
}

}  // namespace lockstep::cuda
