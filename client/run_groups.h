// Runs that repeat each other with another seed, and their figures as one curve with a band.
#ifndef LOCKSTEP_CLIENT_RUN_GROUPS_H_
#define LOCKSTEP_CLIENT_RUN_GROUPS_H_

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "client/plot.h"
#include "client/run_data.h"

namespace lockstep {

struct RunGroup {
  std::string label;
  std::vector<const RunData*> runs;
};

// The config's keys with their values as text ("learner.dtype" -> "fp16"), except those in which repetitions may
// differ: seed and run_dir.
std::map<std::string, std::string> ConfigValues(const v1::RunConfig& config);
// 8 hexadecimal digits of ConfigValues: equal for runs that repeat each other.
std::string ConfigDigest(const v1::RunConfig& config);

// Groups of runs with equal ConfigValues, in the order of their first runs; a run without a config stands alone. A
// label is what tells the group from the others ("learner.dtype=bf16"), or the name of its first run where that is too
// much or nothing. Labels differ.
std::vector<RunGroup> GroupRuns(const std::vector<const RunData*>& runs);

enum class FigureSource { kSteps, kEvaluations };

// A figure over the steps: the mean of the group's runs that have it there, and, where there are several, the band from
// their least to their greatest. Values that are not finite are left out. More than kMaxPoints steps are put together,
// as means of neighbours with the band of all of them.
inline constexpr size_t kMaxPoints = 500;
PlotSeries GroupCurve(const RunGroup& group, FigureSource source, const std::string& figure);

}  // namespace lockstep

#endif  // LOCKSTEP_CLIENT_RUN_GROUPS_H_
