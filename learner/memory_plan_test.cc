#include "learner/memory_plan.h"

#include <gtest/gtest.h>

#include "engine/model/decoder.h"
#include "engine/model/shapes.h"

namespace lockstep {
namespace {

MemoryInputs SomeInputs() {
  MemoryInputs inputs;
  inputs.model = QuickstartShape();
  inputs.config.mutable_data()->set_max_prompt_tokens(32);
  auto* rollout = inputs.config.mutable_rollout();
  rollout->set_num_servers(2);
  rollout->set_n(8);
  rollout->set_max_tokens(96);
  rollout->set_max_batch_size(64);
  rollout->set_prefill_chunk_tokens(128);
  rollout->set_kv_cache_mib(64);
  inputs.config.mutable_learner()->set_world_size(1);
  inputs.config.mutable_learner()->set_micro_batch_tokens(2048);
  inputs.config.mutable_trainer()->set_prompts_per_step(16);
  inputs.config.mutable_weight_sync()->set_bucket_mib(4);
  return inputs;
}

uint64_t Pool(const MemoryPlan& plan, const std::string& process, const std::string& pool) {
  for (const ProcessMemory& p : plan.processes) {
    for (const MemoryPool& entry : p.pools) {
      if (p.name == process && entry.name == pool) return entry.bytes;
    }
  }
  return 0;
}

TEST(MemoryPlanTest, LargeWeightsTakeWholeHugePages) {
  const ModelConfig model = Qwen25Shape05B();
  const uint64_t bytes = 2 * static_cast<uint64_t>(ParamLayout(model).total_size);
  // gate_up [9728, 896] and down [896, 4864] of 24 layers, the embedding [151936, 896]; the rest is below 4 MiB.
  const uint64_t huge = uint64_t{2} << 20;
  const uint64_t rounding =
      24 * (9 * huge - 9728 * 896 * 2 + 5 * huge - 896 * 4864 * 2) + 130 * huge - 151936 * 896 * 2;
  EXPECT_GE(WeightsBytes(model, DType::kF16), bytes + rounding);
  EXPECT_LT(WeightsBytes(model, DType::kF16), bytes + rounding + 64 * ParamLayout(model).params.size());
}

TEST(MemoryPlanTest, SmallWeightsTakeWhatTheyHold) {
  ModelConfig odd = QuickstartShape(1003);
  odd.tie_word_embeddings = false;
  for (const ModelConfig& model : {QuickstartShape(), odd}) {
    for (DType dtype : {DType::kF16, DType::kF32}) {
      const Weights weights(model, dtype);
      EXPECT_GE(WeightsBytes(model, dtype), weights.bytes());
      EXPECT_LT(WeightsBytes(model, dtype), weights.bytes() + 64 * weights.layout.params.size());
    }
  }
}

TEST(MemoryPlanTest, HasEveryPoolOfEveryProcess) {
  const MemoryInputs inputs = SomeInputs();
  const auto plan = PlanMemory(inputs);
  ASSERT_TRUE(plan.ok()) << plan.status();
  const uint64_t params = ParamLayout(inputs.model).total_size;
  EXPECT_EQ(Pool(*plan, "learner", "master"), 4 * params);
  EXPECT_EQ(Pool(*plan, "learner", "Adam moments"), 8 * params);
  EXPECT_EQ(Pool(*plan, "learner", "activations"),
            Decoder::TrainingBytes(inputs.model, DType::kF16, 2048, /*recompute=*/false));
  EXPECT_EQ(Pool(*plan, "rollout server", "shadow weights"), WeightsBytes(inputs.model, DType::kF16));
  const uint64_t page = KvStorage::BytesPerPage(inputs.model, DType::kF16);
  EXPECT_EQ(Pool(*plan, "rollout server", "KV cache"), (uint64_t{64} << 20) / page * page);
  ASSERT_EQ(plan->processes.size(), 2);
  EXPECT_EQ(plan->bytes(), plan->processes[0].bytes() + 2 * plan->processes[1].bytes());
  EXPECT_NE(plan->Text().find("2 rollout servers of "), std::string::npos) << plan->Text();
}

TEST(MemoryPlanTest, AdaptersTakeSixteenBytesAnElementAndAReferenceItsWeights) {
  MemoryInputs inputs = SomeInputs();
  inputs.config.mutable_lora()->set_rank(2);
  inputs.config.mutable_lora()->set_alpha(4);
  inputs.config.mutable_lora()->add_target_modules("o_proj");
  inputs.config.mutable_algorithm()->set_kl_beta(0.1f);
  const auto plan = PlanMemory(inputs);
  ASSERT_TRUE(plan.ok()) << plan.status();
  const ModelConfig& model = inputs.model;
  const uint64_t elements = model.num_layers * 2 * (model.hidden_size + model.num_heads * model.head_dim);
  EXPECT_EQ(Pool(*plan, "learner", "master"), 4 * elements);
  EXPECT_EQ(Pool(*plan, "learner", "gradient"), 4 * elements);
  EXPECT_EQ(Pool(*plan, "learner", "Adam moments"), 8 * elements);
  EXPECT_EQ(Pool(*plan, "learner", "reference weights"), WeightsBytes(model, DType::kF16));
  inputs.config.mutable_lora()->set_target_modules(0, "c_proj");
  EXPECT_EQ(PlanMemory(inputs).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(MemoryPlanTest, AMicroBatchIsNoLargerThanAStepAndNoSmallerThanASample) {
  MemoryInputs inputs = SomeInputs();
  const auto activations = [&inputs] { return Pool(*PlanMemory(inputs), "learner", "activations"); };
  const auto bytes = [&inputs](int64_t tokens) {
    return Decoder::TrainingBytes(inputs.model, DType::kF16, tokens, false);
  };
  inputs.config.mutable_learner()->set_micro_batch_tokens(1 << 20);
  EXPECT_EQ(activations(), bytes(16 * 8 * 128));
  inputs.config.mutable_learner()->set_world_size(2);
  EXPECT_EQ(activations(), bytes(16 * 8 * 128 / 2));
  inputs.config.mutable_learner()->set_micro_batch_tokens(1);
  EXPECT_EQ(activations(), bytes(128));
}

TEST(MemoryPlanTest, ProcessesElsewhereAndModesThatDoNotTrainTakeLess) {
  MemoryInputs inputs = SomeInputs();
  inputs.config.mutable_rollout()->add_addresses("a:1");
  EXPECT_EQ(PlanMemory(inputs)->processes.size(), 1);
  inputs.mode = LearnerMode::kPretrain;
  EXPECT_EQ(Pool(*PlanMemory(inputs), "learner", "weight snapshots"), 0u);
  inputs = SomeInputs();
  inputs.mode = LearnerMode::kEval;
  EXPECT_EQ(Pool(*PlanMemory(inputs), "learner", "master"), 0u);
  EXPECT_EQ(Pool(*PlanMemory(inputs), "rollout server", "shadow weights"), 0u);
}

TEST(MemoryPlanTest, UpdatesThatStayOnDevicesHaveNoSnapshotOnTheHost) {
  MemoryInputs inputs = SomeInputs();
  const auto snapshots = [&inputs](const std::string& device, const std::string& transport) {
    inputs.config.set_device(device);
    inputs.config.mutable_weight_sync()->set_transport(transport);
    return Pool(*PlanMemory(inputs), "learner", "weight snapshots");
  };
  const uint64_t two = 4 * static_cast<uint64_t>(ParamLayout(inputs.model).total_size);
  EXPECT_EQ(snapshots("cpu", "nccl"), two);
  EXPECT_EQ(snapshots("cuda", "gloo"), two);
  EXPECT_EQ(snapshots("cuda", "nccl"), 0u);
  EXPECT_EQ(snapshots("cuda", "ipc"), 0u);
}

TEST(MemoryPlanTest, WhatDoesNotFitIsRefusedInOneLineWithWhatToChange) {
  MemoryInputs inputs = SomeInputs();
  inputs.config.mutable_learner()->set_micro_batch_tokens(1 << 20);
  const auto plan = PlanMemory(inputs);
  MachineMemory machine;
  machine.available_bytes = plan->bytes();
  EXPECT_TRUE(CheckMemory(*plan, machine).ok());
  machine.available_bytes = plan->bytes() - 1;
  machine.limited_by_cgroup = true;
  const absl::Status status = CheckMemory(*plan, machine);
  const std::string message(status.message());
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(message.find('\n'), std::string::npos);
  EXPECT_NE(message.find("the limit of the control group"), std::string::npos) << message;
  // The activations are the largest pool here, so what makes them smaller comes first.
  EXPECT_NE(message.find("; lower learner.micro_batch_tokens or set"), std::string::npos) << message;
  EXPECT_TRUE(CheckMemory(*plan, MachineMemory()).ok()) << "unknown refuses nothing";
}

TEST(MemoryPlanTest, RoutingIsCountedWithTheSamplesAndADenseModelHasNone) {
  MemoryInputs inputs = SomeInputs();
  const uint64_t without = Pool(*PlanMemory(inputs), "learner", "samples");
  inputs.config.mutable_learner()->set_router_replay("measure");
  EXPECT_EQ(
      PlanMemory(inputs).status().message(),
      "learner.router_replay: 'measure' needs a model with experts, and this Qwen2ForCausalLM has none; set it to "
      "off");
  inputs.model.num_experts = 8;
  inputs.model.experts_per_token = 2;
  inputs.model.moe_intermediate_size = 16;
  EXPECT_EQ(Pool(*PlanMemory(inputs), "learner", "samples"),
            without + 16 * 8 * 128 * 3 * 2 * static_cast<uint64_t>(inputs.model.num_layers));
}

TEST(MemoryPlanTest, TheDevicesPlanGetsWhatTheModeDoes) {
  MemoryInputs inputs = SomeInputs();
  auto device = DeviceInputs(inputs);
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_TRUE(device->trains && device->updates && device->serves);
  EXPECT_EQ(device->micro_batch_tokens, 2048);
  EXPECT_EQ(device->adapter_elements, 0);
  EXPECT_EQ(device->staged_bytes, 0u);
  inputs.mode = LearnerMode::kEval;
  device = DeviceInputs(inputs);
  EXPECT_TRUE(!device->trains && !device->updates && device->serves);
  inputs.mode = LearnerMode::kPretrain;
  inputs.config.mutable_learner()->set_world_size(2);
  inputs.config.mutable_lora()->set_rank(2);
  inputs.config.mutable_lora()->set_alpha(4);
  inputs.config.mutable_lora()->add_target_modules("o_proj");
  device = DeviceInputs(inputs);
  EXPECT_TRUE(device->trains && !device->updates && !device->serves);
  EXPECT_GT(device->staged_bytes, 0u);
  const ModelConfig& model = inputs.model;
  EXPECT_EQ(device->adapter_elements, model.num_layers * 2 * (model.hidden_size + model.num_heads * model.head_dim));
  inputs.config.mutable_lora()->set_target_modules(0, "c_proj");
  EXPECT_EQ(DeviceInputs(inputs).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(MemoryPlanTest, DevicesAreInTheJsonWhereThereAreAny) {
  const auto plan = PlanMemory(SomeInputs());
  ASSERT_TRUE(plan.ok()) << plan.status();
  DevicePlan devices;
  EXPECT_EQ(plan->Json(&devices), plan->Json());
  devices.devices.push_back({.device = 1, .name = "GPU", .free_bytes = 7, .total_bytes = 8, .processes = {}});
  EXPECT_NE(plan->Json(&devices).find(R"("devices":[{"device":1,"name":"GPU","bytes":0,"free_bytes":7)"),
            std::string::npos)
      << plan->Json(&devices);
}

}  // namespace
}  // namespace lockstep
