#include "engine/cuda/errors/errors.h"

#include <cstdlib>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "engine/kernels/cuda/emulation/runtime.h"
#include "gtest/gtest.h"

namespace lockstep::cuda {
namespace {

class ErrorsTest : public testing::Test {
 protected:
  void SetUp() override { unsetenv("CUDA_VISIBLE_DEVICES"); }
  void TearDown() override {
    emulation::TheDevices() = {};
    emulation::SetMemoryLimit(std::numeric_limits<size_t>::max());
    unsetenv("CUDA_VISIBLE_DEVICES");
    EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
  }
};

// The error's text: one line that has all of `parts`.
void ExpectStatus(const absl::Status& status, absl::StatusCode code, const std::vector<std::string>& parts) {
  EXPECT_EQ(status.code(), code) << status;
  const std::string text(status.message());
  EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  for (const std::string& part : parts)
    EXPECT_NE(text.find(part), std::string::npos) << "no '" << part << "': " << text;
}

TEST_F(ErrorsTest, SuccessIsOk) { EXPECT_TRUE(DeviceStatus(cudaSuccess, {"copying", 0}).ok()); }

TEST_F(ErrorsTest, NoDriverSaysWhatToInstall) {
  emulation::TheDevices().driver_version = 0;
  ExpectStatus(DeviceStatus(cudaErrorInsufficientDriver, {"looking for CUDA devices", 0}),
               absl::StatusCode::kFailedPrecondition,
               {"looking for CUDA devices: no NVIDIA driver", "install NVIDIA driver 580 or newer", "container"});
  emulation::TheDevices().runtime_version = 14020;  // whose driver branch nobody knows yet
  ExpectStatus(DeviceStatus(cudaErrorInsufficientDriver, {"looking", 0}), absl::StatusCode::kFailedPrecondition,
               {"install an NVIDIA driver for CUDA 14.2 or newer"});
}

TEST_F(ErrorsTest, AnOldDriverAndTheRuntimeAreNamed) {
  emulation::TheDevices().driver_version = 12040;
  const absl::Status status = DeviceStatus(cudaErrorInsufficientDriver, {"looking for CUDA devices", 0});
  ExpectStatus(status, absl::StatusCode::kFailedPrecondition,
               {"driver supports CUDA 12.4", "this build's runtime is 13.0", "cudaErrorInsufficientDriver",
                "install NVIDIA driver 580 or newer, or build with a toolkit of CUDA 12.4"});
  EXPECT_EQ(RecoveryOf(status), Recovery::kNone);
  emulation::TheDevices() = {};
  emulation::TheDevices().driver_version = 11080;
  emulation::TheDevices().runtime_version = 12090;
  ExpectStatus(DeviceStatus(cudaErrorInsufficientDriver, {"looking", 0}), absl::StatusCode::kFailedPrecondition,
               {"driver supports CUDA 11.8", "runtime is 12.9", "install NVIDIA driver 525 or newer"});
}

TEST_F(ErrorsTest, ADriverOfTheSameMajorVersionThatLacksACallIsTooOldByItsMinorOne) {
  emulation::TheDevices().runtime_version = 13020;
  ExpectStatus(DeviceStatus(cudaErrorCallRequiresNewerDriver, {"starting a kernel", 0}),
               absl::StatusCode::kFailedPrecondition,
               {"driver supports CUDA 13.0", "runtime is 13.2", "install an NVIDIA driver for CUDA 13.2 or newer",
                "cudaErrorCallRequiresNewerDriver"});
}

TEST_F(ErrorsTest, NoDeviceNamesTheVariableThatHidesThem) {
  ExpectStatus(DeviceStatus(cudaErrorNoDevice, {"looking for CUDA devices", 0}), absl::StatusCode::kFailedPrecondition,
               {"the driver sees no device (cudaErrorNoDevice)", "nvidia-smi --list-gpus", "Xid 79"});
  setenv("CUDA_VISIBLE_DEVICES", "7\n", 1);  // foreign text stays on the line
  ExpectStatus(DeviceStatus(cudaErrorNoDevice, {"looking for CUDA devices", 0}), absl::StatusCode::kFailedPrecondition,
               {"(cudaErrorNoDevice, CUDA_VISIBLE_DEVICES is '7\\n')"});
  ExpectStatus(DeviceStatus(cudaErrorInvalidDevice, {"starting", 3}), absl::StatusCode::kInvalidArgument,
               {"starting on CUDA device 3: there is no such device", "CUDA_VISIBLE_DEVICES is '7\\n'"});
}

TEST_F(ErrorsTest, OutOfMemorySaysWhatWasAskedForAndWhatIsFree) {
  emulation::SetMemoryLimit(size_t{80} << 30);
  emulation::TheDevices().bytes_of_others = size_t{77} << 30;
  const absl::Status status =
      DeviceStatus(cudaErrorMemoryAllocation, {"allocating the KV cache", 0, (size_t{40} << 30) + (size_t{1} << 29)});
  ExpectStatus(status, absl::StatusCode::kResourceExhausted,
               {"allocating the KV cache on CUDA device 0: out of memory: 40.5 GiB do not fit, 3.0 GiB of 80.0 GiB are "
                "free (cudaErrorMemoryAllocation)",
                "nvidia-smi"});
  EXPECT_EQ(RecoveryOf(status), Recovery::kNone);
  ExpectStatus(DeviceStatus(cudaErrorMemoryAllocation, {"starting a graph", 0}), absl::StatusCode::kResourceExhausted,
               {"out of memory: nothing fits, 3.0 GiB of 80.0 GiB are free"});
  emulation::TheDevices().mem_get_info = cudaErrorIllegalAddress;
  const std::string text(DeviceStatus(cudaErrorMemoryAllocation, {"allocating", 0, 1}).message());
  EXPECT_NE(text.find("out of memory: 1 MiB do not fit (cudaErrorMemoryAllocation)"), std::string::npos) << text;
}

struct Case {
  cudaError_t error;
  absl::StatusCode code;
  Recovery recovery;
  const char* part;
};

TEST_F(ErrorsTest, EveryKnownErrorHasItsTextCodeAndRecovery) {
  constexpr auto kFailedPrecondition = absl::StatusCode::kFailedPrecondition;
  constexpr auto kInternal = absl::StatusCode::kInternal;
  constexpr auto kNone = Recovery::kNone, kRestart = Recovery::kRestartProcess, kReset = Recovery::kResetDevice;
  const Case cases[] = {
      {cudaErrorStubLibrary, kFailedPrecondition, kNone, "LD_LIBRARY_PATH"},
      {cudaErrorSystemDriverMismatch, kFailedPrecondition, kNone, "reboot, or reload the nvidia modules"},
      {cudaErrorCompatNotSupportedOnDevice, kFailedPrecondition, kNone, "cuda-compat"},
      {cudaErrorSystemNotReady, kFailedPrecondition, kNone, "nvidia-fabricmanager"},
      {cudaErrorInitializationError, kFailedPrecondition, kNone, "forked"},
      {cudaErrorDevicesUnavailable, kFailedPrecondition, kNone, "--compute-mode=DEFAULT"},
      {cudaErrorNoKernelImageForDevice, kFailedPrecondition, kNone, "compute capability 8.0"},
      {cudaErrorInvalidDeviceFunction, kFailedPrecondition, kNone, "compute capability 8.0"},
      {cudaErrorUnsupportedPtxVersion, kFailedPrecondition, kNone, "PTX"},
      {cudaErrorJitCompilerNotFound, kFailedPrecondition, kNone, "libnvidia-ptxjitcompiler"},
      {cudaErrorIllegalAddress, kInternal, kRestart, "illegal address"},
      {cudaErrorLaunchTimeout, kInternal, kRestart, "time limit"},
      {cudaErrorAssert, kInternal, kRestart, "assertion"},
      {cudaErrorHardwareStackError, kInternal, kRestart, "call stack"},
      {cudaErrorIllegalInstruction, kInternal, kRestart, "illegal instruction"},
      {cudaErrorMisalignedAddress, kInternal, kRestart, "misaligned"},
      {cudaErrorInvalidAddressSpace, kInternal, kRestart, "address space"},
      {cudaErrorInvalidPc, kInternal, kRestart, "jumped to nowhere"},
      {cudaErrorLaunchFailure, kInternal, kRestart, "a kernel failed"},
      {cudaErrorTensorMemoryLeak, kInternal, kRestart, "tensor memory"},
      {cudaErrorContextIsDestroyed, kInternal, kRestart, "lost its context"},
      {cudaErrorExternalDevice, kInternal, kRestart, "a device that this one waited for"},
      {cudaErrorMpsClientTerminated, kInternal, kRestart, "MPS"},
      {cudaErrorContained, kInternal, kRestart, "Xid 94"},
      {cudaErrorECCUncorrectable, kInternal, kReset, "Xid 48, 95"},
      {cudaErrorNvlinkUncorrectable, kInternal, kReset, "Xid 74"},
      {cudaErrorUnknown, kInternal, kReset, "fallen off the bus (Xid 79)"},
  };
  for (const Case& c : cases) {
    const std::string name = cudaGetErrorName(c.error);
    const absl::Status status = DeviceStatus(c.error, {"waiting for the step", 2});
    SCOPED_TRACE(name);
    ExpectStatus(status, c.code, {"waiting for the step on CUDA device 2: ", "(" + name + "); ", c.part});
    EXPECT_EQ(RecoveryOf(c.error), c.recovery);
    EXPECT_EQ(RecoveryOf(status), c.recovery);
    const absl::Status copy = status;
    EXPECT_EQ(RecoveryOf(copy), c.recovery);
    const int exit_code = c.recovery == kNone ? 2 : c.recovery == kRestart ? 75 : 69;
    EXPECT_EQ(ExitCodeOf(status, 2), exit_code);
    if (c.recovery == kRestart) ExpectStatus(status, c.code, {"restart it", "CUDA_LAUNCH_BLOCKING=1"});
    if (c.recovery == kReset) ExpectStatus(status, c.code, {"drain the device and reset it"});
  }
}

TEST_F(ErrorsTest, AnyOtherErrorHasTheRuntimesText) {
  const absl::Status status = DeviceStatus(cudaErrorInvalidValue, {"copying to the device", 0});
  ExpectStatus(status, absl::StatusCode::kInternal,
               {"copying to the device on CUDA device 0: ", cudaGetErrorString(cudaErrorInvalidValue),
                "(cudaErrorInvalidValue)"});
  EXPECT_EQ(RecoveryOf(status), Recovery::kNone);
  EXPECT_EQ(RecoveryOf(cudaErrorInvalidValue), Recovery::kNone);
  EXPECT_EQ(RecoveryOf(absl::OkStatus()), Recovery::kNone);
  EXPECT_EQ(RecoveryOf(absl::InternalError("of another file")), Recovery::kNone);
}

TEST_F(ErrorsTest, WithoutAnOrdinalItIsTheThreadsDevice) {
  emulation::TheDevices().count = 4;
  ASSERT_EQ(cudaSetDevice(3), cudaSuccess);
  ExpectStatus(DeviceStatus(cudaErrorIllegalAddress, {"waiting"}), absl::StatusCode::kInternal,
               {"waiting on CUDA device 3: "});
  emulation::TheDevices().get_device = cudaErrorInsufficientDriver;
  ExpectStatus(DeviceStatus(cudaErrorIllegalAddress, {"waiting"}), absl::StatusCode::kInternal,
               {"waiting: a kernel accessed"});
}

TEST_F(ErrorsTest, AStickyErrorOfTheDeviceKeepsItsClassThroughTheEmulatedRuntime) {
  void* to = nullptr;
  ASSERT_EQ(cudaMalloc(&to, 8), cudaSuccess);
  emulation::FailWork(0, cudaErrorECCUncorrectable);
  const char from[8] = {};
  const absl::Status first = DeviceStatus(cudaMemcpy(to, from, 8, cudaMemcpyHostToDevice), {"copying", 0});
  const absl::Status second = DeviceStatus(cudaDeviceSynchronize(), {"waiting", 0});
  emulation::FailWork(0, cudaSuccess);
  EXPECT_EQ(cudaFree(to), cudaSuccess);
  EXPECT_EQ(RecoveryOf(first), Recovery::kResetDevice);
  EXPECT_EQ(RecoveryOf(second), Recovery::kResetDevice);
}

TEST_F(ErrorsTest, SizesAndVersionsReadWell) {
  EXPECT_EQ(SizeText(0), "0 MiB");
  EXPECT_EQ(SizeText(1), "1 MiB");
  EXPECT_EQ(SizeText(size_t{12} << 20), "12 MiB");
  EXPECT_EQ(SizeText(size_t{3} << 29), "1.5 GiB");
  EXPECT_EQ(VersionText(0), "none");
  EXPECT_EQ(VersionText(12080), "12.8");
}

}  // namespace
}  // namespace lockstep::cuda
