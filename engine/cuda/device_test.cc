// Owners of the device's things over the emulated runtime, whose streams do nothing until somebody waits.
#include "engine/cuda/device.h"

#include <cstring>
#include <limits>

#include "engine/kernels/cuda/kernels.h"
#include "gtest/gtest.h"

namespace lockstep::cuda {
namespace {

class DeviceTest : public testing::Test {
 protected:
  ~DeviceTest() override {
    emulation::SetMemoryLimit(std::numeric_limits<size_t>::max());
    emulation::FailWork(0, cudaSuccess);
  }
};

TEST_F(DeviceTest, MemoryIsGivenBackExactlyOnce) {
  const size_t before = emulation::MemoryInUse();
  {
    DeviceBuffer a = *DeviceBuffer::Allocate(1000, "a test");
    DeviceBuffer b = std::move(a);
    EXPECT_EQ(a.data(), nullptr);
    EXPECT_EQ(b.bytes(), 1000u);
    b = *DeviceBuffer::Allocate(10, "a test");
    EXPECT_EQ(emulation::MemoryInUse(), before + 10);
  }
  EXPECT_EQ(emulation::MemoryInUse(), before);
}

TEST_F(DeviceTest, OutOfMemoryNamesThePurposeAndWhatIsFree) {
  emulation::SetMemoryLimit(emulation::MemoryInUse() + (size_t{5} << 20));
  const auto first = DeviceBuffer::Allocate(size_t{3} << 20, "weights");
  ASSERT_TRUE(first.ok());
  const auto second = DeviceBuffer::Allocate(size_t{3} << 20, "the KV cache");
  EXPECT_EQ(second.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(second.status().message().find(
                "memory for the KV cache on CUDA device 0: out of memory: 3 MiB do not fit, 2 MiB"),
            std::string::npos)
      << second.status();
}

TEST_F(DeviceTest, AStreamRunsWhenSomebodyWaits) {
  const Stream stream = *Stream::Create();
  const DeviceBuffer memory = *DeviceBuffer::Allocate(4, "a test");
  const PinnedBuffer host = *PinnedBuffer::Allocate(8, "a test");
  host.As<int32_t>()[0] = 7;
  ASSERT_TRUE(stream.CopyToDevice(memory.data(), host.data(), 4).ok());
  ASSERT_TRUE(stream.CopyToHost(host.As<int32_t>() + 1, memory.data(), 4).ok());
  EXPECT_NE(host.As<int32_t>()[1], 7);
  ASSERT_TRUE(stream.Wait("a test").ok());
  EXPECT_EQ(host.As<int32_t>()[1], 7);
}

TEST_F(DeviceTest, OneStreamWaitsForAnothersEvent) {
  const Stream first = *Stream::Create(), second = *Stream::Create();
  const Event event = *Event::Create();
  EXPECT_TRUE(event.Wait().ok()) << "nothing is recorded";
  const DeviceBuffer memory = *DeviceBuffer::Allocate(4, "a test");
  const PinnedBuffer host = *PinnedBuffer::Allocate(8, "a test");
  host.As<int32_t>()[0] = 7;
  ASSERT_TRUE(first.CopyToDevice(memory.data(), host.data(), 4).ok());
  ASSERT_TRUE(event.Record(first).ok());
  ASSERT_TRUE(memory.Zero(first).ok());  // behind the event
  EXPECT_FALSE(*event.Happened() && emulation::PendingWork() > 1);
  ASSERT_TRUE(second.WaitFor(event).ok());
  ASSERT_TRUE(second.CopyToHost(host.As<int32_t>() + 1, memory.data(), 4).ok());
  ASSERT_TRUE(second.Wait("a test").ok());
  EXPECT_EQ(host.As<int32_t>()[1], 7);
  EXPECT_TRUE(*event.Happened());
}

TEST_F(DeviceTest, AGraphRepeatsItsWorkOnWhatTheMemoryHoldsThen) {
  const Stream stream = *Stream::Create();
  const DeviceBuffer memory = *DeviceBuffer::Allocate(3 * sizeof(float), "a test");
  float* const values = memory.As<float>();
  const Graph graph = *Graph::Capture(stream, [&] {
    return CudaStatus(SwiGlu(Tensor(values, DType::kF32, 1, 2), Tensor(values + 2, DType::kF32, 1, 1), stream.get()),
                      "SwiGLU");
  });
  ASSERT_TRUE(stream.Wait("a test").ok());
  EXPECT_TRUE(values[2] != values[2]) << "a capture runs nothing";
  for (const float up : {3.0f, 5.0f}) {
    values[0] = 1;
    values[1] = up;
    ASSERT_TRUE(graph.Launch(stream).ok());
    ASSERT_TRUE(stream.Wait("a test").ok());
    EXPECT_NEAR(values[2], 0.7310586f * up, 1e-6f);
  }
}

TEST_F(DeviceTest, AGraphTakesNoAllocationAndTheStreamLivesOn) {
  const Stream stream = *Stream::Create();
  const auto graph = Graph::Capture(stream, [] { return DeviceBuffer::Allocate(100, "a mistake").status(); });
  EXPECT_NE(graph.status().message().find("a mistake"), std::string::npos) << graph.status();
  const DeviceBuffer memory = *DeviceBuffer::Allocate(4, "a test");
  ASSERT_TRUE(memory.Zero(stream).ok());
  ASSERT_TRUE(stream.Wait("a test").ok());
  EXPECT_EQ(*memory.As<int32_t>(), 0);
}

TEST_F(DeviceTest, AKernelThatFailsIsSaidWhereTheHostWaits) {
  const Stream stream = *Stream::Create();
  const DeviceBuffer memory = *DeviceBuffer::Allocate(4, "a test");
  emulation::FailWork(1, cudaErrorIllegalAddress);
  EXPECT_TRUE(memory.Zero(stream).ok());
  EXPECT_TRUE(memory.Zero(stream).ok());
  const absl::Status status = stream.Wait("decoding");
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_NE(status.message().find("decoding on CUDA device 0: a kernel accessed an illegal address"), std::string::npos)
      << status;
}

TEST_F(DeviceTest, AListOfCallsKeepsItsFirstError) {
  Calls run;
  run(cudaSuccess, "one");
  EXPECT_TRUE(run.ok() && run.status().ok());
  run(cudaErrorInvalidValue, "two");
  run(cudaErrorNotReady, "three");
  EXPECT_NE(run.status().message().find("two on CUDA device 0: "), std::string::npos) << run.status();
}

}  // namespace
}  // namespace lockstep::cuda
