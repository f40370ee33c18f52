#include "client/config.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <sys/stat.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <numeric>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "proto/algorithms.h"

namespace lockstep {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// Names that practitioners bring from verl; the right side is ours.
const std::map<std::string, std::string>& Aliases() {
  static const auto* aliases = new std::map<std::string, std::string>{
      {"actor_rollout_ref.model.path", "model.path"},
      {"actor_rollout_ref.model.lora_rank", "lora.rank"},
      {"actor_rollout_ref.model.lora_alpha", "lora.alpha"},
      {"actor_rollout_ref.model.target_modules", "lora.target_modules"},
      {"actor_rollout_ref.rollout.n", "rollout.n"},
      {"actor_rollout_ref.rollout.temperature", "rollout.temperature"},
      {"actor_rollout_ref.rollout.top_p", "rollout.top_p"},
      {"actor_rollout_ref.rollout.top_k", "rollout.top_k"},
      {"actor_rollout_ref.rollout.dtype", "rollout.dtype"},
      {"actor_rollout_ref.rollout.response_length", "rollout.max_tokens"},
      {"actor_rollout_ref.actor.optim.lr", "learner.lr"},
      {"actor_rollout_ref.actor.optim.weight_decay", "learner.weight_decay"},
      {"actor_rollout_ref.actor.grad_clip", "learner.grad_clip"},
      {"actor_rollout_ref.actor.clip_ratio_low", "algorithm.clip_low"},
      {"actor_rollout_ref.actor.clip_ratio_high", "algorithm.clip_high"},
      {"actor_rollout_ref.actor.loss_agg_mode", "algorithm.aggregation"},
      {"actor_rollout_ref.actor.kl_loss_coef", "algorithm.kl_beta"},
      {"actor_rollout_ref.actor.ppo_max_token_len_per_gpu", "learner.micro_batch_tokens"},
      {"actor_rollout_ref.rollout.val_kwargs.n", "eval.n"},
      {"actor_rollout_ref.rollout.val_kwargs.temperature", "eval.temperature"},
      {"actor_rollout_ref.rollout.val_kwargs.top_p", "eval.top_p"},
      {"actor_rollout_ref.rollout.val_kwargs.top_k", "eval.top_k"},
      {"data.train_files", "data.train"},
      {"data.val_files", "data.eval"},
      {"data.train_batch_size", "trainer.prompts_per_step"},
      {"data.max_prompt_length", "data.max_prompt_tokens"},
      {"data.max_response_length", "rollout.max_tokens"},
      {"trainer.save_freq", "trainer.checkpoint_every"},
      {"trainer.test_freq", "trainer.eval_every"},
      {"trainer.total_training_steps", "trainer.max_steps"},
      {"trainer.default_local_dir", "run_dir"},
  };
  return *aliases;
}

int EditDistance(const std::string& a, const std::string& b) {
  std::vector<int> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    int diagonal = row[0];
    row[0] = static_cast<int>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const int next = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = row[j];
      row[j] = next;
    }
  }
  return row[b.size()];
}

void CollectKeys(const Descriptor& descriptor, const std::string& prefix, std::vector<std::string>& keys) {
  for (int i = 0; i < descriptor.field_count(); ++i) {
    const FieldDescriptor* field = descriptor.field(i);
    const std::string path = prefix + field->name();
    if (field->message_type() != nullptr) {
      CollectKeys(*field->message_type(), path + ".", keys);
    } else {
      keys.push_back(path);
    }
  }
}

// The valid key whose name is nearest: by its last part within the section first, then over all keys.
std::string NearestKey(const std::string& path) {
  static const auto* keys = [] {
    auto* all = new std::vector<std::string>;
    CollectKeys(*v1::RunConfig::descriptor(), "", *all);
    return all;
  }();
  std::string best;
  int best_distance = 1 << 20;
  const std::string leaf = path.substr(path.rfind('.') + 1);
  for (const std::string& key : *keys) {
    // A right name in the wrong section is nearer than another name in the right one.
    const int distance = std::min(EditDistance(path, key), EditDistance(leaf, key.substr(key.rfind('.') + 1)) + 1);
    if (distance < best_distance) {
      best_distance = distance;
      best = key;
    }
  }
  return best;
}

class Reader {
 public:
  explicit Reader(std::string name) : name_(std::move(name)) {}

  absl::Status Section(const YAML::Node& node, const std::string& path, v1::RunConfig& root, Message& message) {
    if (node.IsNull()) return absl::OkStatus();
    if (!node.IsMap()) return Error(node, path, "must be a section of `key: value` lines");
    for (const auto& entry : node) {
      if (!entry.first.IsScalar()) return Error(entry.first, path, "a key must be a word");
      const std::string key = path.empty() ? entry.first.Scalar() : absl::StrCat(path, ".", entry.first.Scalar());
      if (absl::Status status = Entry(key, entry.first, entry.second, root); !status.ok()) return status;
    }
    (void)message;
    return absl::OkStatus();
  }

  absl::Status Entry(const std::string& key, const YAML::Node& key_node, const YAML::Node& value, v1::RunConfig& root) {
    const auto alias = Aliases().find(key);
    const std::string target = alias == Aliases().end() ? key : alias->second;
    Message* message = nullptr;
    const FieldDescriptor* field = Find(target, root, message);
    if (field == nullptr) {
      if (value.IsMap() && IsAliasPrefix(key)) return Section(value, key, root, root);
      return Error(key_node, key, absl::StrCat("unknown key; did you mean ", NearestKey(key), "?"));
    }
    if (field->message_type() != nullptr) return Section(value, target, root, root);
    if (!seen_.insert({target, key}).second) {
      return Error(key_node, key, absl::StrCat("is given twice (", seen_[target], "); remove one"));
    }
    return Value(value, key, *field, *message);
  }

 private:
  static bool IsAliasPrefix(const std::string& key) {
    const auto next = Aliases().lower_bound(key + ".");
    return next != Aliases().end() && next->first.compare(0, key.size() + 1, key + ".") == 0;
  }

  static const FieldDescriptor* Find(const std::string& path, v1::RunConfig& root, Message*& message) {
    message = &root;
    const FieldDescriptor* field = nullptr;
    for (const auto& part : absl::StrSplit(path, '.')) {
      if (field != nullptr) {
        if (field->message_type() == nullptr) return nullptr;
        message = message->GetReflection()->MutableMessage(message, field);
      }
      field = message->GetDescriptor()->FindFieldByName(std::string(part.data(), part.size()));
      if (field == nullptr) return nullptr;
    }
    return field;
  }

  absl::Status Value(const YAML::Node& node, const std::string& path, const FieldDescriptor& field, Message& message) {
    if (!field.is_repeated()) return Scalar(node, path, field, message);
    message.GetReflection()->ClearField(&message, &field);
    if (node.IsScalar()) {  // "a,b" on the command line
      for (const auto& part : absl::StrSplit(node.Scalar(), ',', absl::SkipEmpty())) {
        message.GetReflection()->AddString(&message, &field, std::string(part.data(), part.size()));
      }
      return absl::OkStatus();
    }
    if (!node.IsSequence()) return Error(node, path, "must be a list");
    for (const auto& element : node) {
      if (!element.IsScalar()) return Error(element, path, "must be a list of words");
      message.GetReflection()->AddString(&message, &field, element.Scalar());
    }
    return absl::OkStatus();
  }

  absl::Status Scalar(const YAML::Node& node, const std::string& path, const FieldDescriptor& field, Message& message) {
    if (!node.IsScalar())
      return Error(node, path, absl::StrCat("must be ", TypeName(field), ", not a section or list"));
    const std::string& text = node.Scalar();
    const auto* reflection = message.GetReflection();
    const auto wrong = [&] { return Error(node, path, absl::StrCat("'", text, "' is not ", TypeName(field))); };
    switch (field.cpp_type()) {
      case FieldDescriptor::CPPTYPE_STRING:
        reflection->SetString(&message, &field, text);
        return absl::OkStatus();
      case FieldDescriptor::CPPTYPE_BOOL: {
        if (text != "true" && text != "false") return wrong();
        reflection->SetBool(&message, &field, text == "true");
        return absl::OkStatus();
      }
      case FieldDescriptor::CPPTYPE_UINT32: {
        uint32_t value = 0;
        if (!absl::SimpleAtoi(text, &value)) return wrong();
        reflection->SetUInt32(&message, &field, value);
        return absl::OkStatus();
      }
      case FieldDescriptor::CPPTYPE_UINT64: {
        uint64_t value = 0;
        if (!absl::SimpleAtoi(text, &value)) return wrong();
        reflection->SetUInt64(&message, &field, value);
        return absl::OkStatus();
      }
      case FieldDescriptor::CPPTYPE_FLOAT: {
        float value = 0;
        if (!absl::SimpleAtof(text, &value) || !std::isfinite(value)) return wrong();
        reflection->SetFloat(&message, &field, value);
        return absl::OkStatus();
      }
      default:
        return wrong();
    }
  }

  static std::string TypeName(const FieldDescriptor& field) {
    switch (field.cpp_type()) {
      case FieldDescriptor::CPPTYPE_BOOL:
        return "true or false";
      case FieldDescriptor::CPPTYPE_UINT32:
      case FieldDescriptor::CPPTYPE_UINT64:
        return "a whole number >= 0";
      case FieldDescriptor::CPPTYPE_FLOAT:
        return "a number";
      default:
        return "a text";
    }
  }

  absl::Status Error(const YAML::Node& node, const std::string& path, const std::string& what) const {
    const int line = node.Mark().line;
    const std::string where = line >= 0 && name_ != "command line" ? absl::StrCat(name_, ":", line + 1) : name_;
    return absl::InvalidArgumentError(absl::StrCat(where, ": ", path.empty() ? "(top level)" : path, ": ", what));
  }

  const std::string name_;
  std::map<std::string, std::string> seen_;  // key set -> the spelling that set it
};

absl::Status Override(const std::string& text, v1::RunConfig& config) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("command line: '", text, "' is not key=value, for example rollout.n=16"));
  }
  Reader reader("command line");
  return reader.Entry(text.substr(0, equals), YAML::Node(text), YAML::Node(text.substr(equals + 1)), config);
}

void AppendYaml(const Message& message, int indent, std::string& out) {
  const auto* reflection = message.GetReflection();
  const std::string pad(static_cast<size_t>(indent), ' ');
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* field = message.GetDescriptor()->field(i);
    absl::StrAppend(&out, pad, field->name(), ":");
    if (field->is_repeated()) {
      std::vector<std::string> values;
      for (int j = 0; j < reflection->FieldSize(message, field); ++j) {
        values.push_back(absl::StrCat("\"", reflection->GetRepeatedString(message, field, j), "\""));
      }
      absl::StrAppend(&out, " [", absl::StrJoin(values, ", "), "]\n");
      continue;
    }
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_MESSAGE:
        absl::StrAppend(&out, "\n");
        AppendYaml(reflection->GetMessage(message, field), indent + 2, out);
        break;
      case FieldDescriptor::CPPTYPE_STRING:
        absl::StrAppend(&out, " \"",
                        absl::StrReplaceAll(reflection->GetString(message, field),
                                            {{"\\", "\\\\"}, {"\"", "\\\""}, {"\n", "\\n"}, {"\t", "\\t"}}),
                        "\"\n");
        break;
      case FieldDescriptor::CPPTYPE_BOOL:
        absl::StrAppend(&out, " ", reflection->GetBool(message, field) ? "true" : "false", "\n");
        break;
      case FieldDescriptor::CPPTYPE_UINT32:
        absl::StrAppend(&out, " ", reflection->GetUInt32(message, field), "\n");
        break;
      case FieldDescriptor::CPPTYPE_UINT64:
        absl::StrAppend(&out, " ", reflection->GetUInt64(message, field), "\n");
        break;
      default:
        absl::StrAppend(&out, " ", reflection->GetFloat(message, field), "\n");
        break;
    }
  }
}

}  // namespace

v1::RunConfig DefaultRunConfig() {
  v1::RunConfig config;
  config.set_numerics("matched");
  config.set_device("cpu");
  config.set_seed(1);
  config.set_run_dir("runs/run");
  auto* data = config.mutable_data();
  data->set_shuffle(true);
  data->set_max_prompt_tokens(1024);
  data->set_reward("math");
  data->set_reward_timeout_seconds(60);
  auto* rollout = config.mutable_rollout();
  rollout->set_num_servers(1);
  rollout->set_dtype("fp16");
  rollout->set_n(8);
  rollout->set_temperature(1);
  rollout->set_top_p(1);
  rollout->set_max_tokens(256);
  rollout->set_threads(1);
  rollout->set_prefill_chunk_tokens(128);
  rollout->set_max_batch_size(64);
  rollout->set_max_groups_in_flight(16);
  rollout->set_group_timeout_seconds(600);
  auto* algorithm = config.mutable_algorithm();
  algorithm->set_name("pg_seq_is");
  algorithm->set_advantage("auto");
  algorithm->set_aggregation("auto");
  algorithm->set_old_log_prob("recompute");
  algorithm->set_dynamic_sampling_max_batches(10);
  auto* learner = config.mutable_learner();
  learner->set_world_size(1);
  learner->set_dtype("fp16");
  learner->set_lr(1e-6f);
  learner->set_beta1(0.9f);
  learner->set_beta2(0.95f);
  learner->set_adam_eps(1e-8f);
  learner->set_grad_clip(1);
  learner->set_micro_batch_tokens(4096);
  learner->set_threads(2);
  learner->set_router_replay("off");
  auto* scale = learner->mutable_loss_scale();
  scale->set_mode("auto");
  scale->set_init(65536);
  scale->set_growth_factor(2);
  scale->set_backoff_factor(0.5f);
  scale->set_growth_interval(400);
  scale->set_max_consecutive_skips(20);
  auto* sync = config.mutable_weight_sync();
  sync->set_transport("auto");
  sync->set_timeout_seconds(30);
  sync->set_in_flight("finish");
  auto* trainer = config.mutable_trainer();
  trainer->set_prompts_per_step(16);
  trainer->set_updates_per_step(1);
  trainer->set_max_steps(100);
  trainer->set_stop_reward_patience(1);
  trainer->set_checkpoint_every(50);
  trainer->set_keep_checkpoints(2);
  auto* eval = config.mutable_eval();  // the paper's settings
  eval->set_n(32);
  eval->set_temperature(0.6f);
  eval->set_top_p(0.95f);
  config.mutable_model();
  config.mutable_lora()->set_alpha(16);
  return config;
}

absl::StatusOr<v1::RunConfig> ParseRunConfig(const std::string& yaml, const std::string& name,
                                             const std::vector<std::string>& overrides) {
  v1::RunConfig config = DefaultRunConfig();
  YAML::Node root;
  try {
    root = YAML::Load(yaml);
    Reader reader(name);
    if (absl::Status status = reader.Section(root, "", config, config); !status.ok()) return status;
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ":", error.mark.line + 1, ": not YAML: ", error.msg, "; check indentation and quotes"));
  }
  for (const std::string& text : overrides) {
    if (absl::Status status = Override(text, config); !status.ok()) return status;
  }
  if (absl::Status status = ValidateRunConfig(config); !status.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": ", std::string(status.message().data(), status.message().size())));
  }
  ResolveAlgorithm(config.mutable_algorithm());  // so that the run folder says what was run
  return config;
}

absl::StatusOr<v1::RunConfig> LoadRunConfig(const std::string& path, const std::vector<std::string>& overrides) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read; give the path of a run file"));
  std::stringstream text;
  text << file.rdbuf();
  return ParseRunConfig(text.str(), path, overrides);
}

std::string RunConfigToYaml(const v1::RunConfig& config) {
  std::string out;
  AppendYaml(config, 0, out);
  return out;
}

}  // namespace lockstep
