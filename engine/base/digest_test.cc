#include "engine/base/digest.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace lockstep {
namespace {

std::vector<char> RandomBytes(size_t bytes) {
  std::mt19937 random(1);
  std::vector<char> data(bytes);
  for (char& byte : data) byte = static_cast<char>(random());
  return data;
}

TEST(DigestTest, BlocksAreTheDigestOfTheListOfTheBlocksDigests) {
  for (const size_t bytes : {0, 1, 31, 4095, 4096, 4097, 3 * 4096, 50'001}) {
    const std::vector<char> data = RandomBytes(bytes);
    std::vector<uint64_t> list;
    for (size_t at = 0; at < bytes; at += 4096) {
      list.push_back(Digest(data.data() + at, std::min<size_t>(4096, bytes - at)));
    }
    EXPECT_EQ(list.size(), DigestBlocks(bytes));
    EXPECT_EQ(BlockDigest(data.data(), bytes), Digest(list.data(), list.size() * sizeof(uint64_t))) << bytes;
  }
}

TEST(DigestTest, EveryBitAndTheLengthCount) {
  std::vector<char> data = RandomBytes(9'000);
  const uint64_t whole = BlockDigest(data.data(), data.size());
  for (size_t at = 0; at < data.size(); at += 37) {
    data[at] ^= static_cast<char>(1 << (at % 8));
    EXPECT_NE(BlockDigest(data.data(), data.size()), whole) << at;
    data[at] ^= static_cast<char>(1 << (at % 8));
  }
  EXPECT_NE(BlockDigest(data.data(), data.size() - 1), whole);
  data.push_back(0);
  EXPECT_NE(BlockDigest(data.data(), data.size()), whole);
}

TEST(DigestTest, ABlockInAnothersPlaceIsSeen) {
  std::vector<char> data = RandomBytes(3 * kDigestBlockBytes);
  const uint64_t whole = BlockDigest(data.data(), data.size());
  std::swap_ranges(data.begin(), data.begin() + kDigestBlockBytes, data.begin() + 2 * kDigestBlockBytes);
  EXPECT_NE(BlockDigest(data.data(), data.size()), whole);
}

}  // namespace
}  // namespace lockstep
