// lockstep: the orchestration client. One table of commands.
#include <cstdio>
#include <string>
#include <vector>

#include "client/commands.h"

namespace {

struct Command {
  const char* name;
  const char* arguments;
  const char* help;
  int (*function)(const std::vector<std::string>&);
};

constexpr Command kCommands[] = {
    {"run", "CONFIG [key=value ...] [--resume] [--detach]", "start a run, or go on with one", lockstep::RunCommand},
    {"status", "RUN", "where a run stands", lockstep::StatusCommand},
    {"watch", "RUN", "follow a run until it ends", lockstep::WatchCommand},
    {"pause", "RUN", "hold a run after the step in progress", lockstep::PauseCommand},
    {"resume", "RUN", "let a paused run go on", lockstep::ResumeCommand},
    {"stop", "RUN", "end a run after the step in progress, with a checkpoint", lockstep::StopCommand},
    {"checkpoint", "RUN", "write a checkpoint now", lockstep::CheckpointCommand},
    {"generate", "--model=DIR [--n=1] [--max_tokens=256] [--temperature=1] [--greedy] [--seed=1] PROMPT",
     "sample responses from a model folder", lockstep::GenerateCommand},
    {"pretrain", "CONFIG [key=value ...]", "supervised fine-tuning on prompt/response JSONL",
     lockstep::PretrainCommand},
    {"filter", "CONFIG [key=value ...] --out=FILE [--samples=16] [--low=0.2] [--high=0.8]",
     "keep the problems whose pass rate lies between two thresholds", lockstep::FilterCommand},
    {"grade", "FILE.jsonl [--kind=math] [--out=FILE]", "score the responses of a file with a verifier",
     lockstep::GradeCommand},
    {"summary", "RUN [--out=FILE] [--phase=NAME:SECONDS ...]", "the table of a finished run", lockstep::SummaryCommand},
    {"doctor", "", "what this machine has, what is missing, how to get it", lockstep::DoctorCommand},
};

void PrintHelp(std::FILE* out) {
  std::fprintf(out,
               "lockstep: reinforcement learning for language models with matched rollout and training numerics\n\n");
  for (const Command& command : kCommands) {
    std::fprintf(out, "  lockstep %s %s\n      %s\n", command.name, command.arguments, command.help);
  }
  std::fprintf(out, "\nRUN is a run folder or the host:port of its learner.\n");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    PrintHelp(stderr);
    return 2;
  }
  const std::string name = argv[1];
  if (name == "--help" || name == "-h" || name == "help") {
    PrintHelp(stdout);
    return 0;
  }
  for (const Command& command : kCommands) {
    if (name == command.name) return command.function(std::vector<std::string>(argv + 2, argv + argc));
  }
  return lockstep::Usage("'" + name + "' is not a command; lockstep --help lists them");
}
