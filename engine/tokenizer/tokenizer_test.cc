#include "engine/tokenizer/tokenizer.h"

#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/json.h"
#include "engine/base/process.h"
#include "engine/tokenizer/arithmetic.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lockstep {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

constexpr char kTestdata[] = "engine/tokenizer/testdata/";

std::unique_ptr<Tokenizer> LoadGolden(const std::string& name) {
  const std::string path = kTestdata + name + ".tokenizer.json";
  auto tokenizer = Tokenizer::FromJson(ReadFile(path).value(), path);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

class GoldenTest : public ::testing::TestWithParam<const char*> {};

TEST_P(GoldenTest, EncodesAndDecodesAsHuggingFaceDoes) {
  const auto tokenizer = LoadGolden(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  const std::string path = kTestdata + std::string(GetParam()) + ".cases.json";
  const json cases = ParseJson(ReadFile(path).value(), path).value();
  ASSERT_GT(cases.size(), 60u);
  for (const json& test_case : cases) {
    const auto text = test_case["text"].get<std::string>();
    const auto ids = tokenizer->Encode(text);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, test_case["ids"].get<std::vector<int32_t>>()) << text;
    EXPECT_EQ(ToValidUtf8(tokenizer->Decode(*ids)), test_case["decoded"].get<std::string>()) << text;
  }
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenTest, ::testing::Values("gpt2", "gpt2_prefix", "qwen2", "llama3"));

TEST(Tokenizer, StreamsOnlyWholeCharacters) {
  const auto tokenizer = LoadGolden("gpt2");
  const std::string text = "é 日本 👩‍👧 ok";
  const auto ids = tokenizer->Encode(text);
  ASSERT_TRUE(ids.ok());
  ASSERT_GT(ids->size(), 12u);  // characters are split over tokens
  StreamDecoder decoder(tokenizer.get(), true);
  std::string joined;
  for (const int32_t id : *ids) {
    const std::string part = decoder.Push(id);
    EXPECT_EQ(ToValidUtf8(part), part);
    joined += part;
  }
  EXPECT_EQ(joined + decoder.Finish(), text);
}

TEST(Tokenizer, AStreamCutInsideACharacterEndsInOneReplacement) {
  const auto tokenizer = LoadGolden("gpt2");
  auto ids = tokenizer->Encode("a🦀").value();
  ids.pop_back();
  StreamDecoder decoder(tokenizer.get(), true);
  std::string joined;
  for (const int32_t id : ids) joined += decoder.Push(id);
  EXPECT_EQ(joined, "a");
  EXPECT_EQ(decoder.Finish(), "\xEF\xBF\xBD");
  EXPECT_EQ(decoder.Finish(), "");
}

TEST(Tokenizer, SpecialTokensCanBeLeftOut) {
  const auto tokenizer = LoadGolden("qwen2");
  const auto ids = tokenizer->Encode("hi<|im_end|>").value();
  EXPECT_TRUE(tokenizer->IsSpecial(ids.back()));
  EXPECT_EQ(tokenizer->Decode(ids), "hi<|im_end|>");
  EXPECT_EQ(tokenizer->Decode(ids, true), "hi");
  EXPECT_EQ(tokenizer->Decode({-1, 1 << 30}), "");
}

TEST(Tokenizer, InvalidUtf8IsReadAsReplacementCharacters) {
  EXPECT_EQ(ToValidUtf8("a\xC3"), "a\xEF\xBF\xBD");
  EXPECT_EQ(ToValidUtf8("\xF0\x9F\x98x"), "\xEF\xBF\xBDx");                        // one maximal part
  EXPECT_EQ(ToValidUtf8("\xC0\x80"), "\xEF\xBF\xBD\xEF\xBF\xBD");                  // overlong
  EXPECT_EQ(ToValidUtf8("\xED\xA0\x80"), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");  // surrogate
  EXPECT_TRUE(LoadGolden("gpt2")->Encode("\xFF\xFE ok \xC3").ok());
}

TEST(Tokenizer, LongRunsTakeNoQuadraticTime) {
  const auto tokenizer = LoadGolden("gpt2");
  const auto ids = tokenizer->Encode(std::string(1'000'000, 'e') + std::string(1'000'000, ' '));
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(tokenizer->Decode(*ids).size(), 2'000'000u);
}

TEST(Tokenizer, ArithmeticTokenizerHasSmallIdsAndNamesMissingBytes) {
  std::string dir = ::testing::TempDir() + "/arithmetic_tokenizer.XXXXXX";
  ASSERT_NE(mkdtemp(dir.data()), nullptr);
  ASSERT_TRUE(MakeArithmeticTokenizer(dir).ok());
  const auto tokenizer = Tokenizer::Load(dir);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->Encode("0189+").value(), (std::vector<int32_t>{0, 1, 8, 9, 10}));
  const int32_t n = static_cast<int32_t>(std::string(kArithmeticCharacters).size());
  EXPECT_EQ((*tokenizer)->eos_token_id(), n);
  EXPECT_EQ((*tokenizer)->pad_token_id(), n + 1);
  EXPECT_EQ((*tokenizer)->vocab_size(), n + 2);
  EXPECT_EQ((*tokenizer)->Encode("A: 12<|endoftext|>").value().back(), n);
  const absl::Status status = (*tokenizer)->Encode("x").status();
  EXPECT_EQ(status.message(), dir + "/tokenizer.json: the vocabulary has no token for byte \"x\" of the text");
}

TEST(Tokenizer, NamesTheMissingFile) {
  EXPECT_EQ(Tokenizer::Load("/no/such").status().message(),
            "cannot open /no/such/tokenizer.json: No such file or directory");
}

// A small valid file; each hostile case changes one thing.
json Valid() {
  return json::parse(R"({
    "added_tokens": [{"id": 3, "content": "<e>", "special": true}],
    "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}})");
}

struct Hostile {
  const char* pointer;  // JSON pointer of what is replaced
  const char* value;
  const char* message;
};

class HostileTest : public ::testing::TestWithParam<Hostile> {};

TEST_P(HostileTest, IsRefusedInOneLine) {
  json file = Valid();
  ASSERT_TRUE(Tokenizer::FromJson(file.dump(), "t.json").ok());
  file[json::json_pointer(GetParam().pointer)] = json::parse(GetParam().value);
  const absl::Status status = Tokenizer::FromJson(file.dump(), "t.json").status();
  ASSERT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  const std::string message(status.message());
  EXPECT_EQ(message.rfind("t.json: ", 0), 0u) << message;
  EXPECT_THAT(message, HasSubstr(GetParam().message));
  EXPECT_EQ(message.find('\n'), std::string::npos);
  EXPECT_LT(message.size(), 300u);
}

INSTANTIATE_TEST_SUITE_P(
    Files, HostileTest,
    ::testing::Values(
        Hostile{"/model", "7", "has no object \"model\""},
        Hostile{"/model/type", "\"Unigram\"", "model.type is \"Unigram\""},
        Hostile{"/model/type", "3", "type is 3, must be a string"},
        Hostile{"/model/dropout", "0.1", "model.dropout is 0.1"},
        Hostile{"/model/byte_fallback", "true", "byte_fallback"},
        Hostile{"/model/vocab", "[]", "model.vocab must be an object"},
        Hostile{"/model/vocab/a", "-1", "token \"a\" has id -1"},
        Hostile{"/model/vocab/a", "1", "id 1 is used by two tokens"},
        Hostile{"/model/vocab/a", "15999999", "must be an integer below 4144"},
        Hostile{"/model/vocab/a", "18446744073709551615", "must be an integer below 4144"},
        Hostile{"/model/vocab/a", "1.5", "token \"a\" has id 1.5"},
        Hostile{"/model/vocab", "{\"\": 0}", "a token of 0 bytes"},
        Hostile{"/model/merges", "{}", "model.merges must be an array"},
        Hostile{"/model/merges/0", "\"ab\"", "must be two tokens and one space"},
        Hostile{"/model/merges/0", "\"a b c\"", "must be two tokens and one space"},
        Hostile{"/model/merges/0", "[\"a\"]", "must be \"a b\" or"},
        Hostile{"/model/merges/0", "[\"a\", \"z\"]", "merge 0 uses \"z\""},
        Hostile{"/model/merges/0", "[\"b\", \"a\"]", "merge 0 uses \"ba\""},
        Hostile{"/model/merges/0", "[\"aaaaaaaaaaaaaaaaaaaaaaaa\", \"b\"]", "the longest token has 2"},
        Hostile{"/pre_tokenizer", "null", "pre_tokenizer is null"},
        Hostile{"/pre_tokenizer", "{\"type\": \"Whitespace\"}", "pre_tokenizer type \"Whitespace\""},
        Hostile{"/pre_tokenizer", "{\"type\": \"Split\", \"pattern\": {\"Regex\": \"(\"}}",
                "pre_tokenizer pattern at 1"},
        Hostile{"/pre_tokenizer",
                "{\"type\": \"Split\", \"pattern\": {\"Regex\": \"a\"}, \"behavior\": \"Contiguous\"}",
                "behavior Contiguous"},
        Hostile{"/pre_tokenizer", "{\"type\": \"Split\", \"pattern\": {\"Regex\": \"a\"}}", "no ByteLevel step"},
        Hostile{"/normalizer", "{\"type\": \"Lowercase\"}", "normalizer type \"Lowercase\""},
        Hostile{"/decoder", "null", "decoder is null"},
        Hostile{"/decoder", "{\"type\": \"WordPiece\"}", "decoder type"},
        Hostile{"/post_processor", "3", "post_processor is 3, must be an object"},
        Hostile{"/post_processor", "{\"type\": \"BertProcessing\"}", "post_processor type \"BertProcessing\""},
        Hostile{"/post_processor", "{\"type\": \"TemplateProcessing\"}", "needs an array single"},
        Hostile{"/post_processor", "{\"type\": \"TemplateProcessing\", \"single\": []}", "has the text 0 times"},
        Hostile{"/post_processor",
                R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}], "special_tokens": {}})",
                "uses the special token \"<s>\", which special_tokens lacks"},
        Hostile{
            "/post_processor",
            R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
                    "special_tokens": {"<s>": {"ids": [4]}}})",
            "gives \"<s>\" the id 4, must be an integer below 4"},
        Hostile{"/added_tokens", "3", "added_tokens must be an array"},
        Hostile{"/added_tokens/0/id", "1", "id 1 is used by two tokens"},
        Hostile{"/added_tokens/0/content", "\"a\"", "added token \"a\" has id 3, and the vocabulary gives it 0"},
        Hostile{"/added_tokens/0/content", "\"\"", "an added token of 0 bytes"},
        Hostile{"/added_tokens/0/id", "null", "token \"<e>\" has id null"}));

// Valid(), with token 3 before and token 1 behind every text.
json Framed() {
  json file = Valid();
  file["post_processor"] = json::parse(R"({"type": "Sequence", "processors": [
      {"type": "ByteLevel"},
      {"type": "TemplateProcessing",
       "single": [{"SpecialToken": {"id": "<e>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                  {"SpecialToken": {"id": "b", "type_id": 0}}],
       "special_tokens": {"<e>": {"id": "<e>", "ids": [3], "tokens": ["<e>"]},
                          "b": {"id": "b", "ids": [1], "tokens": ["b"]}}}]})");
  return file;
}

TEST(Tokenizer, SpecialTokensGoAroundATextWhereTheyAreAskedFor) {
  const auto tokenizer = Tokenizer::FromJson(Framed().dump(), "t.json").value();
  EXPECT_EQ(tokenizer->Encode("ab").value(), (std::vector<int32_t>{2}));
  EXPECT_EQ(tokenizer->Encode("ab", true).value(), (std::vector<int32_t>{3, 2, 1}));
  EXPECT_EQ(tokenizer->Encode("", true).value(), (std::vector<int32_t>{3, 1}));
}

TEST(Tokenizer, APromptBeginsWithItsSpecialTokensOnce) {
  const auto tokenizer = Tokenizer::FromJson(Framed().dump(), "t.json").value();
  EXPECT_EQ(tokenizer->EncodePrompt("ab").value(), (std::vector<int32_t>{3, 2}));
  EXPECT_EQ(tokenizer->EncodePrompt("<e>ab").value(), (std::vector<int32_t>{3, 2}));
  EXPECT_EQ(tokenizer->EncodePrompt("").value(), (std::vector<int32_t>{3}));
}

TEST(Tokenizer, AddBosTokenOfTokenizerConfigTakesThePostProcessorsPlace) {
  std::string dir = ::testing::TempDir() + "/framed_tokenizer.XXXXXX";
  ASSERT_NE(mkdtemp(dir.data()), nullptr);
  ASSERT_TRUE(WriteFileAtomically(dir + "/tokenizer.json", Framed().dump()).ok());
  const std::vector<std::pair<const char*, std::vector<int32_t>>> cases = {
      {R"({"bos_token": "a", "eos_token": "<e>"})", {3, 2, 1}},
      {R"({"bos_token": "a", "eos_token": "<e>", "add_bos_token": true})", {0, 2}},
      {R"({"bos_token": "a", "eos_token": "<e>", "add_bos_token": true, "add_eos_token": true})", {0, 2, 3}},
      {R"({"bos_token": null, "add_bos_token": true})", {2}},
      {R"({"bos_token": "a", "add_bos_token": false})", {2}},
      {R"({"bos_token": "unknown", "add_bos_token": false})", {2}},
  };
  for (const auto& [config, ids] : cases) {
    ASSERT_TRUE(WriteFileAtomically(dir + "/tokenizer_config.json", config).ok());
    const auto tokenizer = Tokenizer::Load(dir);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_EQ((*tokenizer)->Encode("ab", true).value(), ids) << config;
  }
}

TEST(Tokenizer, RefusesTextThatIsNoJson) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "not valid JSON"},
      {"[]", "must be a JSON object"},
      {"{\"model\": ", "not valid JSON"},
      {"{\"a\": 1, \"a\": 2}", "key \"a\" occurs twice"},
      {std::string(100000, '['), "nested deeper than 32"},
      {"{\"a\": \"\xFF\"}", "not valid JSON"},
      {"{\"a\": 1e999}", "not valid JSON"},
  };
  for (const auto& [text, message] : cases) {
    const absl::Status status = Tokenizer::FromJson(text, "t.json").status();
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
    EXPECT_LT(status.message().size(), 300u);
  }
}

TEST(Tokenizer, EveryTruncationOfAFileIsRefused) {
  const std::string text = Valid().dump();
  for (size_t length = 0; length < text.size(); ++length) {
    EXPECT_FALSE(Tokenizer::FromJson(text.substr(0, length), "t.json").ok()) << length;
  }
}

TEST(Tokenizer, AHostilePatternEndsWithinItsBudget) {
  json file = Valid();
  file["pre_tokenizer"] = json::parse(R"({"type": "Sequence", "pretokenizers": [
      {"type": "Split", "pattern": {"Regex": "(a*)*b|(a|a)*c|(.*)*d"}, "behavior": "Isolated"}, {"type": "ByteLevel"}]})");
  const auto tokenizer = Tokenizer::FromJson(file.dump(), "t.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto ids = (*tokenizer)->Encode(std::string(200, 'a'));
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace lockstep
