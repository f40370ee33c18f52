// Plans for devices that the emulation makes up, and what the learner's engine then takes of one.
#include "learner/cuda_device_plan.h"

#include <gtest/gtest.h>

#include <limits>

#include "engine/cuda/device_weights.h"
#include "engine/cuda/serving.h"
#include "engine/kernels/cuda/emulation/runtime.h"
#include "engine/model/shapes.h"
#include "learner/cuda_train_engine.h"

namespace lockstep {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30, kMiB = uint64_t{1} << 20;

class CudaDevicePlanTest : public testing::Test {
 protected:
  void SetUp() override { emulation::SetMemoryLimit(80 * kGiB); }
  void TearDown() override {
    emulation::TheDevices() = {};
    emulation::SetMemoryLimit(std::numeric_limits<size_t>::max());
    EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
  }
};

DevicePlanInputs SomeInputs() {
  DevicePlanInputs in;
  in.model = Qwen25Shape05B();
  in.trains = in.updates = in.serves = true;
  in.micro_batch_tokens = 4096;
  in.config.set_device("cuda");
  in.config.set_numerics("matched");
  in.config.mutable_data()->set_max_prompt_tokens(512);
  auto* rollout = in.config.mutable_rollout();
  rollout->set_num_servers(1);
  rollout->set_max_tokens(1024);
  rollout->set_max_batch_size(64);
  rollout->set_prefill_chunk_tokens(512);
  rollout->set_kv_cache_mib(1024);
  in.config.mutable_learner()->set_world_size(1);
  in.config.mutable_weight_sync()->set_transport("gloo");
  in.config.mutable_weight_sync()->set_bucket_mib(48);
  in.config.mutable_weight_sync()->set_in_flight("continue");
  return in;
}

DevicePlan Plan(const DevicePlanInputs& in) {
  auto plan = PlanCudaDevices(in);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return plan.ok() ? *std::move(plan) : DevicePlan();
}

const ProcessMemory* Find(const DeviceMemoryPlan& device, const std::string& process) {
  for (const ProcessMemory& p : device.processes) {
    if (p.name == process) return &p;
  }
  return nullptr;
}

uint64_t Pool(const DeviceMemoryPlan& device, const std::string& process, const std::string& pool) {
  const ProcessMemory* const found = Find(device, process);
  for (const MemoryPool& entry : found == nullptr ? std::vector<MemoryPool>() : found->pools) {
    if (entry.name == pool) return entry.bytes;
  }
  return 0;
}

// One line that has all of `parts`.
void ExpectLine(const absl::Status& status, absl::StatusCode code, const std::vector<std::string>& parts) {
  EXPECT_EQ(status.code(), code) << status;
  const std::string text(status.message());
  EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  for (const std::string& part : parts)
    EXPECT_NE(text.find(part), std::string::npos) << "no '" << part << "': " << text;
}

TEST_F(CudaDevicePlanTest, OneDeviceIsSharedAndItsPartsAreThoseOfTheEngine) {
  const DevicePlanInputs in = SomeInputs();
  const DevicePlan plan = Plan(in);
  ASSERT_EQ(plan.devices.size(), 1u);
  const DeviceMemoryPlan& device = plan.devices[0];
  const uint64_t floats = 4 * static_cast<uint64_t>(cuda::ArenaLayout(in.model).size);
  const uint64_t weights = cuda::DeviceWeights::Bytes(in.model, DType::kF16);
  EXPECT_EQ(Pool(device, "learner", "weights"), weights);
  EXPECT_EQ(Pool(device, "learner", "reference weights"), 0u);
  EXPECT_EQ(Pool(device, "learner", "master"), floats);
  EXPECT_EQ(Pool(device, "learner", "gradient"), floats);
  EXPECT_EQ(Pool(device, "learner", "Adam moments"), 2 * floats);
  EXPECT_EQ(Pool(device, "learner", "activations"),
            cuda::DeviceDecoder::TrainingBytes(in.model, DType::kF16, 4096, /*recompute=*/false));
  EXPECT_EQ(Pool(device, "rollout server", "weights"), weights);
  EXPECT_EQ(Pool(device, "rollout server", "shadow weights"), weights);
  EXPECT_EQ(Pool(device, "rollout server", "older weights"), 0u);
  const uint64_t page = cuda::DeviceKv::BytesPerPage(in.model, DType::kF16);
  EXPECT_EQ(Pool(device, "rollout server", "KV cache"), kGiB / page * page);
  EXPECT_EQ(device.free_bytes, 80 * kGiB);
  EXPECT_EQ(device.bytes(), device.processes[0].bytes() + device.processes[1].bytes());
  EXPECT_TRUE(CheckDevices(plan, in.config).ok());
  const std::string text = plan.Text();
  EXPECT_EQ(text.rfind("CUDA device 0 (Emulated device) needs ", 0), 0u) << text;
  EXPECT_NE(text.find("GiB: learner "), std::string::npos) << text;
  EXPECT_NE(text.find("), rollout server "), std::string::npos) << text;
  EXPECT_NE(text.find("; 80.0 of 80.0 GiB are free"), std::string::npos) << text;
  EXPECT_EQ(plan.Json()[0]["bytes"], device.bytes());
  EXPECT_EQ(plan.Json()[0]["processes"].size(), 2u);
}

TEST_F(CudaDevicePlanTest, ASumThatIsMoreThanWhatIsFreeIsRefusedThoughEachProcessFits) {
  const DevicePlanInputs in = SomeInputs();
  const uint64_t needed = Plan(in).devices[0].bytes();
  emulation::TheDevices().bytes_of_others = 80 * kGiB - needed;
  EXPECT_TRUE(CheckDevices(Plan(in), in.config).ok());
  emulation::TheDevices().bytes_of_others += 1;
  const DevicePlan plan = Plan(in);
  for (const ProcessMemory& process : plan.devices[0].processes) EXPECT_LT(process.bytes(), needed - kGiB);
  ExpectLine(CheckDevices(plan, in.config), absl::StatusCode::kResourceExhausted,
             {"memory: CUDA device 0 (Emulated device) needs ", " of 80.0 GiB are free; the largest part is the ",
              "give its processes GPUs of their own", "end the GPU's other users (nvidia-smi)"});
}

TEST_F(CudaDevicePlanTest, TheLargestPartAndItsSettingsComeFirst) {
  emulation::SetMemoryLimit(16 * kGiB);
  DevicePlanInputs in = SomeInputs();
  in.config.mutable_rollout()->set_kv_cache_mib(40 << 10);
  ExpectLine(CheckDevices(Plan(in), in.config), absl::StatusCode::kResourceExhausted,
             {"; the largest part is the KV cache of the rollout server, 40.0 GiB; lower rollout.kv_cache_mib, or",
              "take a smaller model or a larger GPU"});
  in.config.mutable_rollout()->set_kv_cache_mib(1024);
  in.micro_batch_tokens = 1 << 17;
  ExpectLine(CheckDevices(Plan(in), in.config), absl::StatusCode::kResourceExhausted,
             {"the largest part is the activations of the learner, ",
              " GiB; lower learner.micro_batch_tokens or set "
              "learner.activation_recompute: true"});
  in = SomeInputs();
  emulation::SetMemoryLimit(kGiB);
  in.micro_batch_tokens = 16;
  in.serves = false;
  ExpectLine(CheckDevices(Plan(in), in.config), absl::StatusCode::kResourceExhausted,
             {"the largest part is the Adam moments of the learner, 3.7 GiB; set lora.rank"});
  in.config.mutable_rollout()->set_kv_cache_mib(uint64_t{1} << 62);
  in.serves = true;
  ExpectLine(CheckDevices(Plan(in), in.config), absl::StatusCode::kResourceExhausted, {"the KV cache of the"});
}

TEST_F(CudaDevicePlanTest, ProcessesTakeTheDevicesInTurnRanksFirst) {
  emulation::TheDevices().count = 2;
  DevicePlanInputs in = SomeInputs();
  DevicePlan plan = Plan(in);
  ASSERT_EQ(plan.devices.size(), 2u);
  EXPECT_NE(Find(plan.devices[0], "learner"), nullptr);
  EXPECT_EQ(Find(plan.devices[0], "rollout server"), nullptr);
  EXPECT_EQ(Find(plan.devices[1], "learner"), nullptr);
  EXPECT_NE(Find(plan.devices[1], "rollout server"), nullptr);

  in.config.mutable_learner()->set_world_size(2);   // 0, 1
  in.config.mutable_rollout()->set_num_servers(3);  // 0, 1, 0
  in.staged_bytes = 32 * kMiB;
  plan = Plan(in);
  EXPECT_EQ(Find(plan.devices[0], "learner")->count, 1u);
  EXPECT_EQ(Find(plan.devices[1], "learner")->count, 1u);
  EXPECT_EQ(Pool(plan.devices[1], "learner", "staging"), 32 * kMiB);
  EXPECT_EQ(Find(plan.devices[0], "rollout server")->count, 2u);
  EXPECT_EQ(Find(plan.devices[1], "rollout server")->count, 1u);
  EXPECT_NE(plan.Text().find(", 2 rollout servers of "), std::string::npos) << plan.Text();
  EXPECT_NE(plan.Text().find("; CUDA device 1 (Emulated device) needs "), std::string::npos) << plan.Text();

  emulation::SetMemoryLimit(plan.devices[0].bytes() - 1);
  ASSERT_LT(plan.devices[1].bytes(), plan.devices[0].bytes() - 1);
  ExpectLine(CheckDevices(Plan(in), in.config), absl::StatusCode::kResourceExhausted,
             {"memory: CUDA device 0 ", "lower rollout.num_servers, or give its processes GPUs"});

  in.trains = in.updates = false;  // the learner's process has a number and no device
  in.config.mutable_rollout()->set_num_servers(1);
  plan = Plan(in);
  ASSERT_EQ(plan.devices.size(), 1u);
  EXPECT_EQ(plan.devices[0].device, 1);
  EXPECT_EQ(Pool(plan.devices[0], "rollout server", "shadow weights"), 0u);
}

TEST_F(CudaDevicePlanTest, SamplesInFlightThatFinishOnTheirOwnWeightsKeepFourSets) {
  DevicePlanInputs in = SomeInputs();
  in.config.mutable_weight_sync()->set_in_flight("finish");
  const auto older = [&in] { return Pool(Plan(in).devices[0], "rollout server", "older weights"); };
  EXPECT_EQ(older(), 0u) << "nothing is in flight";
  in.config.mutable_algorithm()->set_max_staleness(1);
  EXPECT_EQ(older(), 2 * cuda::DeviceWeights::Bytes(in.model, DType::kF16));
  emulation::SetMemoryLimit(kGiB);
  ExpectLine(CheckDevices(Plan(in), in.config), absl::StatusCode::kResourceExhausted,
             {"set weight_sync.in_flight: continue"});
}

TEST_F(CudaDevicePlanTest, ACacheWithoutASizeIsHalfOfWhatIsLeftAndHoldsASequence) {
  DevicePlanInputs in = SomeInputs();
  in.trains = false;
  in.config.mutable_rollout()->set_kv_cache_mib(0);
  in.config.mutable_rollout()->set_max_batch_size(4096);
  emulation::SetMemoryLimit(12 * kGiB);
  const DevicePlan plan = Plan(in);
  const DeviceMemoryPlan& device = plan.devices[0];
  const uint64_t rest = 12 * kGiB - Pool(device, "rollout server", "scratch") -
                        Pool(device, "rollout server", "context") - 2 * Pool(device, "rollout server", "weights");
  EXPECT_NEAR(static_cast<double>(Pool(device, "rollout server", "KV cache")), static_cast<double>(rest) / 2, 64e6);
  EXPECT_TRUE(CheckDevices(plan, in.config).ok());
  in.trains = true;
  in.config.mutable_learner()->set_activation_recompute(true);
  in.micro_batch_tokens = 512;
  EXPECT_FALSE(CheckDevices(Plan(in), in.config).ok()) << "the learner comes after it";
  emulation::SetMemoryLimit(3 * kGiB);
  ExpectLine(PlanCudaDevices(in).status(), absl::StatusCode::kResourceExhausted,
             {"memory: CUDA device 0 (Emulated device), 3.0 GiB free, 0.0 planned for other processes: the KV cache on "
              "the device would have ",
              "lower rollout.max_tokens"});
}

TEST_F(CudaDevicePlanTest, WhatUpdatesTakeLiesOnTheirProcessDevice) {
  DevicePlanInputs in = SomeInputs();
  DevicePlan plan = Plan(in);
  EXPECT_EQ(Pool(plan.devices[0], "learner", "update image"), 0u) << "over the host";
  EXPECT_EQ(Pool(plan.devices[0], "rollout server", "staging"), 0u);
  const uint64_t image = 2 * static_cast<uint64_t>(ParamLayout(in.model).total_size);
  const auto sent = [](const DeviceMemoryPlan& device) { return Pool(device, "learner", "update image"); };
  for (const char* const transport : {"ipc", "nccl", "auto"}) {
    in.config.mutable_weight_sync()->set_transport(transport);
    emulation::TheDevices().count = 1;
    plan = Plan(in);
    EXPECT_EQ(sent(plan.devices[0]), image + 2 * kMiB) << "with digests of 1.8 MiB";
    const uint64_t digests = Pool(plan.devices[0], "rollout server", "staging");
    EXPECT_GE(digests, image / 512) << "8 bytes a block of 4,096, and every bucket lies in place";
    EXPECT_LE(digests, image / 512 + 8 * (image / (48 * kMiB) + 1));
    emulation::TheDevices().count = 2;
    plan = Plan(in);
    EXPECT_EQ(sent(plan.devices[0]), image + 2 * kMiB);
    EXPECT_EQ(Pool(plan.devices[1], "rollout server", "staging"), digests);
  }
  in.config.mutable_learner()->set_world_size(2);
  plan = Plan(in);
  EXPECT_EQ(sent(plan.devices[1]), 0u) << "rank 0 sends";
  in.model.head_dim = 16;  // a bias of 288 elements: what is behind it lies elsewhere than in the image
  plan = Plan(in);
  EXPECT_GT(Pool(plan.devices[0], "rollout server", "staging"), 2 * 47 * kMiB) << "two buckets";
  in.config.mutable_weight_sync()->set_bucket_mib(0);
  plan = Plan(in);
  EXPECT_GT(Pool(plan.devices[0], "rollout server", "staging"), 2 * 63 * kMiB) << "of 64 MiB where none are given";
  in.updates = false;
  EXPECT_EQ(sent(Plan(in).devices[0]), 0u);
}

TEST_F(CudaDevicePlanTest, WithoutADeviceAndForAModelWithoutKernelsTheLineIsTheEngines) {
  DevicePlanInputs in = SomeInputs();
  in.model.head_dim = 24;
  ExpectLine(PlanCudaDevices(in).status(), absl::StatusCode::kInvalidArgument, {"head_dim 24", "run it on the CPU"});
  in = SomeInputs();
  emulation::TheDevices().count = 0;
  ExpectLine(PlanCudaDevices(in).status(), absl::StatusCode::kFailedPrecondition,
             {"looking for CUDA devices", "the driver sees no device"});
}

TEST_F(CudaDevicePlanTest, TheLearnersEngineTakesWhatIsPlanned) {
  DevicePlanInputs in = SomeInputs();
  in.model = QuickstartShape(512);
  in.serves = false;
  in.config.mutable_algorithm()->set_kl_beta(0.1f);
  const size_t before = emulation::MemoryInUse();
  TrainEngineOptions options;
  options.config = in.model;
  auto engine = MakeCudaTrainEngine(options, {.workspace = {}, .gemm = cuda::MakeMatchedGemm()});
  ASSERT_TRUE(engine.ok()) << engine.status();
  ASSERT_TRUE((*engine)->CaptureReference().ok());
  const DevicePlan plan = Plan(in);
  const DeviceMemoryPlan& device = plan.devices[0];
  EXPECT_EQ(emulation::MemoryInUse() - before, device.bytes() - kContextBytes - Pool(device, "learner", "activations"));

  const auto whole = Pool(device, "learner", "Adam moments");
  in.adapter_elements = 1000;
  in.config.mutable_lora()->set_rank(2);
  const DevicePlan adapters = Plan(in);
  EXPECT_EQ(Pool(adapters.devices[0], "learner", "Adam moments"), 8000u);
  EXPECT_GT(whole, 8000u);
  EXPECT_EQ(Pool(adapters.devices[0], "learner", "weights"), Pool(device, "learner", "weights"));
}

}  // namespace
}  // namespace lockstep
