#include "engine/tensor/tensor.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "gtest/gtest.h"

namespace lockstep {
namespace {

TEST(Buffer, IsAlignedAndZeroAtAnySize) {
  for (const size_t bytes : {size_t{1}, size_t{63}, size_t{64}, size_t{4097}, (size_t{5} << 20) + 3}) {
    Buffer buffer(bytes);
    EXPECT_EQ(buffer.bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
    const uint8_t* data = buffer.As<uint8_t>();
    EXPECT_TRUE(std::all_of(data, data + bytes, [](uint8_t byte) { return byte == 0; }));
  }
}

TEST(Buffer, MovesItsBytesAndAnEmptyOneHasNone) {
  EXPECT_EQ(Buffer().data(), nullptr);
  EXPECT_EQ(Buffer(0).data(), nullptr);
  Buffer source(8);
  source.As<uint8_t>()[3] = 7;
  const void* data = source.data();
  const Buffer target = std::move(source);
  EXPECT_EQ(target.data(), data);
  EXPECT_EQ(target.bytes(), 8u);
  EXPECT_EQ(target.As<uint8_t>()[3], 7);
}

TEST(Tensor, RowsAndColsViewTheSameBytes) {
  uint16_t data[3 * 5] = {};
  const Tensor all(data, DType::kF16, 3, 4, 5);
  EXPECT_EQ(all.Row(2), data + 10);
  const Tensor part = all.Rows(1, 2).Cols(2, 2);
  EXPECT_EQ(part.data, data + 7);
  EXPECT_EQ(part.rows, 2);
  EXPECT_EQ(part.cols, 2);
  EXPECT_EQ(part.Row(1), data + 12);
}

}  // namespace
}  // namespace lockstep
