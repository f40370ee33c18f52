#include "client/plot.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/child.h"
#include "client/path_search.h"
#include "client/temporary_folder.h"

namespace lockstep {
namespace {

constexpr double kRenderSeconds = 120;
constexpr size_t kManyPoints = 1500;  // above it points are small and translucent
constexpr size_t kMarkersPerLine = 10;

struct Look {
  const char* rgb;  // Okabe and Ito (2008), without the yellow, which is lost on white
  const char* dash;
  int marker;  // gnuplot's point type
};

constexpr std::array<Look, 7> kLooks = {{
    {"0072B2", "1", 7},               // blue, solid, disc
    {"D55E00", "(12,4)", 9},          // vermilion, long dashes, triangle
    {"009E73", "(3,3)", 5},           // green, dots, square
    {"CC79A7", "(12,4,3,4)", 11},     // purple, dash-dot, triangle down
    {"E69F00", "(20,5)", 13},         // orange, very long dashes, diamond
    {"56B4E9", "(6,4)", 6},           // sky blue, short dashes, ring
    {"000000", "(12,4,3,4,3,4)", 4},  // black, dash-dot-dot, open square
}};

// `text` as a gnuplot string, whatever has a meaning to gnuplot as an octal escape. Controls and bytes that are not
// UTF-8 would spoil an SVG.
std::string Quoted(const std::string& text) {
  constexpr absl::string_view kEscaped = "\"'\\`@$%";
  std::string out = "\"";
  for (size_t i = 0; i < text.size();) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const size_t length = byte < 0x80                   ? 1
                          : byte >= 0xC2 && byte < 0xE0 ? 2
                          : byte >= 0xE0 && byte < 0xF0 ? 3
                          : byte >= 0xF0 && byte < 0xF5 ? 4
                                                        : 0;
    bool whole = length > 0 && i + length <= text.size();
    for (size_t k = 1; whole && k < length; ++k) whole = (static_cast<unsigned char>(text[i + k]) & 0xC0) == 0x80;
    if (!whole) {
      out += '?';
      ++i;
      continue;
    }
    if (kEscaped.find(text[i]) != absl::string_view::npos) {
      absl::StrAppendFormat(&out, "\\%03o", byte);
    } else if (byte < 0x20 || byte == 0x7F) {
      out += ' ';
    } else {
      out.append(text, i, length);
    }
    i += length;
  }
  return out + "\"";
}

bool Shown(double value, bool log) { return std::isfinite(value) && (!log || value > 0); }

struct Drawn {
  size_t points = 0, band_points = 0;
};

// The series as inline data: $points<index> has x and y, $band<index> x, low and high.
Drawn AppendData(const Plot& plot, size_t index, std::string* script) {
  const PlotSeries& series = plot.series[index];
  Drawn drawn;
  absl::StrAppend(script, "$points", index, " << END_OF_DATA\n");
  for (size_t i = 0; i < series.x.size(); ++i) {
    if (!Shown(series.x[i], plot.log_x) || !Shown(series.y[i], plot.log_y)) continue;
    absl::StrAppendFormat(script, "%.9g %.9g\n", series.x[i], series.y[i]);
    ++drawn.points;
  }
  absl::StrAppend(script, "END_OF_DATA\n");
  if (series.low.empty()) return drawn;
  absl::StrAppend(script, "$band", index, " << END_OF_DATA\n");
  for (size_t i = 0; i < series.x.size(); ++i) {
    if (!Shown(series.x[i], plot.log_x) || !Shown(series.low[i], plot.log_y) || !Shown(series.high[i], plot.log_y)) {
      continue;
    }
    absl::StrAppendFormat(script, "%.9g %.9g %.9g\n", series.x[i], series.low[i], series.high[i]);
    ++drawn.band_points;
  }
  absl::StrAppend(script, "END_OF_DATA\n");
  return drawn;
}

std::string PlotElement(const PlotSeries& series, size_t index, size_t points) {
  const Look& look = kLooks[static_cast<size_t>(series.look.value_or(static_cast<int>(index))) % kLooks.size()];
  const std::string title = series.name.empty() ? "notitle" : "title " + Quoted(series.name);
  const std::string line = absl::StrCat("lc rgb '#", look.rgb, "' lw 2 dt ", look.dash);
  std::string style;
  if (series.style == PlotSeries::kPoints) {
    const bool many = points > kManyPoints;
    // The alpha channel comes first; 00 is opaque.
    style = absl::StrCat("points pt ", look.marker, " ps ", many ? "0.5" : "0.8", " lc rgb '#", many ? "60" : "30",
                         look.rgb, "'");
  } else if (series.style == PlotSeries::kSteps) {
    style = "steps " + line;
  } else if (points <= 2) {
    style = (points == 1 ? absl::StrCat("linespoints pt ", look.marker, " ps 0.9 ") : std::string("lines ")) + line;
  } else {
    // A marker every so often tells lines apart without hiding them.
    style = absl::StrCat("linespoints pt ", look.marker, " ps 0.9 pointinterval ",
                         std::max<size_t>(1, points / kMarkersPerLine), " ", line);
  }
  return absl::StrCat("$points", index, " using 1:2 with ", style, " ", title);
}

std::string BandElement(const PlotSeries& series, size_t index) {
  const Look& look = kLooks[static_cast<size_t>(series.look.value_or(static_cast<int>(index))) % kLooks.size()];
  return absl::StrCat("$band", index, " using 1:2:3 with filledcurves fs transparent solid 0.2 noborder lc rgb '#",
                      look.rgb, "' notitle");
}

absl::Status CheckPlot(const Plot& plot) {
  for (const PlotSeries& series : plot.series) {
    if (series.x.size() != series.y.size() || series.low.size() != series.high.size() ||
        (!series.low.empty() && series.low.size() != series.x.size()) || series.look.value_or(0) < 0) {
      return absl::InvalidArgumentError(absl::StrCat("plot '", plot.title, "', series '", series.name,
                                                     "': ", series.x.size(), " x, ", series.y.size(), " y, ",
                                                     series.low.size(), " low and ", series.high.size(),
                                                     " high values; x and y must be as many, low and high none or "
                                                     "as many"));
    }
  }
  for (const std::optional<double>& limit : {plot.y_min, plot.y_max}) {
    if (limit.has_value() && !Shown(*limit, plot.log_y)) {
      return absl::InvalidArgumentError(
          absl::StrCat("plot '", plot.title, "': y_min or y_max is ", *limit, ", which the axis cannot show"));
    }
  }
  if (plot.y_min.has_value() && plot.y_max.has_value() && !(*plot.y_min < *plot.y_max)) {
    return absl::InvalidArgumentError(
        absl::StrCat("plot '", plot.title, "': y_min ", *plot.y_min, " is not below y_max ", *plot.y_max));
  }
  return absl::OkStatus();
}

std::string Limit(const std::optional<double>& limit) {
  return limit.has_value() ? absl::StrFormat("%.9g", *limit) : "*";
}

absl::StatusOr<std::string> FindGnuplot() {
  if (std::optional<std::string> file = FindOnPath("gnuplot"); file.has_value()) return *std::move(file);
  return absl::NotFoundError(
      "gnuplot, which draws the plots, is not on the PATH; install the Debian package gnuplot-nox "
      "(deploy/install_deps.sh does)");
}

// The bytes of the picture.
absl::StatusOr<std::string> Render(const Plot& plot, const std::string& terminal) {
  const absl::StatusOr<std::string> gnuplot = FindGnuplot();
  if (!gnuplot.ok()) return gnuplot.status();
  const TemporaryFolder folder;
  if (folder.path().empty())
    return absl::UnavailableError("no temporary folder can be made for a plot; is TMPDIR full?");
  const std::string output = absl::StrCat(folder.path(), "/plot.", terminal);
  const absl::StatusOr<std::string> script = PlotScript(plot, terminal, output);
  if (!script.ok()) return script.status();
  const std::string script_path = folder.path() + "/plot.gnuplot";
  std::ofstream script_file(script_path, std::ios::binary);
  script_file << *script;
  script_file.close();
  if (!script_file.good()) return absl::UnavailableError(absl::StrCat("cannot write ", script_path));
  // The user's start-up files are left out.
  absl::StatusOr<Child> child =
      Child::Start("gnuplot", *gnuplot, {"--default-settings", script_path}, folder.path() + "/log");
  if (!child.ok()) return child.status();
  const absl::Time deadline = absl::Now() + absl::Seconds(kRenderSeconds);
  while (!child->Poll().has_value()) {
    if (absl::Now() > deadline) {
      child->End(0);
      return absl::DeadlineExceededError(
          absl::StrCat("gnuplot does not finish plot '", plot.title, "' in ", kRenderSeconds, " s"));
    }
    absl::SleepFor(absl::Milliseconds(5));
  }
  std::ifstream file(output, std::ios::binary);
  std::string bytes(std::istreambuf_iterator<char>(file), {});
  if (*child->Poll() != 0 || bytes.empty()) {
    return absl::InternalError(absl::StrCat("plot '", plot.title, "' was not drawn: ", child->Reason()));
  }
  return bytes;
}

}  // namespace

absl::StatusOr<std::string> PlotScript(const Plot& plot, const std::string& terminal, const std::string& output) {
  if (absl::Status status = CheckPlot(plot); !status.ok()) return status;
  std::string script = "set encoding utf8\n";
  if (terminal == "png") {
    absl::StrAppendFormat(&script,
                          "set terminal pngcairo noenhanced size %d,%d font 'DejaVu Sans,13' background '#FFFFFF'\n",
                          plot.width, plot.height);
  } else {
    absl::StrAppendFormat(&script, "set terminal svg noenhanced size %d,%d font 'sans-serif,15' background '#FFFFFF'\n",
                          plot.width, plot.height);
  }
  absl::StrAppend(&script, "set output ", Quoted(output), "\n");
  std::vector<std::string> bands, elements;
  for (size_t i = 0; i < plot.series.size(); ++i) {
    const Drawn drawn = AppendData(plot, i, &script);
    if (drawn.band_points > 1) bands.push_back(BandElement(plot.series[i], i));
    if (drawn.points > 0) elements.push_back(PlotElement(plot.series[i], i, drawn.points));
  }
  absl::StrAppend(&script, "set title ", Quoted(plot.title), "\nset xlabel ", Quoted(plot.x_label),
                  " offset 0,0.5\nset ylabel ", Quoted(plot.y_label), "\n");
  absl::StrAppend(&script,
                  "set key outside below center horizontal Left reverse noenhanced samplen 4 spacing 1.2\n"
                  "set border 3 lc rgb '#404040'\nset tics nomirror out scale 0.6\nset format '%g'\n"
                  "set grid back lt 1 lc rgb '#D4D4D4' lw 1 dt 1\n");
  if (plot.log_x) absl::StrAppend(&script, "set logscale x\n");
  if (plot.log_y) absl::StrAppend(&script, "set logscale y\n");
  absl::StrAppend(&script, "set yrange [", Limit(plot.y_min), ":", Limit(plot.y_max), "]\n");
  if (elements.empty()) {
    // No range to take from data.
    absl::StrAppend(&script, "unset logscale\nset xrange [0:1]\nset yrange [0:1]\nunset tics\n",
                    "set label 'no data' at 0.5,0.5 center\nplot -1 notitle\n");
  } else {
    elements.insert(elements.begin(), bands.begin(), bands.end());  // below every line
    script += "plot ";
    for (size_t i = 0; i < elements.size(); ++i) absl::StrAppend(&script, i == 0 ? "" : ", ", elements[i]);
    script += "\n";
  }
  return script + "unset output\n";
}

absl::Status WritePlot(const Plot& plot, const std::string& path) {
  const bool png = absl::EndsWith(path, ".png");
  if (!png && !absl::EndsWith(path, ".svg")) {
    return absl::InvalidArgumentError(absl::StrCat("the plot file ", path, " must end in .png or .svg"));
  }
  const absl::StatusOr<std::string> bytes = Render(plot, png ? "png" : "svg");
  if (!bytes.ok()) return bytes.status();
  const std::string partial = path + ".partial";
  std::ofstream file(partial, std::ios::binary | std::ios::trunc);
  file << *bytes;
  file.close();
  std::error_code error;
  if (file.good()) std::filesystem::rename(partial, path, error);
  if (!file.good() || error) return absl::UnavailableError(absl::StrCat("cannot write ", path));
  return absl::OkStatus();
}

absl::StatusOr<std::string> RenderSvg(const Plot& plot) { return Render(plot, "svg"); }

}  // namespace lockstep
