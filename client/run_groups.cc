#include "client/run_groups.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "proto/crc32c.h"

namespace lockstep {
namespace {

constexpr size_t kMostKeysInALabel = 3;

void Flatten(const google::protobuf::Message& message, const std::string& prefix,
             std::map<std::string, std::string>* values) {
  using google::protobuf::FieldDescriptor;
  const auto* reflection = message.GetReflection();
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* field = message.GetDescriptor()->field(i);
    const std::string key = prefix + field->name();
    if (field->is_repeated()) {
      std::vector<std::string> parts(static_cast<size_t>(reflection->FieldSize(message, field)));
      for (size_t k = 0; k < parts.size(); ++k) {
        google::protobuf::TextFormat::PrintFieldValueToString(message, field, static_cast<int>(k), &parts[k]);
      }
      (*values)[key] = absl::StrCat("[", absl::StrJoin(parts, ", "), "]");
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      Flatten(reflection->GetMessage(message, field), key + ".", values);
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
      (*values)[key] = reflection->GetString(message, field);
    } else {
      google::protobuf::TextFormat::PrintFieldValueToString(message, field, -1, &(*values)[key]);
    }
  }
}

// What tells `values` from the others, "key=value"; empty when it is nothing or more than a label holds.
std::string DifferenceLabel(const std::map<std::string, std::string>& values,
                            const std::vector<std::map<std::string, std::string>>& all) {
  std::vector<std::string> parts;
  for (const auto& [key, value] : values) {
    const auto differs = [&, &key = key, &value = value](const auto& other) {
      const auto found = other.find(key);
      return found == other.end() || found->second != value;
    };
    if (!std::any_of(all.begin(), all.end(), differs)) continue;
    parts.push_back(absl::StrCat(key, "=", value.empty() ? "none" : value));
  }
  return parts.size() > kMostKeysInALabel ? "" : absl::StrJoin(parts, ", ");
}

struct Point {
  double sum = 0, low = 0, high = 0;
  size_t count = 0;

  void Add(double value) {
    low = count == 0 ? value : std::min(low, value);
    high = count == 0 ? value : std::max(high, value);
    sum += value;
    ++count;
  }
  void Add(const Point& other) {
    low = count == 0 ? other.low : std::min(low, other.low);
    high = count == 0 ? other.high : std::max(high, other.high);
    sum += other.sum;
    count += other.count;
  }
};

}  // namespace

std::map<std::string, std::string> ConfigValues(const v1::RunConfig& config) {
  std::map<std::string, std::string> values;
  Flatten(config, "", &values);
  values.erase("seed");
  values.erase("run_dir");
  return values;
}

std::string ConfigDigest(const v1::RunConfig& config) {
  std::string text;
  for (const auto& [key, value] : ConfigValues(config)) absl::StrAppend(&text, key, "=", value, "\n");
  return absl::StrFormat("%08x", Crc32c(text));
}

std::vector<RunGroup> GroupRuns(const std::vector<const RunData*>& runs) {
  std::vector<RunGroup> groups;
  std::vector<std::map<std::string, std::string>> values;  // a group's
  for (const RunData* run : runs) {
    if (run->config.has_value()) {
      auto its_values = ConfigValues(*run->config);
      // A supervised run and one that samples never repeat each other.
      its_values["mode"] = run->supervised ? "pretrain" : "rl";
      const auto found = std::find(values.begin(), values.end(), its_values);
      if (found != values.end()) {
        groups[static_cast<size_t>(found - values.begin())].runs.push_back(run);
        continue;
      }
      values.push_back(std::move(its_values));
    } else {
      values.emplace_back();
    }
    groups.push_back({"", {run}});
  }
  std::set<std::string> taken;
  for (size_t i = 0; i < groups.size(); ++i) {
    std::string label = values[i].empty() ? "" : DifferenceLabel(values[i], values);
    if (label.empty()) label = groups[i].runs[0]->name;
    std::string unique = label;
    for (int n = 2; !taken.insert(unique).second; ++n) unique = absl::StrCat(label, " (", n, ")");
    groups[i].label = unique;
  }
  return groups;
}

PlotSeries GroupCurve(const RunGroup& group, FigureSource source, const std::string& figure) {
  std::map<uint64_t, Point> points;
  for (const RunData* run : group.runs) {
    for (const auto& [step, figures] : source == FigureSource::kSteps ? run->steps : run->evaluations) {
      const auto found = figures.find(figure);
      if (found != figures.end() && std::isfinite(found->second)) points[step].Add(found->second);
    }
  }
  const size_t together = (points.size() + kMaxPoints - 1) / kMaxPoints;
  PlotSeries series;
  series.name = group.label;
  const bool band = group.runs.size() > 1 || together > 1;
  auto it = points.begin();
  while (it != points.end()) {
    Point point;
    double steps = 0, n = 0;
    for (; it != points.end() && n < static_cast<double>(together); ++it, ++n) {
      steps += static_cast<double>(it->first);
      point.Add(it->second);
    }
    series.x.push_back(steps / n);
    series.y.push_back(point.sum / static_cast<double>(point.count));
    if (!band) continue;
    series.low.push_back(point.low);
    series.high.push_back(point.high);
  }
  return series;
}

}  // namespace lockstep
