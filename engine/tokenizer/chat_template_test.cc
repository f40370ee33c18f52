#include "engine/tokenizer/chat_template.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/base/json.h"
#include "engine/base/process.h"

namespace lockstep {
namespace {

using nlohmann::ordered_json;

absl::StatusOr<std::string> Render(const std::string& source, const std::string& variables = "{}",
                                   const ChatTemplateLimits& limits = {}) {
  const auto parsed = ChatTemplate::Parse(source, "t.jinja");
  if (!parsed.ok()) return parsed.status();
  return (*parsed)->RenderJson(variables, std::nullopt, limits);
}

TEST(ChatTemplate, RendersAsJinja2DoesInTransformers) {
  const std::string path = "engine/tokenizer/testdata/chat_template.cases.json";
  const ordered_json cases = ordered_json::parse(ReadFile(path).value());
  int rendered = 0;
  for (const ordered_json& test_case : cases) {
    const auto name = test_case["name"].get<std::string>();
    const auto text = Render(test_case["template"].get<std::string>(), test_case["variables"].dump());
    if (test_case.contains("error")) {
      EXPECT_FALSE(text.ok()) << name << " made " << *text;
    } else if (text.ok()) {
      EXPECT_EQ(*text, test_case["text"].get<std::string>()) << name;
      ++rendered;
    } else {
      ADD_FAILURE() << name << ": " << text.status();
    }
  }
  EXPECT_GT(rendered, 130);
}

struct Refused {
  const char* source;
  const char* message;
};

TEST(ChatTemplate, WhatIsNotSupportedIsRefusedByName) {
  const std::vector<Refused> cases = {
      {"a\n{% include 'x' %}", "line 2: statement \"include\" is not supported"},
      {"{% call m() %}{% endcall %}", "line 1: statement \"call\" is not supported"},
      {"{{ x | groupby('a') }}", "line 1: filter \"groupby\" is not supported"},
      {"{{ x is filter }}", "line 1: test \"filter\" is not supported"},
      {"{{ 2 ** 3 }}", "line 1: operator \"**\" is not supported"},
      {"{% for x in y recursive %}{% endfor %}", "line 1: loop \"recursive\" is not supported"},
      {"{{ f(*x) }}", "line 1: arguments by * or ** are not supported"},
      {"{% for x in y %}{% macro m() %}{% endmacro %}{% endfor %}", "line 1: a macro inside of a loop or macro is not"},
      {"{{ 'a'.encode() }}", "line 1: method \"encode\" of a str is not supported"},
      {"{{ '%d' % 1 }}", "line 1: formats a str by %, which is not supported"},
      {"{{ joiner() }}", "line 1: function \"joiner\" is not supported"},
      {"{{ [1] | map('groupby') }}", "line 1: filter \"map\" takes attribute= or the name of a supported filter"},
      {"{% for x in [1] %}{{ loop.changed(x) }}{% endfor %}", "line 1: loop.changed is not supported"},
      {"{{ 'a' | trim(length=1) }}", "line 1: argument \"length\" of filter \"trim\" is not supported"},
      {"{{ strftime_now('%Y') }}", "line 1: 'strftime_now' is undefined"},
      {"{{ raise_exception('a\nb') }}", "line 1: the template says: a\\x0ab"},
      {"{{ 99999999999999999999 }}", "line 1: the number 99999999999999999999 is too large"},
      {"{{ 9223372036854775807 + 1 }}", "line 1: computes an int beyond 64 bits"},
      {"\xFF", "the chat template is not UTF-8"},
  };
  for (const Refused& refused : cases) {
    const std::string message(Render(refused.source).status().message());
    EXPECT_EQ(message.rfind("t.jinja: ", 0), 0u) << message;
    EXPECT_NE(message.find(refused.message), std::string::npos) << refused.source << " gave: " << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_LT(message.size(), 300u);
  }
  EXPECT_NE(Render("{% include 'x' %}").status().message().find("data.prompt_template"), std::string::npos);
}

TEST(ChatTemplate, HostileTemplatesEndWithinTheirLimits) {
  const std::string loop = "{% for a in range(100000) %}{% for b in range(100000) %}";
  const std::string ends = "{% endfor %}{% endfor %}";
  std::string doubling =
      "{% set n = namespace(x='ab') %}{% for a in range(100) %}{% set n.x = n.x ~ n.x %}{% endfor %}";
  std::string tree = "{% set n = namespace(x=[1]) %}{% for a in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}";
  std::string deep = "{% set n = namespace(x=[1]) %}{% for a in range(100000) %}{% set n.x = [n.x] %}{% endfor %}";
  std::string nested_loops;
  for (int i = 0; i < 50; ++i) nested_loops += "{% for x in [1, 2] %}";
  for (int i = 0; i < 50; ++i) nested_loops += "{% endfor %}";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {loop + ends, "its limit"},
      {"{% for a in range(9000) %}{% for b in range(9000) %}" + ends, "its limit"},
      {loop + "{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' }}" + ends, "writes more than"},
      {doubling, "makes a str of"},
      {tree + "{{ n.x }}", "its limit"},
      {tree + "{{ n.x == n.x }}", "runs longer than its limit"},
      {tree + "{{ n.x | tojson }}", "its limit"},
      {deep, "nested deeper than 64"},
      {nested_loops, "runs longer than its limit"},
      {"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "runs nested deeper than"},
      {"{{ 'a' * 99999999999 }}", "makes more text than its limit"},
      {"{{ [1] * 99999999999 }}", "makes more text than its limit"},
      {"{{ " + std::string(50000, '(') + "1" + std::string(50000, ')') + " }}", "nested deeper than"},
      {"{{ " + std::string(100000, '-') + "1 }}", "nested deeper than"},
      {"{{ 1" +
           [] {
             std::string s;
             for (int i = 0; i < 5000; ++i) s += "+1";
             return s;
           }() +
           " }}",
       "nested deeper than"},
      {[] {
         std::string s;
         for (int i = 0; i < 5000; ++i) s += "{% if x %}";
         return s;
       }(),
       "nested deeper than"},
      {"{{ 'ab'.replace('', 'x' * 1000000) * 1000 }}", "makes more text than its limit"},
      {"{{ ('a' * 8000000).split('a') | length }}", "its limit"},
      {"{{ range(-9223372036854775807, 9223372036854775807) }}", "makes more than 100000 items"},
      {"{% set n = namespace(x=1) %}{% set n.x = n %}{{ n }}", "prints a Namespace"},
      {std::string(2 << 20, 'x'), "the limit is 1048576"},
  };
  for (const auto& [source, message] : cases) {
    const absl::Status status = Render(source).status();
    EXPECT_NE(std::string(status.message()).find(message), std::string::npos)
        << source.substr(0, 80) << " gave: " << status.message();
  }
}

TEST(ChatTemplate, TheDateIsToldOnlyWhereItIsGiven) {
  const std::string source = "{{ strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' }}";
  const auto parsed = ChatTemplate::Parse(source, "t.jinja");
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ((*parsed)->RenderJson("{}").value(), "26 Jul 2024");
  std::tm now{};
  now.tm_mday = 5;
  now.tm_mon = 2;
  now.tm_year = 125;
  EXPECT_EQ((*parsed)->RenderJson("{}", now).value(), "05 Mar 2025");
}

class FolderTest : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = testing::TempDir() + "/chat_template.XXXXXX";
    ASSERT_NE(mkdtemp(dir_.data()), nullptr);
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }
  void Write(const std::string& name, const std::string& text) { std::ofstream(dir_ + "/" + name) << text; }
  std::string RenderUser(const std::string& content) {
    const auto chat = ChatTemplate::Load(dir_);
    if (!chat.ok()) return std::string(chat.status().message());
    const auto text = (*chat)->RenderUser(content);
    return text.ok() ? *text : std::string(text.status().message());
  }
  std::string dir_;
};

TEST_F(FolderTest, TakesTheTemplateAndSpecialTokensOfTokenizerConfig) {
  Write("tokenizer_config.json", R"({"bos_token": {"content": "<s>", "special": true}, "eos_token": "</s>",
    "pad_token": null, "chat_template": "{{ bos_token }}{{ messages[0].role }}: {{ messages[0].content }}{{ eos_token }}{% if pad_token is not defined and add_generation_prompt %}A:{% endif %}"})");
  EXPECT_EQ(RenderUser("hi"), "<s>user: hi</s>A:");
  EXPECT_EQ(RenderUser("\xFF"), "<s>user: \xEF\xBF\xBD</s>A:");
}

TEST_F(FolderTest, AListHasATemplateNamedDefaultAndAFileComesFirst) {
  Write("tokenizer_config.json", R"({"chat_template": [{"name": "tool_use", "template": "no"},
                                                       {"name": "default", "template": "yes"}]})");
  EXPECT_EQ(RenderUser("hi"), "yes");
  Write("chat_template.jinja", "file {{ messages | length }}\n");
  EXPECT_EQ(RenderUser("hi"), "file 1");
}

TEST_F(FolderTest, AFolderWithoutATemplateSaysWhatCanBeDone) {
  const std::string message = dir_ + " has no chat template (chat_template.jinja, or chat_template of " +
                              "tokenizer_config.json); data.prompt_template can give the prompt's text instead";
  EXPECT_EQ(RenderUser("hi"), message);
  EXPECT_TRUE(absl::IsNotFound(ChatTemplate::Load(dir_).status()));
  Write("tokenizer_config.json", R"({"chat_template": 3})");
  EXPECT_EQ(RenderUser("hi"),
            dir_ + "/tokenizer_config.json: chat_template must be a string or a list of named templates");
}

}  // namespace
}  // namespace lockstep
