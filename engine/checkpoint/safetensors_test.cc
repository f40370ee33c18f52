#include "engine/checkpoint/safetensors.h"

#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/process.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lockstep {
namespace {

using ::testing::HasSubstr;

std::string TempDir() {
  std::string pattern = ::testing::TempDir() + "/safetensors_test.XXXXXX";
  return mkdtemp(pattern.data());
}

std::string FileBytes(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + data;
}

absl::Status OpenBytes(const std::string& bytes) {
  const std::string path = TempDir() + "/m.safetensors";
  std::ofstream(path, std::ios::binary) << bytes;
  const auto file = SafetensorsFile::Open(path);
  return file.status();
}

TEST(Safetensors, RoundTripsInEveryDTypeWithMetadata) {
  const std::vector<float> values = {0.0f, -0.0f, 1.5f, -65504.0f, 6e-8f, 0.333251953125f};
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const std::string path = TempDir() + "/m.safetensors";
    ASSERT_TRUE(WriteSafetensors(path,
                                 {{"w", dtype, {2, 3}, values.data()},
                                  {"b", DType::kF32, {6}, values.data()},
                                  {"empty", dtype, {0, 7}, nullptr},
                                  {"scalar", dtype, {}, values.data() + 2}},
                                 {{"format", "pt"}})
                    .ok());
    const auto file = SafetensorsFile::Open(path);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ((*file)->metadata().at("format"), "pt");
    EXPECT_EQ((*file)->tensors().size(), 4u);
    const SafetensorsEntry* entry = (*file)->Find("w");
    ASSERT_NE(entry, nullptr);
    EXPECT_EQ(entry->shape, (std::vector<int64_t>{2, 3}));
    std::vector<float> read(6);
    ASSERT_TRUE((*file)->ReadFloats(*entry, 0, 6, read.data()).ok());
    for (size_t i = 0; i < 6; ++i) EXPECT_EQ(read[i], RoundTo(dtype, values[i]));
    ASSERT_TRUE((*file)->ReadFloats(*(*file)->Find("b"), 2, 3, read.data()).ok());
    EXPECT_EQ(read[1], -65504.0f);
    ASSERT_TRUE((*file)->ReadFloats(*(*file)->Find("scalar"), 0, 1, read.data()).ok());
    EXPECT_EQ(read[0], 1.5f);
    EXPECT_EQ((*file)->Find("none"), nullptr);
  }
}

TEST(Safetensors, RefusesToReadIntegersAsFloats) {
  const std::string path = TempDir() + "/m.safetensors";
  std::ofstream(path, std::ios::binary) << FileBytes(R"({"n":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}})",
                                                     std::string(8, 'x'));
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  float out = 0;
  EXPECT_EQ((*file)->ReadFloats(*(*file)->Find("n"), 0, 1, &out).message(),
            path + ": tensor \"n\" has dtype I64; F32, F16 and BF16 work");
}

struct Hostile {
  std::string header;
  size_t data_bytes;
  const char* message;
};

class HostileHeaderTest : public ::testing::TestWithParam<Hostile> {};

TEST_P(HostileHeaderTest, IsRefusedInOneLine) {
  const absl::Status status = OpenBytes(FileBytes(GetParam().header, std::string(GetParam().data_bytes, '\1')));
  ASSERT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  const std::string message(status.message());
  EXPECT_THAT(message, HasSubstr("m.safetensors: "));
  EXPECT_THAT(message, HasSubstr(GetParam().message));
  EXPECT_EQ(message.find('\n'), std::string::npos);
  EXPECT_LT(message.size(), 500u);
}

std::string One(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return absl::StrCat("{\"a\":{\"dtype\":", dtype, ",\"shape\":", shape, ",\"data_offsets\":", offsets, "}}");
}

std::string Two(const std::string& a, const std::string& b) {
  return absl::StrCat(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":)", a,
                      R"(},"b":{"dtype":"F32","shape":[1],"data_offsets":)", b, "}}");
}

INSTANTIATE_TEST_SUITE_P(
    Headers, HostileHeaderTest,
    ::testing::Values(
        Hostile{"", 0, "header must begin with"},     //
        Hostile{"[]", 0, "header must begin with"},   //
        Hostile{" {}", 0, "header must begin with"},  //
        Hostile{"{}\n", 0, "header must end with"},   //

        Hostile{"{", 0, "header must end with"},                                                          //
        Hostile{"{\"a\":}", 0, "not valid JSON"},                                                         //
        Hostile{"{}{}", 0, "not valid JSON"},                                                             //
        Hostile{"{\"\xff\":1}", 0, "not valid JSON"},                                                     //
        Hostile{"{\"a\":" + std::string(1000, '[') + "}", 0, "nested deeper than 32"},                    //
        Hostile{"{\"a\":1}", 0, "tensor \"a\" is 1, must be an object"},                                  //
        Hostile{"{\"a\":{}}", 0, "has dtype null"},                                                       //
        Hostile{One("\"F33\"", "[1]", "[0,4]"), 4, "has dtype \"F33\", which is not one of the format"},  //
        Hostile{One("7", "[1]", "[0,4]"), 4, "has dtype 7"},                                              //
        Hostile{One("\"F32\"", "3", "[0,4]"), 4, "has shape 3"},                                          //
        Hostile{One("\"F32\"", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4, "at most 8 dimensions"},               //
        Hostile{One("\"F32\"", "[-1]", "[0,4]"), 4, "has dimension -1"},                                  //
        Hostile{One("\"F32\"", "[1.5]", "[0,4]"), 4, "has dimension 1.5"},                                //
        Hostile{One("\"F32\"", "[18446744073709551615]", "[0,4]"), 4, "has dimension 18446744073709551615"},
        Hostile{One("\"F32\"", "[1e30]", "[0,4]"), 4, "has dimension"},
        Hostile{One("\"F32\"", "[4294967296,4294967296]", "[0,0]"), 0, "product exceeds 2^63-1"},
        Hostile{One("\"F32\"", "[0,4294967296,4294967296,4294967296]", "[0,4]"), 4, "needs 0 bytes"},
        Hostile{One("\"F32\"", "[2305843009213693952]", "[0,0]"), 0, "size in bits beyond 2^63-1"},
        Hostile{One("\"F4\"", "[1]", "[0,1]"), 1, "4 bits, which is no whole number of bytes"},
        Hostile{One("\"F32\"", "[1]", "[0,5]"), 5, "needs 4 bytes by its shape and dtype, its data_offsets span 5"},
        Hostile{One("\"F32\"", "[1]", "[4,0]"), 4, "data_offsets 4 to 0, must ascend"},
        Hostile{One("\"F32\"", "[1]", "[0,4]"), 3, "must ascend within the file's 3 data bytes"},
        Hostile{One("\"F32\"", "[1]", "[0,18446744073709551615]"), 4, "must ascend within"},
        Hostile{One("\"F32\"", "[1]", "[-4,0]"), 4, "must be two integers of 0 or more"},
        Hostile{One("\"F32\"", "[1]", "[0,4,8]"), 4, "must be two integers"},
        Hostile{One("\"F32\"", "[1]", "[0,\"4\"]"), 4, "must be two integers"},
        Hostile{One("\"F32\"", "[1]", "[0,4]"), 5, "tensors end at 4, the file has 5 data bytes"},
        Hostile{One("\"F32\"", "[1]", "[4,8]"), 8, "begins at 4, must at 0 (a hole)"},
        Hostile{Two("[0,4]", "[0,4]"), 4, "tensor \"b\" begins at 0, must at 4 (an overlap)"},
        Hostile{Two("[0,4]", "[2,6]"), 6, "begins at 2, must at 4"},
        Hostile{Two("[0,4]", "[8,12]"), 12, "begins at 8, must at 4 (a hole)"},
        Hostile{
            R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
            4, "key \"a\" occurs twice"},
        Hostile{R"({"a":{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}})", 4,
                "key \"dtype\" occurs twice"},
        Hostile{R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", 4, "unknown key \"x\""},
        Hostile{R"({"__metadata__":{"a":1}})", 0, "__metadata__ \"a\" is 1, must be a string"},
        Hostile{R"({"__metadata__":[]})", 0, "__metadata__ is an array of 0"},
        Hostile{"{\"" + std::string(2000, 'n') + R"(":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4,
                "a tensor name of 2000 bytes, the limit is 1024"}));

TEST(Safetensors, RefusesBadLengthsWithoutAllocatingThem) {
  EXPECT_THAT(std::string(OpenBytes("1234567").message()), HasSubstr("is 7 bytes long"));
  EXPECT_THAT(std::string(OpenBytes(std::string(8, '\xff')).message()),
              HasSubstr("header of 18446744073709551615 bytes, the limit is 100000000"));
  std::string bytes = FileBytes("{}", "");
  bytes[0] = 100;
  EXPECT_THAT(std::string(OpenBytes(bytes).message()), HasSubstr("header of 100 bytes, the file has 2"));
}

// Every prefix of a good file is refused: inside the length, the header, and each tensor's data.
TEST(Safetensors, RefusesEveryTruncation) {
  const std::string dir = TempDir();
  const std::vector<float> values(40, 1.25f);
  ASSERT_TRUE(
      WriteSafetensors(dir + "/good",
                       {{"a", DType::kF32, {4, 5}, values.data()}, {"b", DType::kF16, {20}, values.data() + 20}},
                       {{"format", "pt"}})
          .ok());
  const std::string bytes = ReadFile(dir + "/good").value();
  ASSERT_TRUE(OpenBytes(bytes).ok());
  for (size_t length = 0; length < bytes.size(); ++length) {
    std::ofstream(dir + "/cut", std::ios::binary) << bytes.substr(0, length);
    EXPECT_FALSE(SafetensorsFile::Open(dir + "/cut").ok()) << length;
  }
}

// A flip of any header bit is refused or leaves a file that still tiles; never a crash or a read outside.
TEST(Safetensors, SurvivesEveryBitFlipOfTheHeader) {
  const std::string dir = TempDir();
  const std::vector<float> values(8, 1.0f);
  ASSERT_TRUE(WriteSafetensors(dir + "/good", {{"a", DType::kF32, {2, 4}, values.data()}}, {}).ok());
  const std::string bytes = ReadFile(dir + "/good").value();
  std::vector<float> out(64);
  for (size_t bit = 0; bit < (bytes.size() - 32) * 8; ++bit) {
    std::string flipped = bytes;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    std::ofstream(dir + "/flip", std::ios::binary) << flipped;
    const auto file = SafetensorsFile::Open(dir + "/flip");
    if (!file.ok()) continue;
    for (const auto& [name, entry] : (*file)->tensors()) {
      ASSERT_LE(entry.num_elements, 32);
      (void)(*file)->ReadFloats(entry, 0, entry.num_elements, out.data());
    }
  }
}

// A header that asks for much more than its size in memory must not get it. 512 MiB of address space are the bound.
TEST(Safetensors, AManyTensorHeaderStaysWithinItsMemory) {
  std::string header = "{";
  for (int i = 0; i < 50000; ++i) {
    absl::StrAppend(&header, i == 0 ? "" : ",", "\"", i, R"(":{"dtype":"F32","shape":[0],"data_offsets":[0,0]})");
  }
  header += "}";
  rusage before{}, after{};
  getrusage(RUSAGE_SELF, &before);
  EXPECT_TRUE(OpenBytes(FileBytes(header, "")).ok());
  getrusage(RUSAGE_SELF, &after);
  EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 512 * 1024);
}

TEST(Safetensors, AFailedWriteLeavesTheOldFile) {
  const std::string dir = TempDir();
  const std::vector<float> values(100000, 1.0f);
  ASSERT_TRUE(WriteSafetensors(dir + "/m", {{"a", DType::kF32, {2}, values.data()}}, {}).ok());
  const std::string before = ReadFile(dir + "/m").value();
  rlimit old{};
  getrlimit(RLIMIT_FSIZE, &old);
  signal(SIGXFSZ, SIG_IGN);
  const rlimit small = {100000, old.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const absl::Status status = WriteSafetensors(dir + "/m", {{"a", DType::kF32, {100000}, values.data()}}, {});
  setrlimit(RLIMIT_FSIZE, &old);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("cannot write " + dir + "/m.tmp."));
  EXPECT_EQ(ReadFile(dir + "/m").value(), before);
  EXPECT_NE(access(absl::StrCat(dir, "/m.tmp.", getpid()).c_str(), F_OK), 0);
}

}  // namespace
}  // namespace lockstep
