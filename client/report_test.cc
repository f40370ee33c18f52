// Groups, curves, outcomes, claims, text and the page, on runs made here; reading folders on ledgers made here.
#include <gtest/gtest.h>
#include <sqlite3.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "client/claims.h"
#include "client/html.h"
#include "client/report_page.h"
#include "client/run_data.h"
#include "client/run_groups.h"
#include "client/run_outcome.h"

namespace lockstep {
namespace {

RunData MakeRun(const std::string& name, const std::vector<double>& rewards, uint64_t seed = 1,
                const std::string& dtype = "fp16") {
  RunData run;
  run.path = run.name = name;
  run.config.emplace();
  run.config->set_seed(seed);
  run.config->set_run_dir(name);
  run.config->mutable_learner()->set_dtype(dtype);
  for (size_t i = 0; i < rewards.size(); ++i) {
    run.steps[i + 1] = {{"reward_mean", rewards[i]}, {"loss", 1}, {"max_abs_log_ratio", 0.25}, {"seconds_total", 2},
                        {"seconds.rollout", 1},      {"kl_k1", 0}};
  }
  return run;
}

std::string MakeFolder(const std::string& name) {
  const std::string folder = testing::TempDir() + "/" + name;
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  return folder;
}

void WriteFile(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

// Leaves the database open, as a learner does, when `keep` is given.
void WriteLedger(const std::string& path, const std::string& more, sqlite3** keep = nullptr) {
  sqlite3* database = nullptr;
  ASSERT_EQ(sqlite3_open(path.c_str(), &database), SQLITE_OK);
  const std::string sql =
      "PRAGMA journal_mode=WAL;"
      "CREATE TABLE epochs(epoch INTEGER PRIMARY KEY, started_at TEXT NOT NULL);"
      "CREATE TABLE steps(step INTEGER PRIMARY KEY, epoch INTEGER, weight_version INTEGER, num_groups INTEGER, "
      "skipped INTEGER, summary TEXT);"
      "INSERT INTO epochs VALUES(1, '2026-01-31T12:00:00+00:00');" +
      more;
  char* error = nullptr;
  ASSERT_EQ(sqlite3_exec(database, sql.c_str(), nullptr, nullptr, &error), SQLITE_OK) << error;
  if (keep != nullptr) {
    *keep = database;
  } else {
    sqlite3_close(database);
  }
}

constexpr char kTwoSteps[] =
    R"(INSERT INTO steps VALUES(1, 1, 1, 1, 0, '{"step":1,"reward_mean":0.5,"seconds_total":2.5}');)"
    R"(INSERT INTO steps VALUES(2, 1, 2, 1, 0, '{"step":2,"reward_mean":null,"seconds_total":1}');)";

TEST(RunDataTest, ReadsALedgerThatIsClosedWithoutWritingAnything) {
  const std::string folder = MakeFolder("closed");
  WriteLedger(folder + "/ledger.db",
              std::string(kTwoSteps) +
                  "CREATE TABLE evaluations(step INTEGER PRIMARY KEY, epoch INTEGER, weight_version "
                  "INTEGER, settings TEXT, summary TEXT);"
                  R"(INSERT INTO evaluations VALUES(2, 1, 2, '', '{"step":"2","passAtK":{"1":0.25}}');)");
  const auto run = ReadRun(folder);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->name, "closed");
  EXPECT_FALSE(run->supervised);
  ASSERT_EQ(run->steps.size(), 2u);
  EXPECT_EQ(run->steps.at(1).at("reward_mean"), 0.5);
  EXPECT_TRUE(std::isnan(run->steps.at(2).at("reward_mean")));
  EXPECT_EQ(run->evaluations.at(2).at("pass@1"), 0.25);
  EXPECT_EQ(run->step_times.at(2) - run->step_times.at(1), 1);
  EXPECT_EQ(run->step_times.at(1), 1769860800 + 2.5);  // 2026-01-31 12:00 UTC
  size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    EXPECT_EQ(entry.path().filename(), "ledger.db");
    ++files;
  }
  EXPECT_EQ(files, 1u);
}

TEST(RunDataTest, ReadsALedgerThatIsBeingWrittenWithoutHoldingItsWriter) {
  const std::string folder = MakeFolder("open #1?");  // characters that a URI would take for its own
  sqlite3* writer = nullptr;
  WriteLedger(folder + "/ledger.db", kTwoSteps, &writer);
  ASSERT_NE(writer, nullptr);
  ASSERT_EQ(sqlite3_exec(writer, "BEGIN IMMEDIATE; DELETE FROM steps WHERE step = 2", nullptr, nullptr, nullptr),
            SQLITE_OK);
  const auto run = ReadRun(folder);  // what is not committed is not seen
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->steps.size(), 2u);
  EXPECT_EQ(sqlite3_exec(writer, "COMMIT", nullptr, nullptr, nullptr), SQLITE_OK);
  EXPECT_EQ(ReadRun(folder)->steps.size(), 1u);
  sqlite3_close(writer);
}

TEST(RunDataTest, ReadsMetricsJsonlWhereThereIsNoLedger) {
  const std::string folder = MakeFolder("supervised");
  WriteFile(folder + "/metrics.jsonl",
            "{\"step\":1,\"loss\":3}\n{\"step\":2,\"loss\":2}\n{\"step\":2,\"loss\":1}\n{\"step\":3,\"los");
  const auto run = ReadRun(folder);
  ASSERT_TRUE(run.ok()) << run.status();  // the last line is being written
  EXPECT_TRUE(run->supervised);
  EXPECT_EQ(run->steps.size(), 2u);
  EXPECT_EQ(run->steps.at(2).at("loss"), 1);
}

TEST(RunDataTest, RefusesWhatIsNoRunByName) {
  const std::string folder = MakeFolder("foreign");
  EXPECT_NE(ReadRun(folder).status().message().find("not the folder of a run"), std::string_view::npos);
  EXPECT_NE(ReadRun(folder + "/none").status().message().find("not a folder"), std::string_view::npos);
  WriteFile(folder + "/ledger.db", std::string(5000, 'x'));
  EXPECT_NE(ReadRun(folder).status().message().find("ledger.db"), std::string_view::npos);
  std::filesystem::remove(folder + "/ledger.db");
  sqlite3* other = nullptr;
  ASSERT_EQ(sqlite3_open((folder + "/ledger.db").c_str(), &other), SQLITE_OK);
  sqlite3_exec(other, "CREATE TABLE pets(name TEXT)", nullptr, nullptr, nullptr);
  sqlite3_close(other);
  EXPECT_NE(ReadRun(folder).status().message().find("ledger of a run"), std::string_view::npos);
  WriteFile(folder + "/ledger.db", "");
  std::filesystem::remove(folder + "/ledger.db");
  WriteLedger(folder + "/ledger.db", "INSERT INTO steps VALUES(1, 1, 1, 1, 0, 'x');");
  EXPECT_NE(ReadRun(folder).status().message().find("step 1"), std::string_view::npos);
}

TEST(RunGroupsTest, RunsThatDifferInSeedAndFolderAreOneGroup) {
  const RunData a = MakeRun("a", {0.1}, 1), b = MakeRun("b", {0.2}, 2), c = MakeRun("c", {0.3}, 1, "bf16");
  RunData d = MakeRun("d", {0.4});
  d.config.reset();
  const auto groups = GroupRuns({&a, &c, &b, &d});
  ASSERT_EQ(groups.size(), 3u);
  EXPECT_EQ(groups[0].runs, (std::vector<const RunData*>{&a, &b}));
  EXPECT_EQ(groups[1].runs, (std::vector<const RunData*>{&c}));
  EXPECT_EQ(groups[2].label, "d");
  const auto two = GroupRuns({&a, &b, &c});
  EXPECT_EQ(two[0].label, "learner.dtype=fp16");
  EXPECT_EQ(two[1].label, "learner.dtype=bf16");
  EXPECT_EQ(ConfigDigest(*a.config), ConfigDigest(*b.config));
  EXPECT_NE(ConfigDigest(*a.config), ConfigDigest(*c.config));
}

TEST(RunGroupsTest, ACurveIsTheMeanOfTheRunsThatHaveTheStepWithItsBand) {
  const RunData a = MakeRun("a", {0.25, 0.5, 1}), b = MakeRun("b", {0.75, NAN});
  const PlotSeries curve = GroupCurve({"g", {&a, &b}}, FigureSource::kSteps, "reward_mean");
  EXPECT_EQ(curve.x, (std::vector<double>{1, 2, 3}));
  EXPECT_EQ(curve.y, (std::vector<double>{0.5, 0.5, 1}));
  EXPECT_EQ(curve.low, (std::vector<double>{0.25, 0.5, 1}));
  EXPECT_EQ(curve.high, (std::vector<double>{0.75, 0.5, 1}));
  EXPECT_TRUE(GroupCurve({"g", {&a}}, FigureSource::kSteps, "reward_mean").low.empty());
  EXPECT_TRUE(GroupCurve({"g", {&a}}, FigureSource::kSteps, "none").x.empty());
}

TEST(RunGroupsTest, ALongCurveIsPutTogetherWithoutLosingItsPeaks) {
  std::vector<double> rewards(3 * kMaxPoints - 1, 0.5);
  rewards[700] = 9;
  const RunData run = MakeRun("long", rewards);
  const PlotSeries curve = GroupCurve({"g", {&run}}, FigureSource::kSteps, "reward_mean");
  EXPECT_EQ(curve.x.size(), kMaxPoints);
  EXPECT_EQ(curve.x.front(), 2);  // of steps 1, 2 and 3
  EXPECT_EQ(*std::max_element(curve.high.begin(), curve.high.end()), 9);
}

TEST(RunOutcomeTest, TellsHowARunWent) {
  const RunOutcome outcome = SummarizeRun(MakeRun("a", {0.5, 0.75, 1, 0.875}), 0.95);
  EXPECT_EQ(outcome.steps, 4u);
  EXPECT_EQ(outcome.first_reward, 0.5);
  EXPECT_EQ(outcome.last_reward, 0.875);
  EXPECT_EQ(outcome.best_reward, 1);
  EXPECT_EQ(outcome.target_step, 3u);
  EXPECT_EQ(outcome.collapsed_step, std::nullopt);
  EXPECT_EQ(outcome.max_abs_log_ratio, 0.25);
  EXPECT_EQ(outcome.seconds, 8);
  EXPECT_EQ(outcome.phase_seconds.at("rollout"), 4);
  EXPECT_EQ(SummarizeRun(MakeRun("none", {}), 0.95).first_reward, std::nullopt);
}

TEST(RunOutcomeTest, ARunCollapsesWhereItsMovingMeanFallsUnderHalfOfItsBest) {
  // Means of five: 0.8 up to step 6, then 0.64, 0.48, 0.32: step 9 is the first under 0.4.
  EXPECT_EQ(SummarizeRun(MakeRun("a", {0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0, 0, 0, 0}), 0.95).collapsed_step, 9u);
  EXPECT_EQ(SummarizeRun(MakeRun("b", {0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0, 0, 0.8, 0.8}), 0.95).collapsed_step,
            std::nullopt);
  EXPECT_EQ(SummarizeRun(MakeRun("c", {0.8, 0, 0}), 0.95).collapsed_step, std::nullopt);  // fewer than five steps
  EXPECT_EQ(SummarizeRun(MakeRun("d", {0.8, NAN, 0.8}), 0.95).collapsed_step, 2u);
  RunData loss = MakeRun("e", {0.8, 0.8, 0.8});
  loss.steps[2]["loss"] = INFINITY;
  loss.steps[2]["skipped"] = 1;  // a skipped step may
  EXPECT_EQ(SummarizeRun(loss, 0.95).collapsed_step, std::nullopt);
  loss.steps[3]["loss"] = NAN;
  EXPECT_EQ(SummarizeRun(loss, 0.95).collapsed_step, 3u);
}

TEST(ClaimsTest, ReadsAListAndNamesWhatIsWrong) {
  const auto claims = ParseClaims(R"({"title":"T","claims":[{"id":"1","claim":"c","ours":0.5}]})", "f");
  ASSERT_TRUE(claims.ok()) << claims.status();
  EXPECT_EQ(claims->title, "T");
  EXPECT_EQ(claims->claims[0].ours, "0.5");
  EXPECT_TRUE(ParseClaims("[]", "f").ok());
  for (const char* bad : {"", "{", "{}", "[1]", R"([{"id":"1"}])", R"([{"id":"1","claim":"c","x":""}])",
                          R"([{"id":"1","claim":["c"]}])", R"({"titel":"x","claims":[]})"}) {
    const auto status = ParseClaims(bad, "claims.json").status();
    EXPECT_NE(status.message().find("claims.json"), std::string_view::npos) << bad;
  }
}

TEST(HtmlTest, TextIsNeverMarkup) {
  EXPECT_EQ(HtmlText("<a href=\"x\">&'"), "&lt;a href=&quot;x&quot;&gt;&amp;&#39;");
  EXPECT_EQ(HtmlText("µ → π"), "µ → π");
  EXPECT_EQ(HtmlText(std::string("a\0b\x1b", 4)), "a?b?");
  EXPECT_EQ(HtmlText("\xff\xc3(\xed\xa0\x80\xf4\x90\x80\x80\xc0\x80"),
            "??"
            "(?????????");
}

TEST(HtmlTest, InlinePicturesHaveIdsOfTheirOwn) {
  const std::string svg =
      "<?xml version=\"1.0\"?>\n<svg><title>Gnuplot</title><g id=\"c\"/><path id='p'/><use xlink:href='#p'/>"
      "<text filter=\"url(#c)\"/></svg>";
  EXPECT_EQ(InlineSvg(svg, "f1-", "a<b"),
            "<svg><title>a&lt;b</title><g id=\"f1-c\"/><path id='f1-p'/><use xlink:href='#f1-p'/>"
            "<text filter=\"url(#f1-c)\"/></svg>");
  EXPECT_EQ(InlineSvg("nothing", "f1-", ""), "");
}

TEST(ReportPageTest, DrawsWhatChangesAndListsWhatDoesNot) {
  const RunData run = MakeRun("a<b>", {0.5, 0.75});
  Report report;
  report.name = "R & D";
  report.groups = GroupRuns({&run});
  std::vector<Plot> plots;
  report.render = [&](const Plot& plot) {
    plots.push_back(plot);
    return std::string("<svg></svg>");
  };
  const auto page = ReportPage(report);
  ASSERT_TRUE(page.ok()) << page.status();
  ASSERT_EQ(plots.size(), 1u);
  EXPECT_EQ(plots[0].y_label, "reward");
  EXPECT_EQ(plots[0].series.at(0).name, "");  // one group needs no legend
  for (const char* text : {"<h1>R &amp; D</h1>", "a&lt;b&gt;", "Figure 1. Reward", "Loss: <b>1</b>", "50.0%"}) {
    EXPECT_NE(page->find(text), std::string::npos) << text;
  }
}

TEST(ReportPageTest, ValuesNearOneAreDrawnAsTheirDistanceFromIt) {
  RunData run = MakeRun("a", {0.5, 0.5});
  run.steps[1]["effective_sample_size_token"] = 1;
  run.steps[2]["effective_sample_size_token"] = 0.999;
  Report report;
  report.groups = GroupRuns({&run});
  std::vector<Plot> plots;
  report.render = [&](const Plot& plot) {
    plots.push_back(plot);
    return std::string("<svg></svg>");
  };
  ASSERT_TRUE(ReportFigures(report).ok());
  ASSERT_EQ(plots.size(), 1u);
  EXPECT_TRUE(plots[0].log_y);
  EXPECT_NEAR(plots[0].series[0].y[1], 0.001, 1e-12);
  run.steps[2]["effective_sample_size_token"] = 1.001;
  plots.clear();
  ASSERT_TRUE(ReportFigures(report).ok());
  EXPECT_FALSE(plots[0].log_y);
  EXPECT_NEAR(plots[0].series[0].y[1], 0.001, 1e-12);
  EXPECT_EQ(plots[0].y_label, "fraction − 1");
  run.steps[2]["effective_sample_size_token"] = 0.5;
  plots.clear();
  ASSERT_TRUE(ReportFigures(report).ok());
  EXPECT_FALSE(plots[0].log_y);
  EXPECT_EQ(plots[0].series[0].y[1], 0.5);
}

TEST(ReportPageTest, AGroupMadeByHandTellsThatItsSettingsDiffer) {
  const RunData a = MakeRun("a", {0.5}), b = MakeRun("b", {0.75}, 1, "bf16");
  Report report;
  report.groups = {{"both", {&a, &b}}};
  report.render = [](const Plot&) { return std::string("<svg></svg>"); };
  const auto page = ReportPage(report);
  ASSERT_TRUE(page.ok()) << page.status();
  EXPECT_NE(page->find("<td>several</td>"), std::string::npos);
}

TEST(ReportPageTest, ARunWithoutAStepAndWithoutAConfigHasAPage) {
  RunData run = MakeRun("empty", {});
  run.config.reset();
  Report report;
  report.groups = GroupRuns({&run});
  report.render = [](const Plot&) { return absl::InternalError("nothing is drawn"); };
  const auto page = ReportPage(report);
  ASSERT_TRUE(page.ok()) << page.status();
  EXPECT_NE(page->find("No step was finished yet"), std::string::npos);
}

}  // namespace
}  // namespace lockstep
