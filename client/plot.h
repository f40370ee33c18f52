// Figures, drawn by gnuplot as a child process. Everything is data to it: no text of a plot is read as its language.
//
// Series differ in colour (Okabe and Ito's palette, which colour-blind readers tell apart), in dash and in marker, so
// that they also differ on grey paper. The legend stands below the axes and covers nothing.
#ifndef LOCKSTEP_CLIENT_PLOT_H_
#define LOCKSTEP_CLIENT_PLOT_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lockstep {

struct PlotSeries {
  enum Style { kLine, kPoints, kSteps };
  std::string name = {};  // in the legend; empty: not listed
  std::vector<double> x = {}, y = {};
  // A band from low to high, drawn translucent; empty, or as long as x.
  std::vector<double> low = {}, high = {};
  Style style = kLine;
  // Colour, dash and marker; series of the same look belong together. Default: the series' index.
  std::optional<int> look = std::nullopt;
};

struct Plot {
  std::string title = {}, x_label = {}, y_label = {};
  bool log_x = false, log_y = false;
  int width = 960, height = 640;                                     // pixels; text keeps its size
  std::optional<double> y_min = std::nullopt, y_max = std::nullopt;  // default: from the data
  // A point with a coordinate that is not finite, or not positive on a logarithmic axis, is left out; lines go on past
  // it. Without any point left the axes are drawn with "no data".
  std::vector<PlotSeries> series = {};
};

// gnuplot's script for the plot, its data inside; `terminal` is png or svg. For tests and for a second look at a plot.
// Error: lengths that differ, y_min not below y_max.
absl::StatusOr<std::string> PlotScript(const Plot& plot, const std::string& terminal, const std::string& output);

// Writes the plot to `path`, a PNG or SVG file by its ending; the file is replaced in one piece. NOT_FOUND names the
// Debian package when there is no gnuplot.
absl::Status WritePlot(const Plot& plot, const std::string& path);

// The plot as an SVG document.
absl::StatusOr<std::string> RenderSvg(const Plot& plot);

}  // namespace lockstep

#endif  // LOCKSTEP_CLIENT_PLOT_H_
