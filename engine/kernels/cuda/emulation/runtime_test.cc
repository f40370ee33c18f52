#include "engine/kernels/cuda/emulation/runtime.h"

#include <cuda_runtime.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "gtest/gtest.h"

namespace lockstep::emulation {
namespace {

void Nothing() {}

cudaError_t LaunchNothing(cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = config.blockDim = dim3(1, 1, 1);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, &Nothing);
}

TEST(EmulatedRuntimeTest, AThreadHasItsOwnDeviceAndAKernelNeedsThatOfItsStream) {
  TheDevices().count = 2;
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  EXPECT_EQ(LaunchNothing(stream), cudaSuccess);
  void* memory = nullptr;
  ASSERT_EQ(cudaMalloc(&memory, 100), cudaSuccess);
  EXPECT_EQ(MemoryInUse(), 100u);
  std::thread([stream, memory] {
    int device = -1;
    EXPECT_EQ(cudaGetDevice(&device), cudaSuccess);
    EXPECT_EQ(device, 0);
    EXPECT_EQ(LaunchNothing(stream), cudaErrorInvalidResourceHandle);
    EXPECT_EQ(MemoryInUse(), 0u);
    cudaPointerAttributes attributes = {};
    EXPECT_EQ(cudaPointerGetAttributes(&attributes, static_cast<char*>(memory) + 99), cudaSuccess);
    EXPECT_EQ(attributes.type, cudaMemoryTypeDevice);
    EXPECT_EQ(attributes.device, 1);
    char bus_id[16] = "";
    EXPECT_EQ(cudaDeviceGetPCIBusId(bus_id, sizeof(bus_id), 1), cudaSuccess);
    EXPECT_STREQ(bus_id, "0000:02:00.0");
  }).join();
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
  EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
  TheDevices() = {};
}

TEST(EmulatedRuntimeTest, WorkThatIsUnderWayHoldsUpItsStreamAndNoOtherThread) {
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  std::atomic<bool> ended{false};
  bool after = false;
  EXPECT_EQ(Submit(stream, [&] { return ended ? cudaSuccess : cudaErrorNotReady; }), cudaSuccess);
  EXPECT_EQ(Submit(stream,
                   [&] {
                     after = true;
                     return cudaSuccess;
                   }),
            cudaSuccess);
  EXPECT_EQ(cudaStreamQuery(stream), cudaErrorNotReady);
  std::thread waiting([stream] { EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess); });
  EXPECT_EQ(LaunchNothing(nullptr), cudaSuccess);  // another thread's work goes on
  EXPECT_FALSE(after);
  ended = true;
  waiting.join();
  EXPECT_TRUE(after);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

// What the other process does; its exit code.
int OpenAndAdd(const cudaIpcMemHandle_t& memory, const cudaIpcEventHandle_t& event) {
  void* opened = nullptr;
  cudaEvent_t copied = nullptr;
  if (cudaIpcOpenMemHandle(&opened, memory, cudaIpcMemLazyEnablePeerAccess) != cudaSuccess) return 1;
  if (cudaIpcOpenEventHandle(&copied, event) != cudaSuccess) return 2;
  if (cudaEventSynchronize(copied) != cudaSuccess) return 3;
  auto* const text = static_cast<char*>(opened);
  if (std::strcmp(text, "written") != 0) return 4;
  text[0] = 'W';
  return cudaIpcCloseMemHandle(opened) == cudaSuccess && cudaEventDestroy(copied) == cudaSuccess ? 0 : 5;
}

TEST(EmulatedRuntimeTest, AnotherProcessSeesWhatACopyBroughtOnceItsEventHasHappened) {
  cudaStream_t stream = nullptr;
  cudaEvent_t event = nullptr;
  void* memory = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventInterprocess), cudaSuccess);
  ASSERT_EQ(cudaMalloc(&memory, 5000), cudaSuccess);
  cudaIpcMemHandle_t memory_handle;
  cudaIpcEventHandle_t event_handle;
  EXPECT_EQ(cudaIpcGetMemHandle(&memory_handle, static_cast<char*>(memory) + 1), cudaErrorInvalidValue);
  ASSERT_EQ(cudaIpcGetMemHandle(&memory_handle, memory), cudaSuccess);
  ASSERT_EQ(cudaIpcGetEventHandle(&event_handle, event), cudaSuccess);
  void* own = nullptr;
  EXPECT_EQ(cudaIpcOpenMemHandle(&own, memory_handle, 0), cudaErrorInvalidValue);
  int begun[2];
  ASSERT_EQ(pipe(begun), 0);
  const pid_t child = fork();  // before there is work that it would inherit
  if (child == 0) {
    char go = 0;
    _exit(read(begun[0], &go, 1) == 1 ? OpenAndAdd(memory_handle, event_handle) : 6);
  }
  ASSERT_EQ(cudaMemcpyAsync(memory, "written", 8, cudaMemcpyHostToDevice, stream), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(event, stream), cudaSuccess);
  ASSERT_EQ(write(begun[1], "!", 1), 1);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  int state = 0;
  ASSERT_EQ(waitpid(child, &state, 0), child);
  EXPECT_EQ(WIFEXITED(state) ? WEXITSTATUS(state) : -1, 0);
  EXPECT_STREQ(static_cast<char*>(memory), "Written");
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
  EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

}  // namespace
}  // namespace lockstep::emulation
