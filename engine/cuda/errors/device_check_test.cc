#include "engine/cuda/errors/device_check.h"

#include <cuda_runtime.h>

#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "engine/cuda/errors/errors.h"
#include "engine/kernels/cuda/emulation/runtime.h"
#include "gtest/gtest.h"

namespace lockstep::cuda {
namespace {

constexpr size_t kGiB = size_t{1} << 30;

class DeviceCheckTest : public testing::Test {
 protected:
  void SetUp() override {
    unsetenv("CUDA_VISIBLE_DEVICES");
    emulation::SetMemoryLimit(80 * kGiB);
    devices_.count = 2;
    devices_.name = "NVIDIA H100 80GB HBM3";
  }
  void TearDown() override {
    devices_ = {};
    emulation::SetMemoryLimit(std::numeric_limits<size_t>::max());
    unsetenv("CUDA_VISIBLE_DEVICES");
    EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
  }

  // The check's error, one line that has all of `parts`.
  static void ExpectError(const DeviceNeeds& needs, absl::StatusCode code, const std::vector<std::string>& parts) {
    const auto info = DeviceCheck(needs);
    EXPECT_EQ(info.status().code(), code) << info.status();
    const std::string text(info.status().message());
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    for (const std::string& part : parts) {
      EXPECT_NE(text.find(part), std::string::npos) << "no '" << part << "': " << text;
    }
  }

  emulation::Devices& devices_ = emulation::TheDevices();
};

TEST_F(DeviceCheckTest, AGoodDeviceIsDescribedAndSet) {
  devices_.bytes_of_others = kGiB;
  devices_.driver_version = 13010;
  const auto info = DeviceCheck({1, 79 * kGiB, "weights"});
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->Text(),
            "CUDA device 1 of 2: NVIDIA H100 80GB HBM3, sm_90, 79.0 GiB of 80.0 GiB free, driver CUDA 13.1, runtime "
            "13.0");
  EXPECT_EQ(info->free_bytes, 79 * kGiB);
  EXPECT_EQ(info->total_bytes, 80 * kGiB);
  int device = -1;
  ASSERT_EQ(cudaGetDevice(&device), cudaSuccess);
  EXPECT_EQ(device, 1);
}

TEST_F(DeviceCheckTest, TheSmallestCapabilityIsTakenAndOneBelowIsNot) {
  devices_.major = 8;
  devices_.minor = 0;
  EXPECT_TRUE(DeviceCheck({0, 0, "weights"}).ok());
  devices_.name = "Tesla T4";
  devices_.major = 7;
  devices_.minor = 5;
  ExpectError({0, 0, "weights"}, absl::StatusCode::kFailedPrecondition,
              {"CUDA device 0 (Tesla T4) has compute capability 7.5: Lockstep needs 8.0"});
  devices_.major = 12;
  devices_.minor = 0;
  EXPECT_EQ(DeviceCheck({0, 0, "weights"})->capability, 120);
}

TEST_F(DeviceCheckTest, NoDriverAnOldDriverAndNoDeviceAreToldApart) {
  devices_.get_device_count = cudaErrorInsufficientDriver;
  devices_.driver_version = 0;
  ExpectError({0, 0, ""}, absl::StatusCode::kFailedPrecondition, {"looking for CUDA devices: no NVIDIA driver"});
  devices_.driver_version = 12020;
  ExpectError({0, 0, ""}, absl::StatusCode::kFailedPrecondition, {"supports CUDA 12.2", "runtime is 13.0", "580"});
  devices_.get_device_count = cudaErrorNoDevice;
  ExpectError({0, 0, ""}, absl::StatusCode::kFailedPrecondition, {"the driver sees no device"});
  devices_.get_device_count = cudaSuccess;
  devices_.count = 0;
  ExpectError({0, 0, ""}, absl::StatusCode::kFailedPrecondition, {"the driver sees no device"});
}

TEST_F(DeviceCheckTest, AnOrdinalOutOfRangeNamesThoseThereAre) {
  ExpectError({2, 0, ""}, absl::StatusCode::kInvalidArgument,
              {"CUDA device 2 does not exist: there are 2 devices, 0 to 1;", "Xid 79"});
  ExpectError({-1, 0, ""}, absl::StatusCode::kInvalidArgument, {"CUDA device -1 does not exist"});
  devices_.count = 1;
  setenv("CUDA_VISIBLE_DEVICES", "3", 1);
  ExpectError({1, 0, ""}, absl::StatusCode::kInvalidArgument, {"there is 1 device, 0, CUDA_VISIBLE_DEVICES is '3';"});
}

TEST_F(DeviceCheckTest, TooLittleMemoryTellsATakenDeviceFromASmallOne) {
  devices_.bytes_of_others = 50 * kGiB;
  EXPECT_TRUE(DeviceCheck({0, 30 * kGiB, "weights and KV cache"}).ok());
  ExpectError({0, 30 * kGiB + 1, "weights and KV cache"}, absl::StatusCode::kResourceExhausted,
              {"CUDA device 0 (NVIDIA H100 80GB HBM3): 30.0 GiB needed for weights and KV cache, 30.0 GiB of 80.0 GiB "
               "are free; end its other users"});
  ExpectError({0, 81 * kGiB, "weights"}, absl::StatusCode::kResourceExhausted, {"the device is too small"});
}

TEST_F(DeviceCheckTest, EveryCallThatFailsIsNamed) {
  devices_.get_device_properties = cudaErrorSystemNotReady;
  ExpectError({1, 0, ""}, absl::StatusCode::kFailedPrecondition,
              {"reading the properties on CUDA device 1", "fabricmanager"});
  devices_.get_device_properties = cudaSuccess;
  devices_.set_device = cudaErrorDevicesUnavailable;
  ExpectError({1, 0, ""}, absl::StatusCode::kFailedPrecondition, {"starting on CUDA device 1", "compute mode"});
  devices_.set_device = cudaSuccess;
  devices_.mem_get_info = cudaErrorUnknown;
  const auto lost = DeviceCheck({1, 0, ""});
  ExpectError({1, 0, ""}, absl::StatusCode::kInternal, {"reading the free memory on CUDA device 1", "Xid 79"});
  EXPECT_EQ(RecoveryOf(lost.status()), Recovery::kResetDevice);
}

}  // namespace
}  // namespace lockstep::cuda
