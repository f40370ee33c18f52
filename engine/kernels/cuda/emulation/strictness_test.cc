// The emulated runtime refuses what the real one refuses, and ends a test that does what a device would do silently.
#include <cstring>
#include <thread>

#include "engine/kernels/cuda/emulation/runtime.h"
#include "gtest/gtest.h"

namespace lockstep::emulation {
namespace {

class StrictnessTest : public testing::Test {
 protected:
  StrictnessTest() {
    EXPECT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
    EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&device_), kBytes), cudaSuccess);
    EXPECT_EQ(cudaHostAlloc(reinterpret_cast<void**>(&host_), kBytes, cudaHostAllocDefault), cudaSuccess);
    std::memset(host_, 1, kBytes);
  }
  ~StrictnessTest() override {
    TheDevices() = {};
    EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
    EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess);
    EXPECT_EQ(cudaFree(device_), cudaSuccess);
    EXPECT_EQ(cudaFreeHost(host_), cudaSuccess);
  }
  cudaError_t Up() { return cudaMemcpyAsync(device_, host_, kBytes, cudaMemcpyHostToDevice, stream_); }
  cudaError_t Down() { return cudaMemcpyAsync(host_, device_, kBytes, cudaMemcpyDeviceToHost, stream_); }
  // A graph of what `enqueue` does; how the capture ended.
  template <typename Enqueue>
  cudaError_t Capture(const Enqueue& enqueue, cudaStreamCaptureMode mode = cudaStreamCaptureModeThreadLocal) {
    EXPECT_EQ(cudaStreamBeginCapture(stream_, mode), cudaSuccess);
    enqueue();
    cudaGraph_t graph = nullptr;
    const cudaError_t error = cudaStreamEndCapture(stream_, &graph);
    EXPECT_EQ(graph == nullptr, error != cudaSuccess);
    if (graph != nullptr) {
      EXPECT_EQ(cudaGraphInstantiate(&exec_, graph, 0), cudaSuccess);
      EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
    }
    return error;
  }

  static constexpr size_t kBytes = 64;
  cudaStream_t stream_ = nullptr;
  char *device_ = nullptr, *host_ = nullptr;
  cudaGraphExec_t exec_ = nullptr;
};

TEST_F(StrictnessTest, ACaptureRefusesWhatIsNotPutOnItsStreamAndIsSpoiledByIt) {
  cudaEvent_t event = nullptr;
  cudaStream_t other = nullptr;
  ASSERT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
  ASSERT_EQ(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking), cudaSuccess);
  void* memory = nullptr;
  char plain[kBytes] = {};
  const std::function<cudaError_t()> calls[] = {
      [&] { return cudaMalloc(&memory, 8); },
      [&] { return cudaFree(device_); },
      [&] { return cudaHostAlloc(&memory, 8, cudaHostAllocDefault); },
      [&] { return cudaFreeHost(host_); },
      [&] { return cudaMemcpy(device_, host_, 8, cudaMemcpyHostToDevice); },
      [&] { return cudaMemcpyAsync(device_, plain, 8, cudaMemcpyHostToDevice, stream_); },
      [&] { return cudaMemcpyAsync(plain, device_, 8, cudaMemcpyDeviceToHost, stream_); },
      [&] { return cudaDeviceSynchronize(); },
      [&] { return cudaStreamSynchronize(stream_); },
      [&] { return cudaStreamSynchronize(other); },
      [&] { return cudaEventQuery(event); },
      [&] { return cudaEventSynchronize(event); },
      [&] { return cudaStreamWaitEvent(stream_, event, 0); },
      [&] { return cudaMemsetAsync(device_, 0, 8, nullptr); },
  };
  for (const auto& call : calls) {
    EXPECT_EQ(Capture([&] { EXPECT_NE(call(), cudaSuccess) << &call - calls; }), cudaErrorStreamCaptureInvalidated)
        << &call - calls;
  }
  EXPECT_EQ(Up(), cudaSuccess) << "the stream runs again";
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(other), cudaSuccess);
}

TEST_F(StrictnessTest, AnotherThreadMayAllocateDuringACaptureOfItsThreadAlone) {
  cudaError_t other = cudaSuccess;
  const auto allocate = [&] {
    std::thread([&] {
      void* memory = nullptr;
      other = cudaMalloc(&memory, 8);
      if (other == cudaSuccess) other = cudaFree(memory);
    }).join();
  };
  EXPECT_EQ(Capture(allocate), cudaSuccess);
  EXPECT_EQ(other, cudaSuccess);
  EXPECT_EQ(cudaGraphExecDestroy(exec_), cudaSuccess);
  EXPECT_EQ(Capture(allocate, cudaStreamCaptureModeGlobal), cudaErrorStreamCaptureInvalidated);
  EXPECT_EQ(other, cudaErrorStreamCaptureUnsupported);
}

TEST_F(StrictnessTest, WhatACopyFillsIsNotThereBeforeItIsMade) {
  ASSERT_EQ(Up(), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  ASSERT_EQ(Down(), cudaSuccess);
  EXPECT_EQ(static_cast<unsigned char>(host_[5]), 0xFF) << "not even where it had the same bytes before";
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  EXPECT_EQ(host_[5], 1);
}

TEST_F(StrictnessTest, MemoryThatIsNotPinnedIsCopiedAtTheCall) {
  char plain[kBytes] = {3};
  ASSERT_EQ(cudaMemcpyAsync(device_, plain, kBytes, cudaMemcpyHostToDevice, stream_), cudaSuccess);
  plain[0] = 4;
  EXPECT_EQ(PendingWork(), 1u);
  ASSERT_EQ(cudaMemcpyAsync(plain, device_, kBytes, cudaMemcpyDeviceToHost, stream_), cudaSuccess);
  EXPECT_EQ(plain[0], 3);
  EXPECT_EQ(PendingWork(), 0u);
}

TEST_F(StrictnessTest, CopiesStayInTheirAllocations) {
  EXPECT_EQ(cudaMemcpyAsync(device_ + 1, host_, kBytes, cudaMemcpyHostToDevice, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemsetAsync(device_, 0, kBytes + 1, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpyAsync(host_, device_, kBytes, cudaMemcpyHostToDevice, stream_), cudaErrorInvalidValue)
      << "the other way round";
}

TEST_F(StrictnessTest, AStreamIsOfItsDevice) {
  TheDevices().count = 2;
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  EXPECT_EQ(cudaMemsetAsync(device_, 0, kBytes, stream_), cudaErrorInvalidResourceHandle);
  std::thread([&] { EXPECT_EQ(Up(), cudaSuccess) << "a thread begins with device 0"; }).join();
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
}

TEST_F(StrictnessTest, TimesAreOfEventsThatKeepThemAndHaveHappened) {
  cudaEvent_t events[3] = {};
  for (cudaEvent_t& event : events) {
    const unsigned flags = &event == &events[2] ? cudaEventDisableTiming : cudaEventDefault;
    ASSERT_EQ(cudaEventCreateWithFlags(&event, flags), cudaSuccess);
    ASSERT_EQ(Up(), cudaSuccess);
    ASSERT_EQ(cudaEventRecord(event, stream_), cudaSuccess);
  }
  float milliseconds = 0;
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, events[0], events[1]), cudaErrorNotReady);
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, events[0], events[1]), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, events[0], events[2]), cudaErrorInvalidResourceHandle);
  for (const cudaEvent_t event : events) EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
}

using StrictnessDeathTest = StrictnessTest;

TEST_F(StrictnessDeathTest, PinnedMemoryThatChangesUnderACopyEndsTheTest) {
  ASSERT_EQ(Up(), cudaSuccess);
  EXPECT_DEATH(
      {
        host_[7] = 2;
        static_cast<void>(cudaStreamSynchronize(stream_));
      },
      "changed before its copy");
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
}

TEST_F(StrictnessDeathTest, PinnedMemoryThatIsFreedUnderACopyOrAGraphEndsTheTest) {
  ASSERT_EQ(Down(), cudaSuccess);
  EXPECT_DEATH(static_cast<void>(cudaFreeHost(host_)), "while a copy or a graph uses it");
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  ASSERT_EQ(Capture([&] { EXPECT_EQ(Up(), cudaSuccess); }), cudaSuccess);
  EXPECT_DEATH(static_cast<void>(cudaFreeHost(host_)), "while a copy or a graph uses it");
  EXPECT_EQ(cudaGraphExecDestroy(exec_), cudaSuccess);
}

TEST_F(StrictnessDeathTest, AGraphThatIsStartedAfterItsMemoryIsFreedEndsTheTest) {
  void* memory = nullptr;
  ASSERT_EQ(cudaMalloc(&memory, kBytes), cudaSuccess);
  ASSERT_EQ(Capture([&] { EXPECT_EQ(cudaMemsetAsync(memory, 0, kBytes, stream_), cudaSuccess); }), cudaSuccess);
  EXPECT_EQ(cudaGraphLaunch(exec_, stream_), cudaSuccess);
  ASSERT_EQ(cudaFree(memory), cudaSuccess);
  EXPECT_DEATH(static_cast<void>(cudaGraphLaunch(exec_, stream_)), "whose memory has been freed");
  EXPECT_EQ(cudaGraphExecDestroy(exec_), cudaSuccess);
}

}  // namespace
}  // namespace lockstep::emulation
