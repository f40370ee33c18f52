// Starts a run's services as child processes on loopback, keeps the rollout servers alive, and ends them all.
#ifndef LOCKSTEP_CLIENT_LAUNCHER_H_
#define LOCKSTEP_CLIENT_LAUNCHER_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/child.h"
#include "proto/run_config.pb.h"

namespace lockstep {

// Restarts of one rollout server after which the run goes on without it. The first comes at once, the others after 1,
// 2, 4, ... seconds: a GPU may need a while to give back what a dead process held.
inline constexpr int kMaxRestarts = 5;
// Exit codes of a service whose GPU has failed (engine/cuda/errors): a new process can use it; it has to be reset.
inline constexpr int kExitRestartProcess = 75;
inline constexpr int kExitResetDevice = 69;
// How long a service may take to serve (it loads the model first).
inline constexpr double kStartSeconds = 300;

struct LaunchOptions {
  std::string mode = "rl";  // "rl", "pretrain", "filter", "eval"
  bool resume = false;
  // Starts even though the memory plan says that it will not fit.
  bool overcommit = false;
  // Takes a line for the person who waits, before anything is started; may be empty.
  std::function<void(const std::string& line)> note;
  std::vector<std::string> learner_flags;  // passed on
};

class Launcher {
 public:
  Launcher(v1::RunConfig config, LaunchOptions options);
  ~Launcher();  // ends what still runs

  // Writes config.yaml and config.pbtxt into the run folder, starts rollout servers (every mode but pretrain, when no
  // addresses are given), then the learner ranks. On an error everything that was started is ended.
  absl::Status Start();
  const std::string& learner_address() const { return learner_address_; }

  // Restarts rollout servers that died and announces them, but for one whose GPU has to be reset: the run goes on
  // without it. Returns a line per event. Not OK when the run is over: a learner has ended (ABORTED), or no rollout
  // server is left (UNAVAILABLE), after which the learners still have to be ended. *exit_code is that of the process.
  absl::Status Tend(std::vector<std::string>* events, int* exit_code);

  // Asks the learners to end after the step in progress, with a checkpoint.
  void StopLearners();
  // Learners first (they write a checkpoint), then rollout servers.
  void EndAll(double learner_seconds);

 private:
  struct Server {
    std::unique_ptr<Child> child;
    int restarts = 0;
    absl::Time restart_at = absl::InfinitePast();  // of one that has ended
    bool ended = false;
    bool announced = true;
  };

  absl::Status PrepareFolder();
  absl::Status CheckMemory();
  int Ranks() const;
  absl::Status StartServer(int index);
  std::string WayOn() const;  // of a run that is over before its end
  bool HasServers() const;    // that run, or will again
  // The server has ended: when it is to be started again, or not at all.
  void Bury(Server& server, std::vector<std::string>* events);
  absl::Status StartLearner(int rank, const std::string& rollout_addresses);
  std::string Path(const std::string& name) const { return config_.run_dir() + "/" + name; }
  absl::Status Announce(const std::string& address);

  const v1::RunConfig config_;
  const LaunchOptions options_;
  std::vector<Server> servers_;
  std::vector<std::unique_ptr<Child>> learners_;  // by rank
  std::string learner_address_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_CLIENT_LAUNCHER_H_
