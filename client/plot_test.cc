#include "client/plot.h"

#include <stdlib.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lockstep {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

Plot TwoLines() {
  Plot plot = {.title = "mean |log ratio|", .x_label = "step", .y_label = "nats"};
  PlotSeries a = {.name = "fp16"}, b = {.name = "bf16"};
  for (int i = 0; i < 50; ++i) {
    a.x.push_back(i);
    a.y.push_back(0.01 * i);
    b.x.push_back(i);
    b.y.push_back(std::sqrt(0.1 * i));
    b.low.push_back(b.y.back() * 0.8);
    b.high.push_back(b.y.back() * 1.2);
  }
  plot.series = {a, b};
  return plot;
}

std::string Bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

std::string Path(const std::string& name) { return ::testing::TempDir() + "/" + name; }

int Count(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST(Plot, WritesAPngOfTheFixedSize) {
  const std::string path = Path("lines.png");
  ASSERT_EQ(WritePlot(TwoLines(), path), absl::OkStatus());
  const std::string bytes = Bytes(path);
  ASSERT_THAT(bytes, StartsWith("\x89PNG\r\n\x1a\n"));
  // The header chunk's width, big-endian.
  EXPECT_EQ((static_cast<unsigned char>(bytes[18]) << 8) + static_cast<unsigned char>(bytes[19]), 960);
  EXPECT_FALSE(std::filesystem::exists(path + ".partial"));
}

TEST(Plot, AnSvgNamesEverySeriesAndLabel) {
  const auto svg = RenderSvg(TwoLines());
  ASSERT_TRUE(svg.ok()) << svg.status();
  for (const char* text : {"<svg", "</svg>", "mean |log ratio|", "step", "nats", "fp16", "bf16"}) {
    EXPECT_THAT(*svg, HasSubstr(text));
  }
  ASSERT_EQ(WritePlot(TwoLines(), Path("lines.svg")), absl::OkStatus());
  EXPECT_EQ(Bytes(Path("lines.svg")), *svg);
}

TEST(Plot, TextIsNeverReadAsCommandsOrMarkup) {
  Plot plot = TwoLines();
  const std::string canary = Path("canary");
  std::filesystem::remove(canary);
  plot.title = "it's `touch " + canary + "` a_b^{c} <b>&\"\\n\n@x";
  plot.series[0].name = "'; system('touch " + canary + "'); #";
  plot.x_label = "bad \xff utf-8 \x01";
  const auto svg = RenderSvg(plot);
  ASSERT_TRUE(svg.ok()) << svg.status();
  EXPECT_FALSE(std::filesystem::exists(canary));
  EXPECT_THAT(*svg, HasSubstr("it's `touch "));
  EXPECT_THAT(*svg, HasSubstr("a_b^{c} &lt;b>&amp;\"\\n @x"));
  EXPECT_THAT(*svg, HasSubstr("'; system('touch "));
  EXPECT_THAT(*svg, HasSubstr("bad ? utf-8"));
  EXPECT_THAT(*svg, Not(HasSubstr("<b>")));
}

TEST(Plot, PointsThatAreNotFiniteAreLeftOut) {
  const double nan = std::nan(""), inf = std::numeric_limits<double>::infinity();
  Plot plot = {.title = "t"};
  plot.series = {{.name = "a", .x = {1, 2, 3, nan, 5}, .y = {1, nan, inf, 4, 5}, .style = PlotSeries::kPoints}};
  const auto script = PlotScript(plot, "svg", "out.svg");
  ASSERT_TRUE(script.ok());
  EXPECT_THAT(*script, HasSubstr("$points0 << END_OF_DATA\n1 1\n5 5\nEND_OF_DATA\n"));
  EXPECT_TRUE(RenderSvg(plot).ok());
}

TEST(Plot, ALogarithmicAxisLeavesOutWhatIsNotPositive) {
  Plot plot = {.title = "t", .log_y = true};
  plot.series = {{.name = "a", .x = {0, 1, 2}, .y = {0, 1e-3, -1}, .low = {0, 1e-4, 1e-4}, .high = {1, 1, 1}}};
  const auto script = PlotScript(plot, "png", "out.png");
  ASSERT_TRUE(script.ok());
  EXPECT_THAT(*script, HasSubstr("$points0 << END_OF_DATA\n1 0.001\nEND_OF_DATA\n"));
  EXPECT_EQ(WritePlot(plot, Path("log.png")), absl::OkStatus());
}

TEST(Plot, WithoutPointsItSaysNoData) {
  Plot plot = {.title = "nothing", .log_x = true, .log_y = true};
  plot.series = {{.name = "a"}, {.name = "b", .x = {1}, .y = {-1}}};
  const auto svg = RenderSvg(plot);
  ASSERT_TRUE(svg.ok()) << svg.status();
  EXPECT_THAT(*svg, HasSubstr("no data"));
  plot.series.clear();
  EXPECT_TRUE(RenderSvg(plot).ok());
}

TEST(Plot, OnePointAndEqualValuesAreDrawn) {
  Plot plot = {.title = "flat"};
  plot.series = {{.name = "one", .x = {3}, .y = {0}},
                 {.name = "flat", .x = {1, 2, 3}, .y = {0, 0, 0}, .style = PlotSeries::kSteps}};
  EXPECT_TRUE(RenderSvg(plot).ok());
}

TEST(Plot, EverySeriesHasALookOfItsOwn) {
  Plot plot = {.title = "many"};
  for (int i = 0; i < 7; ++i) plot.series.push_back({.name = "s", .x = {0, 1, 2}, .y = {0.0, 1.0 * i, 2.0 * i}});
  const auto script = PlotScript(plot, "png", "out.png");
  ASSERT_TRUE(script.ok());
  for (const char* rgb : {"0072B2", "D55E00", "009E73", "CC79A7", "E69F00", "56B4E9", "000000"}) {
    EXPECT_EQ(Count(*script, rgb), 1) << rgb;
  }
  EXPECT_EQ(WritePlot(plot, Path("many.png")), absl::OkStatus());
}

TEST(Plot, BadPlotsAreRefused) {
  Plot plot = TwoLines();
  plot.series[0].x.pop_back();
  EXPECT_THAT(RenderSvg(plot).status().message(), HasSubstr("series 'fp16': 49 x, 50 y"));
  plot = TwoLines();
  plot.y_min = 2;
  plot.y_max = 1;
  EXPECT_THAT(RenderSvg(plot).status().message(), HasSubstr("y_min 2 is not below y_max 1"));
  EXPECT_THAT(WritePlot(TwoLines(), "plot.gif").message(), HasSubstr("must end in .png or .svg"));
  EXPECT_THAT(WritePlot(TwoLines(), "/nonexistent/plot.svg").message(), HasSubstr("cannot write /nonexistent"));
}

TEST(Plot, WithoutGnuplotThePackageIsNamed) {
  const std::string path = getenv("PATH");
  setenv("PATH", "/nonexistent", 1);
  const absl::Status status = WritePlot(TwoLines(), Path("none.png"));
  setenv("PATH", path.c_str(), 1);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(status.message(), HasSubstr("gnuplot-nox"));
}

}  // namespace
}  // namespace lockstep
