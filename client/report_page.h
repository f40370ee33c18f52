// The report of runs: one HTML page that holds all it shows (no script, no reference to anything outside), made for
// paper: A4, black on white.
#ifndef LOCKSTEP_CLIENT_REPORT_PAGE_H_
#define LOCKSTEP_CLIENT_REPORT_PAGE_H_

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/claims.h"
#include "client/plot.h"
#include "client/run_groups.h"

namespace lockstep {

struct Report {
  std::string name;
  std::string made_at;  // when the runs were read
  std::vector<RunGroup> groups;
  double target_reward = 0.95;
  std::optional<Claims> claims;
  // Draws a plot as an SVG document.
  std::function<absl::StatusOr<std::string>(const Plot&)> render = RenderSvg;
};

absl::StatusOr<std::string> ReportPage(const Report& report);

// The figures' part of it: those that change are drawn, those that keep one value over all steps of all runs are
// listed with it.
absl::StatusOr<std::string> ReportFigures(const Report& report);

}  // namespace lockstep

#endif  // LOCKSTEP_CLIENT_REPORT_PAGE_H_
