// Device operations, emulated, against the model's code that has them on the host: copy-on-write of a KV page, and
// recorded routings.
#include <cstring>
#include <random>
#include <string>

#include "engine/kernels/cuda/emulation_test_util.h"
#include "engine/kernels/cuda/kv_pages.h"
#include "engine/kernels/cuda/moe.h"
#include "engine/model/decoder.h"
#include "engine/model/routing.h"

namespace lockstep {
namespace {

ModelConfig Config(int64_t layers, int64_t kv_heads, int64_t head_dim) {
  ModelConfig config;
  config.num_layers = layers;
  config.num_kv_heads = kv_heads;
  config.head_dim = head_dim;
  return config;
}

size_t HalfLayerBytes(const ModelConfig& config, DType dtype, int64_t pages) {
  return static_cast<size_t>(pages * config.num_kv_heads * config.head_dim * kPageTokens) * DTypeSize(dtype);
}

void Fill(const ModelConfig& config, DType dtype, const KvStorage& cache) {
  std::mt19937 random(1);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const KvPages pages = cache.layer(layer);
    for (void* half : {pages.keys, pages.values}) {
      auto* bytes = static_cast<unsigned char*>(half);
      for (size_t i = 0; i < HalfLayerBytes(config, dtype, pages.num_pages); ++i) {
        bytes[i] = static_cast<unsigned char>(random());
      }
    }
  }
}

// All layers in one piece, [layer][keys, values][page].
std::vector<char> AllLayers(const ModelConfig& config, DType dtype, const KvStorage& cache) {
  const size_t half = HalfLayerBytes(config, dtype, cache.num_pages());
  std::vector<char> bytes;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const KvPages pages = cache.layer(layer);
    for (const void* part : {pages.keys, pages.values}) {
      bytes.insert(bytes.end(), static_cast<const char*>(part), static_cast<const char*>(part) + half);
    }
  }
  return bytes;
}

TEST(CudaKvPagesTest, CopyKvPageDoesWhatKvStorageDoes) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const auto& config : {Config(1, 1, 2), Config(3, 2, 6), Config(2, 3, 64)}) {
      for (const int64_t tokens : {0, 1, 7, 15, 16}) {
        KvStorage cache(config, dtype, 5);
        Fill(config, dtype, cache);
        const std::vector<char> before = AllLayers(config, dtype, cache);
        cache.CopyPage(1, 4, tokens);
        const std::vector<char> expected = AllLayers(config, dtype, cache);
        EXPECT_EQ(expected == before, tokens == 0);
        const size_t half = HalfLayerBytes(config, dtype, 5);
        cuda::InEveryOrder([&] {
          std::vector<char> device = before;
          const cuda::KvLayers layers = {
              dtype,         config.num_kv_heads, config.head_dim, 5, config.num_layers, static_cast<int64_t>(2 * half),
              device.data(), device.data() + half};
          ASSERT_EQ(cuda::CopyKvPage(layers, 1, 4, tokens, {}), cudaSuccess);
          EXPECT_TRUE(device == expected) << tokens << " tokens of " << DTypeName(dtype);
          ASSERT_EQ(cuda::CopyKvPage(layers, 4, 4, tokens, {}), cudaSuccess);
          EXPECT_TRUE(device == expected);
        });
      }
    }
  }
}

TEST(CudaKvPagesDeathTest, APageThatIsNotThereIsSaidSo) {
  const cuda::KvLayers layers = {DType::kF16, 1, 2, 5, 1, 0, nullptr, nullptr};
  EXPECT_DEATH(static_cast<void>(cuda::CopyKvPage(layers, 0, 5, 1, {})), "out of range");
  EXPECT_DEATH(static_cast<void>(cuda::CopyKvPage(layers, 0, 1, 17, {})), "more tokens");
}

RoutingShape Shape(int64_t layers, int64_t top_k, int64_t experts) {
  RoutingShape shape;
  shape.layers = layers;
  shape.top_k = top_k;
  shape.num_experts = experts;
  return shape;
}

// Ascending different experts of a token; a small step makes two tokens often equal.
std::vector<int32_t> Ascending(const RoutingShape& shape, int64_t tokens, uint32_t seed) {
  std::mt19937 random(seed);
  const auto step = static_cast<uint32_t>(shape.num_experts / shape.top_k);
  std::vector<int32_t> experts;
  for (int64_t t = 0; t < tokens; ++t) {
    const bool usual = random() % 3 == 0;
    for (int64_t j = 0; j < shape.top_k; ++j) {
      experts.push_back(static_cast<int32_t>(j * step + (usual ? step - 1 : random() % step)));
    }
  }
  return experts;
}

class CudaRoutingTest : public testing::TestWithParam<int64_t> {};  // experts: ids of one byte, and of two
INSTANTIATE_TEST_SUITE_P(IdBytes, CudaRoutingTest, testing::Values(8, 256, 257, 1000));

TEST_P(CudaRoutingTest, RecordExpertsWritesWhatPutExpertsWrites) {
  for (const int64_t tokens : {1, 3, 50}) {
    const RoutingShape shape = Shape(3, 4, GetParam());
    std::string expected(static_cast<size_t>(tokens) * shape.row_bytes(), '\x5a');
    const std::string before = expected;
    const std::vector<int32_t> experts = Ascending(shape, tokens, 1);
    for (int64_t t = 0; t < tokens; ++t) {
      PutExperts(shape, experts.data() + t * 4, 1, expected.data() + static_cast<size_t>(t) * shape.row_bytes());
    }
    const cuda::RoutingPlace place = {static_cast<int64_t>(shape.row_bytes()),
                                      static_cast<int64_t>(4 * shape.id_bytes()),
                                      static_cast<int64_t>(shape.id_bytes())};
    cuda::InEveryOrder([&] {
      std::string record = before;
      ASSERT_EQ(cuda::RecordExperts(experts.data(), tokens, 4, place, reinterpret_cast<uint8_t*>(record.data()), {}),
                cudaSuccess);
      EXPECT_EQ(record, expected);
    });
  }
}

// What Decoder::Impl::TakeGivenExperts does.
void Take(const RoutingShape& shape, const std::string& given, const std::vector<uint8_t>& has_given, int64_t layer,
          bool replay, std::vector<int32_t>& experts, cuda::RoutingCounts& counts) {
  std::vector<int32_t> row(static_cast<size_t>(shape.top_k));
  for (size_t t = 0; t < has_given.size(); ++t) {
    if (has_given[t] == 0) continue;
    GetExperts(shape, given.data() + t * shape.row_bytes(), layer, row.data());
    int32_t* chosen = experts.data() + t * row.size();
    ++counts.choices;
    counts.differing += std::equal(row.begin(), row.end(), chosen) ? 0 : 1;
    if (replay) std::copy(row.begin(), row.end(), chosen);
  }
}

TEST_P(CudaRoutingTest, TakeGivenExpertsCountsAndReplaysAsTheDecoderDoes) {
  const RoutingShape shape = Shape(2, 4, GetParam());
  for (const int64_t tokens : {0, 1, 37, 1500}) {
    const std::vector<int32_t> recorded = Ascending(shape, tokens, 1);
    std::string given(static_cast<size_t>(tokens) * shape.row_bytes(), '\0');
    std::vector<uint8_t> has_given(static_cast<size_t>(tokens));
    for (int64_t t = 0; t < tokens; ++t) {
      PutExperts(shape, recorded.data() + t * 4, 1, given.data() + static_cast<size_t>(t) * shape.row_bytes());
      has_given[static_cast<size_t>(t)] = t % 5 == 2 ? 0 : 1;
    }
    const cuda::RoutingPlace place = {static_cast<int64_t>(shape.row_bytes()),
                                      static_cast<int64_t>(4 * shape.id_bytes()),
                                      static_cast<int64_t>(shape.id_bytes())};
    for (const bool replay : {true, false}) {
      const std::vector<int32_t> chosen = Ascending(shape, tokens, 2);
      std::vector<int32_t> expected = chosen;
      cuda::RoutingCounts expected_counts = {100, 10};
      Take(shape, given, has_given, 1, replay, expected, expected_counts);
      if (tokens > 1) {
        EXPECT_GT(expected_counts.differing, 10);
        EXPECT_LT(expected_counts.differing - 10, expected_counts.choices - 100);
      }
      cuda::InEveryOrder([&] {
        std::vector<int32_t> experts = chosen, uncounted = chosen;
        cuda::RoutingCounts counts = {100, 10};
        const auto* bytes = reinterpret_cast<const uint8_t*>(given.data());
        ASSERT_EQ(
            cuda::TakeGivenExperts(bytes, has_given.data(), place, tokens, 4, replay, experts.data(), &counts, {}),
            cudaSuccess);
        ASSERT_EQ(
            cuda::TakeGivenExperts(bytes, has_given.data(), place, tokens, 4, replay, uncounted.data(), nullptr, {}),
            cudaSuccess);
        EXPECT_EQ(experts, expected);
        EXPECT_EQ(uncounted, expected);
        EXPECT_EQ(counts.choices, expected_counts.choices);
        EXPECT_EQ(counts.differing, expected_counts.differing);
      });
    }
  }
}

}  // namespace
}  // namespace lockstep
