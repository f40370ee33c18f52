#include "engine/model/routing.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "engine/model/test_util.h"

namespace lockstep {
namespace {

ModelConfig Mixture(int64_t experts, int64_t top_k) {
  ModelConfig config = testing::SmallConfig();
  config.num_layers = 4;
  config.num_experts = experts;
  config.experts_per_token = top_k;
  config.mlp_only_layers = {1};
  return config;
}

TEST(Routing, ARowHasTheLayersWithExpertsAlone) {
  EXPECT_EQ(RoutingShape(Mixture(60, 4)).layers, 3);
  EXPECT_EQ(RoutingShape(Mixture(60, 4)).row_bytes(), 12u);
  EXPECT_EQ(RoutingShape(Mixture(256, 4)).row_bytes(), 12u);
  EXPECT_EQ(RoutingShape(Mixture(257, 4)).row_bytes(), 24u);
  EXPECT_EQ(RoutingShape(Mixture(0, 0)).row_bytes(), 0u);
  EXPECT_EQ(RoutingShape(testing::SmallConfig()).layers, 0);
}

TEST(Routing, IdsOfOneAndTwoBytesComeBack) {
  for (const int32_t experts : {256, 4096}) {
    const RoutingShape shape(Mixture(experts, 3));
    std::string row(shape.row_bytes(), '\0');
    const std::vector<int32_t> first = {0, 1, 2}, last = {7, experts - 2, experts - 1};
    PutExperts(shape, first.data(), 0, row.data());
    PutExperts(shape, last.data(), 1, row.data());
    PutExperts(shape, first.data(), 2, row.data());
    std::vector<int32_t> read(3);
    GetExperts(shape, row.data(), 1, read.data());
    EXPECT_EQ(read, last);
    GetExperts(shape, row.data(), 2, read.data());
    EXPECT_EQ(read, first);
    EXPECT_TRUE(CheckRouting(shape, row).ok());
  }
}

TEST(Routing, WhatNoRouterCanHaveChosenIsRefused) {
  const RoutingShape shape(Mixture(4, 2));
  const auto message = [&](std::string_view bytes) { return std::string(CheckRouting(shape, bytes).message()); };
  const std::string good("\0\1\1\3\2\3", 6);
  EXPECT_TRUE(CheckRouting(shape, "").ok());
  EXPECT_TRUE(CheckRouting(shape, good + good).ok());
  EXPECT_EQ(message(good + "\1"), "routing of 7 bytes is not whole rows of 6 (3 layers, 2 of 4 experts)");
  EXPECT_EQ(message(good + std::string("\0\1\1\4\2\3", 6)), "routing row 1, layer 1: expert 4, the model has 4");
  EXPECT_EQ(message(std::string("\0\1\3\3\2\3", 6)), "routing row 0, layer 1: expert 3 after 3; ids ascend");
  EXPECT_EQ(message(std::string("\1\0\1\3\2\3", 6)), "routing row 0, layer 0: expert 0 after 1; ids ascend");
  EXPECT_EQ(CheckRouting(RoutingShape(), "x").message(), "routing of a model without experts");
}

}  // namespace
}  // namespace lockstep
