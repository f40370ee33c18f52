#include "engine/base/metrics.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <set>
#include <string>
#include <thread>
#include <vector>

#include "engine/base/log.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lockstep {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string HttpGet(int port, const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
    const std::string request = "GET " + path + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    EXPECT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
    char buffer[4096];
    for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;) answer.append(buffer, static_cast<size_t>(n));
  }
  close(fd);
  return answer;
}

TEST(MetricTable, HasUniqueNamesWithThePrefixAndTheRightSuffix) {
  std::set<std::string> names;
  for (const MetricSpec& spec : MetricTable()) {
    EXPECT_TRUE(names.insert(spec.name).second) << spec.name;
    EXPECT_EQ(spec.name.rfind("rl_", 0), 0u) << spec.name;
    const bool total = spec.name.size() > 6 && spec.name.substr(spec.name.size() - 6) == "_total";
    EXPECT_EQ(total, spec.type == MetricType::kCounter) << spec.name;
    EXPECT_EQ(spec.buckets.empty(), spec.type != MetricType::kHistogram) << spec.name;
    EXPECT_LE(spec.buckets.size(), 14u) << spec.name;
    EXPECT_TRUE(std::is_sorted(spec.buckets.begin(), spec.buckets.end())) << spec.name;
    EXPECT_FALSE(spec.help.empty()) << spec.name;
    for (const MetricLabel& label : spec.labels) EXPECT_LE(label.values.size(), 10u) << spec.name;
  }
}

TEST(MetricsRegistry, StartsKnownCountersAtZeroAndGaugesAtTheirFirstSet) {
  MetricsRegistry metrics("learner");
  const MetricGauge scale = metrics.Gauge("rl_learner_loss_scale");
  EXPECT_THAT(metrics.Scrape(), HasSubstr("rl_learner_steps_total{outcome=\"skipped_nonfinite\"} 0"));
  EXPECT_THAT(metrics.Scrape(), HasSubstr("rl_weight_sync_digest_mismatches_total 0"));
  EXPECT_THAT(metrics.Scrape(), Not(HasSubstr("rl_learner_loss_scale ")));
  scale.Set(65536);
  EXPECT_THAT(metrics.Scrape(), HasSubstr("rl_learner_loss_scale 65536"));
}

TEST(MetricsRegistry, ComponentsHaveOnlyTheirOwnMetrics) {
  MetricsRegistry rollout("rollout");
  EXPECT_THAT(rollout.Scrape(), HasSubstr("rl_rollout_generated_tokens_total 0"));
  EXPECT_THAT(rollout.Scrape(), Not(HasSubstr("rl_learner_")));
}

TEST(MetricsRegistry, HandlesOfOneNameShareItsValue) {
  MetricsRegistry metrics("rollout");
  metrics.Counter("rl_rollout_requests_total", {{"reason", "stop"}}).Increment();
  metrics.Counter("rl_rollout_requests_total", {{"reason", "stop"}}).Increment(2);
  EXPECT_EQ(metrics.Counter("rl_rollout_requests_total", {{"reason", "stop"}}).value(), 3);
  metrics.Histogram("rl_rollout_batch_size").Observe(3);
  EXPECT_THAT(metrics.Scrape(), HasSubstr("rl_rollout_batch_size_bucket{le=\"4\"} 1"));
  EXPECT_THAT(metrics.Scrape(), HasSubstr("rl_rollout_batch_size_count 1"));
}

TEST(MetricsRegistry, CountsExactlyFromManyThreads) {
  MetricsRegistry metrics("rollout");
  const MetricCounter tokens = metrics.Counter("rl_rollout_generated_tokens_total");
  const MetricGauge running = metrics.Gauge("rl_rollout_requests_running");
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int k = 0; k < 1000; ++k) tokens.Increment();
      running.Increment();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(tokens.value(), 4000);
  EXPECT_THAT(metrics.Scrape(), HasSubstr("rl_rollout_requests_running 4"));
}

TEST(MetricsRegistryDeathTest, RefusesWhatIsNotInTheTable) {
  MetricsRegistry metrics("rollout");
  EXPECT_DEATH(metrics.Counter("rl_rollout_made_up_total"), "rl_rollout_made_up_total is not in the table");
  EXPECT_DEATH(metrics.Counter("rl_learner_tokens_total"), "is not in the table of a rollout");
  EXPECT_DEATH(metrics.Gauge("rl_rollout_generated_tokens_total"), "has another type");
  EXPECT_DEATH(metrics.Counter("rl_rollout_requests_total"), "needs all its labels");
  EXPECT_DEATH(metrics.Counter("rl_rollout_requests_total", {{"reason", "bored"}}), "reason=bored");
}

TEST(MetricsRegistry, StateIsASetWithExactlyOneOne) {
  MetricsRegistry metrics("rollout");
  EXPECT_THAT(metrics.Scrape(), HasSubstr("rl_component_state{state=\"starting\"} 1"));
  metrics.SetState("serving");
  EXPECT_THAT(metrics.Scrape(), HasSubstr("rl_component_state{state=\"starting\"} 0"));
  EXPECT_THAT(metrics.Scrape(), HasSubstr("rl_component_state{state=\"serving\"} 1"));
}

TEST(MetricsServer, ServesTheScrapeOnAFreePortWithProcessAndLogMetrics) {
  MetricsRegistry metrics("learner");
  metrics.RecordProgress();
  LogWarning("a line to count");
  auto server = MetricsServer::Start(&metrics, "127.0.0.1", 0);
  ASSERT_TRUE(server.ok()) << server.status();
  ASSERT_GT((*server)->port(), 0);
  EXPECT_EQ((*server)->address(), "127.0.0.1:" + std::to_string((*server)->port()));
  const std::string answer = HttpGet((*server)->port(), "/metrics");
  EXPECT_THAT(answer, HasSubstr("200 OK"));
  EXPECT_THAT(answer, HasSubstr("rl_build_info{protocol=\"lockstep.v1\",version=\"0.1.0\"} 1"));
  EXPECT_THAT(answer, HasSubstr("rl_log_messages_total{level=\"warning\"} 1"));
  EXPECT_THAT(answer, HasSubstr("rl_last_progress_timestamp_seconds 1"));
  for (const char* name : {"process_cpu_seconds_total ", "process_resident_memory_bytes ", "process_open_fds ",
                           "process_start_time_seconds 1"}) {
    EXPECT_THAT(answer, HasSubstr(name));
  }
}

TEST(MetricsServer, SaysInOneLineThatThePortIsTaken) {
  MetricsRegistry metrics("learner");
  auto first = MetricsServer::Start(&metrics, "127.0.0.1", 0);
  ASSERT_TRUE(first.ok()) << first.status();
  auto second = MetricsServer::Start(&metrics, "127.0.0.1", (*first)->port());
  ASSERT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("cannot listen on 127.0.0.1:"));
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("--metrics_port"));
}

}  // namespace
}  // namespace lockstep
