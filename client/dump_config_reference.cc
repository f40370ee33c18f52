// Prints docs/config.md: every key of a run file with type, default and meaning, from the schema's own comments.
//   dump_config_reference DESCRIPTOR_SET     (of proto/run_config.proto, made with --include_source_info)
// `--check FILE` compares instead, and names the first line that differs.
#include <google/protobuf/descriptor.pb.h>

#include <cctype>
#include <cstdio>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "client/config.h"

namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

constexpr char kHead[] =
    "# Run files: every key\n\n"
    "A run file is YAML. Every key has a default but `model.path` and `data.train`; `lockstep run` writes all of them, "
    "as\nresolved, to `RUN/config.yaml`. On the command line a key is set as `section.key=value`. verl's names for the "
    "same things\n(`data.train_batch_size`, `actor_rollout_ref.actor.optim.lr`, ...) are accepted.\n\n"
    "This page is the output of `bazel run //client:config_reference`; a test compares the two.\n";

// Message name and field index -> the comment above the field.
using Comments = std::map<std::pair<std::string, int>, std::string>;

Comments ReadComments(const google::protobuf::FileDescriptorSet& set) {
  Comments comments;
  for (const auto& file : set.file()) {
    for (const auto& location : file.source_code_info().location()) {
      // The path of a field: message_type (4), its index, field (2), its index.
      if (location.path_size() != 4 || location.path(0) != 4 || location.path(2) != 2) continue;
      const auto& message = file.message_type(location.path(1));
      std::string text = absl::StrReplaceAll(location.leading_comments(), {{"\n", " "}, {"|", "\\|"}});
      absl::StripAsciiWhitespace(&text);
      absl::RemoveExtraAsciiWhitespace(&text);
      comments[{message.name(), location.path(3)}] = text;
    }
  }
  return comments;
}

std::string Default(const Message& message, const FieldDescriptor& field) {
  const auto* reflection = message.GetReflection();
  if (field.is_repeated()) return "[]";
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING: {
      const std::string value = reflection->GetString(message, &field);
      return value.empty() ? "\"\"" : value;
    }
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection->GetBool(message, &field) ? "true" : "false";
    case FieldDescriptor::CPPTYPE_UINT32:
      return absl::StrCat(reflection->GetUInt32(message, &field));
    case FieldDescriptor::CPPTYPE_UINT64:
      return absl::StrCat(reflection->GetUInt64(message, &field));
    default:
      return absl::StrCat(reflection->GetFloat(message, &field));
  }
}

std::string Type(const FieldDescriptor& field) {
  if (field.is_repeated()) return "list";
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      return "text";
    case FieldDescriptor::CPPTYPE_BOOL:
      return "true/false";
    case FieldDescriptor::CPPTYPE_FLOAT:
      return "number";
    default:
      return "whole number";
  }
}

void Table(const Message& message, const std::string& prefix, const Comments& comments, std::string& out) {
  const Descriptor* descriptor = message.GetDescriptor();
  absl::StrAppend(&out, "\n## ", prefix.empty() ? "(top level)" : prefix,
                  "\n\n| key | type | default | meaning |\n| --- | --- | --- | --- |\n");
  std::vector<const FieldDescriptor*> sections;
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const FieldDescriptor* field = descriptor->field(i);
    if (field->message_type() != nullptr) {
      sections.push_back(field);
      continue;
    }
    const auto comment = comments.find({descriptor->name(), i});
    absl::StrAppend(&out, "| `", prefix.empty() ? "" : prefix + ".", field->name(), "` | ", Type(*field), " | ",
                    Default(message, *field), " | ", comment == comments.end() ? "" : comment->second, " |\n");
  }
  for (const FieldDescriptor* section : sections) {
    Table(message.GetReflection()->GetMessage(message, section),
          prefix.empty() ? section->name() : absl::StrCat(prefix, ".", section->name()), comments, out);
  }
}

// Every field must say what it is.
int MissingComments(const Descriptor& descriptor, const Comments& comments) {
  int missing = 0;
  for (int i = 0; i < descriptor.field_count(); ++i) {
    const FieldDescriptor* field = descriptor.field(i);
    if (field->message_type() != nullptr) {
      missing += MissingComments(*field->message_type(), comments);
    } else if (const auto it = comments.find({descriptor.name(), i}); it == comments.end() || it->second.empty()) {
      std::fprintf(stderr, "proto/run_config.proto: %s has no comment\n", field->full_name().c_str());
      ++missing;
    }
  }
  return missing;
}

int Compare(const std::string& expected, const std::string& path) {
  std::ifstream file(path);
  std::istringstream wanted(expected);
  std::string have, want;
  for (int line = 1;; ++line) {
    const bool more_want = static_cast<bool>(std::getline(wanted, want));
    const bool more_have = static_cast<bool>(std::getline(file, have));
    if (!more_want && !more_have) return 0;
    if (more_want != more_have || want != have) {
      std::fprintf(stderr, "%s:%d differs from the schema; run: bazel run //client:config_reference > docs/config.md\n",
                   path.c_str(), line);
      return 1;
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 && !(argc == 4 && std::string(argv[2]) == "--check")) {
    std::fprintf(stderr, "usage: dump_config_reference DESCRIPTOR_SET [--check FILE]\n");
    return 2;
  }
  std::ifstream file(argv[1], std::ios::binary);
  google::protobuf::FileDescriptorSet set;
  if (!file || !set.ParseFromIstream(&file)) {
    std::fprintf(stderr, "dump_config_reference: %s is not a descriptor set\n", argv[1]);
    return 1;
  }
  const Comments comments = ReadComments(set);
  const lockstep::v1::RunConfig defaults = lockstep::DefaultRunConfig();
  if (MissingComments(*defaults.GetDescriptor(), comments) > 0) return 1;
  std::string out = kHead;
  Table(defaults, "", comments, out);
  if (argc == 4) return Compare(out, argv[3]);
  std::fputs(out.c_str(), stdout);
  return 0;
}
