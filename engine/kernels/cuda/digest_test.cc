// Digests of blocks, compiled for the CPU: those of engine/base/digest.
#include "engine/kernels/cuda/digest.h"

#include <algorithm>
#include <random>
#include <vector>

#include "engine/base/digest.h"
#include "engine/kernels/cuda/emulation_test_util.h"

namespace lockstep::cuda {
namespace {

constexpr uint64_t kUntouched = 0x5555555555555555;

TEST(DigestTest, EveryBlockHasTheCpusDigestAtAnySizeAndAnyAlignment) {
  std::mt19937 random(1);
  std::vector<uint64_t> memory(60'000 / 8);
  for (uint64_t& word : memory) word = (uint64_t{random()} << 32) | random();
  const char* const begin = reinterpret_cast<const char*>(memory.data());
  for (const size_t offset : {0, 8, 2, 5}) {
    for (const size_t bytes : {0, 1, 7, 8, 31, 32, 33, 287, 4095, 4096, 4097, 8 * 4096, 52'345}) {
      std::vector<uint64_t> expected;
      for (size_t at = 0; at < bytes; at += kDigestBlockBytes) {
        expected.push_back(Digest(begin + offset + at, std::min(kDigestBlockBytes, bytes - at)));
      }
      InEveryOrder([&] {
        std::vector<uint64_t> digests(expected.size() + 1, kUntouched);
        ASSERT_EQ(DigestsOfBlocks(begin + offset, static_cast<int64_t>(bytes), digests.data(), {}), cudaSuccess);
        EXPECT_EQ(digests.back(), kUntouched) << bytes;
        digests.pop_back();
        EXPECT_EQ(digests, expected) << bytes << " bytes at " << offset;
        EXPECT_EQ(Digest(digests.data(), digests.size() * sizeof(uint64_t)), BlockDigest(begin + offset, bytes));
      });
    }
  }
}

}  // namespace
}  // namespace lockstep::cuda
