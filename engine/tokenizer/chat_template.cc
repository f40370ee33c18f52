#include "engine/tokenizer/chat_template.h"

#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/json.h"
#include "engine/base/process.h"
#include "engine/tokenizer/jinja_ast.h"
#include "engine/tokenizer/jinja_interpreter.h"
#include "engine/tokenizer/tokenizer.h"

namespace lockstep {
namespace {

using OrderedJson = nlohmann::ordered_json;
using jinja::Budget;
using jinja::Value;
using Variables = std::vector<std::pair<std::string, Value>>;

constexpr uint64_t kMaxTemplateBytes = 1 << 20;
constexpr uint64_t kMaxConfigBytes = 16 << 20;
constexpr const char* kWayOut = "; data.prompt_template can give the prompt's text instead";

absl::Status Bad(const std::string& path, std::string_view message) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", std::string(message)));
}

// Depth is bounded by ParseJson's limit, which the text has passed.
Value FromJson(Budget& budget, const OrderedJson& json) {
  if (budget.failed() || json.is_null()) return Value::Of(jinja::None{});
  if (json.is_boolean()) return Value::Of(json.get<bool>());
  if (json.is_number_unsigned() && json.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
    budget.Fail("a number of the variables is beyond 64 bits");
    return Value();
  }
  if (json.is_number_integer()) return Value::Of(json.get<int64_t>());
  if (json.is_number()) return Value::Of(json.get<double>());
  if (json.is_string()) return MakeText(budget, json.get<std::string>());
  if (json.is_array()) {
    std::vector<Value> items;
    for (const OrderedJson& item : json) items.push_back(FromJson(budget, item));
    return MakeList(budget, std::move(items));
  }
  std::vector<std::pair<Value, Value>> items;
  for (const auto& [key, value] : json.items()) {
    Value name = MakeText(budget, key);
    items.emplace_back(std::move(name), FromJson(budget, value));
  }
  return MakeDict(budget, std::move(items));
}

absl::StatusOr<OrderedJson> ParseOrdered(std::string_view text, const std::string& path) {
  const auto checked = ParseJson(text, path);  // depth, doubled keys, syntax
  if (!checked.ok()) return checked.status();
  if (!checked->is_object()) return Bad(path, "must be a JSON object");
  return OrderedJson::parse(text, nullptr, /*allow_exceptions=*/false);
}

// The special tokens that a template may name, of tokenizer_config.json's keys.
OrderedJson SpecialTokens(const OrderedJson& config) {
  OrderedJson tokens = OrderedJson::object();
  for (const char* key : {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}) {
    const auto it = config.find(key);
    if (it == config.end()) continue;
    if (it->is_string()) tokens[key] = *it;
    if (it->is_object() && it->contains("content") && (*it)["content"].is_string()) tokens[key] = (*it)["content"];
  }
  return tokens;
}

// chat_template of tokenizer_config.json; NOT_FOUND without one.
absl::StatusOr<std::string> TemplateOf(const OrderedJson& config, const std::string& path) {
  const auto it = config.find("chat_template");
  if (it == config.end() || it->is_null()) return absl::NotFoundError(absl::StrCat(path, " has no chat_template"));
  if (it->is_string()) return it->get<std::string>();
  if (it->is_array()) {
    for (const OrderedJson& item : *it) {
      if (!item.is_object() || !item.contains("name") || item["name"] != "default") continue;
      if (item.contains("template") && item["template"].is_string()) return item["template"].get<std::string>();
    }
    return Bad(path, "chat_template is a list without a template named \"default\"");
  }
  return Bad(path, "chat_template must be a string or a list of named templates");
}

}  // namespace

struct ChatTemplate::Impl {
  std::string path;
  jinja::Statement::Body body;
  OrderedJson special_tokens;

  absl::StatusOr<std::string> Render(const OrderedJson& variables, const std::optional<std::tm>& now,
                                     const ChatTemplateLimits& limits) const;
};

absl::StatusOr<std::string> ChatTemplate::Impl::Render(const OrderedJson& variables, const std::optional<std::tm>& now,
                                                       const ChatTemplateLimits& limits) const {
  Budget budget(limits.steps, limits.value_bytes);
  // transformers always passes tools and documents, none by default; what is given later wins.
  Variables values = {{"tools", Value::Of(jinja::None{})}, {"documents", Value::Of(jinja::None{})}};
  for (const OrderedJson* source : {&special_tokens, &variables}) {
    for (const auto& [key, value] : source->items()) values.emplace_back(key, FromJson(budget, value));
  }
  auto text = jinja::RunTemplate(body, values, now, {limits.steps, limits.value_bytes, limits.output_bytes}, &budget);
  if (text.ok()) return text;
  return Bad(path, absl::StrCat("chat template ", std::string(text.status().message()), kWayOut));
}

ChatTemplate::ChatTemplate(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ChatTemplate::~ChatTemplate() = default;

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Parse(std::string_view source, const std::string& path,
                                                                  std::string_view special_tokens_json) {
  if (source.size() > kMaxTemplateBytes) {
    return Bad(path, absl::StrCat("a chat template of ", source.size(), " bytes, the limit is ", kMaxTemplateBytes));
  }
  if (ToValidUtf8(source) != source) return Bad(path, "the chat template is not UTF-8");
  auto special_tokens = ParseOrdered(special_tokens_json, path);
  if (!special_tokens.ok()) return special_tokens.status();
  auto body = jinja::ParseTemplate(source);
  if (!body.ok()) return Bad(path, absl::StrCat("chat template ", std::string(body.status().message()), kWayOut));
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  impl->body = *std::move(body);
  impl->special_tokens = *std::move(special_tokens);
  return std::unique_ptr<ChatTemplate>(new ChatTemplate(std::move(impl)));
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Load(const std::string& dir) {
  const std::string config_path = dir + "/tokenizer_config.json";
  OrderedJson config = OrderedJson::object();
  const absl::StatusOr<std::string> config_text = ReadFile(config_path, kMaxConfigBytes);
  if (!config_text.ok() && !absl::IsNotFound(config_text.status())) return config_text.status();
  if (config_text.ok()) {
    auto parsed = ParseOrdered(*config_text, config_path);
    if (!parsed.ok()) return parsed.status();
    config = *std::move(parsed);
  }
  std::string path = dir + "/chat_template.jinja";
  absl::StatusOr<std::string> source = ReadFile(path, kMaxTemplateBytes);
  if (absl::IsNotFound(source.status())) {
    path = config_path;
    source = TemplateOf(config, config_path);
  }
  if (absl::IsNotFound(source.status())) {
    return absl::NotFoundError(absl::StrCat(dir,
                                            " has no chat template (chat_template.jinja, or chat_template of "
                                            "tokenizer_config.json)",
                                            kWayOut));
  }
  if (!source.ok()) return source.status();
  return Parse(*source, path, SpecialTokens(config).dump(-1, ' ', false, OrderedJson::error_handler_t::replace));
}

absl::StatusOr<std::string> ChatTemplate::RenderUser(std::string_view content) const {
  OrderedJson variables;
  variables["messages"] = OrderedJson::array({{{"role", "user"}, {"content", ToValidUtf8(content)}}});
  variables["add_generation_prompt"] = true;
  return impl_->Render(variables, std::nullopt, {});
}

absl::StatusOr<std::string> ChatTemplate::RenderJson(std::string_view variables, const std::optional<std::tm>& now,
                                                     const ChatTemplateLimits& limits) const {
  const auto parsed = ParseOrdered(variables, "variables");
  if (!parsed.ok()) return parsed.status();
  return impl_->Render(*parsed, now, limits);
}

}  // namespace lockstep
