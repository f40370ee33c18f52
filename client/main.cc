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
    {"run", "CONFIG [key=value ...] [--resume] [--detach] [--overcommit]", "start a run, or go on with one",
     lockstep::RunCommand},
    {"status", "RUN", "where a run stands", lockstep::StatusCommand},
    {"watch", "RUN", "follow a run until it ends", lockstep::WatchCommand},
    {"pause", "RUN", "hold a run after the step in progress", lockstep::PauseCommand},
    {"resume", "RUN", "let a paused run go on", lockstep::ResumeCommand},
    {"stop", "RUN", "end a run after the step in progress, with a checkpoint", lockstep::StopCommand},
    {"checkpoint", "RUN", "write a checkpoint now", lockstep::CheckpointCommand},
    {"generate",
     "--model=DIR [--n=1] [--max_tokens=256] [--temperature=1] [--greedy] [--seed=1] PROMPT|- | "
     "--prompts=FILE.jsonl|-",
     "sample responses from a model folder: text as it comes, or JSON lines for a file of prompts",
     lockstep::GenerateCommand},
    {"tokenize", "--model=DIR [--no-add-special-tokens] [--json] [--chat] [--decode [--skip-special-tokens]] < TEXTS",
     "texts, one a line, to JSON lists of token ids (--decode: back)", lockstep::TokenizeCommand},
    {"pretrain", "CONFIG [key=value ...]", "supervised fine-tuning on prompt/response JSONL",
     lockstep::PretrainCommand},
    {"filter", "CONFIG [key=value ...] --out=FILE [--samples=16] [--low=0.2] [--high=0.8]",
     "keep the problems whose pass rate lies between two thresholds", lockstep::FilterCommand},
    {"eval",
     "CONFIG [key=value ...] | --model=DIR --data=FILE [--n=32] [--temperature=0.6] [--top_p=0.95] [--max_tokens=N] "
     "[--limit=N] [--reward=math] [--out=FILE]",
     "pass@1, pass@k and maj@k of a model on held-out problems", lockstep::EvalCommand},
    {"score",
     "--model=DIR [--engine=learner|rollout] [--dtype=fp16] [--numerics=matched] [--temperature=1] [--threads=2] "
     "[--out=FILE] FILE.jsonl",
     "log-probs of given tokens, a JSON line each", lockstep::ScoreCommand},
    {"mismatch",
     "--model=DIR --prompts=FILE.jsonl|--tokens=FILE.jsonl [--pairs=bf16/bf16,fp16/fp16,bf16/fp32@matched,...] "
     "[--sample=shared|own] [--n=1] [--limit=N] [--max_tokens=256] [--lengths=spread|64,128,...] [--temperature=1] "
     "[--seed=1] [--threads=2] [--out=mismatch]",
     "rollout against training probabilities of the same tokens, by learner/rollout precision: figures, plots",
     lockstep::MismatchCommand},
    {"make-model", "--shape=NAME|CONFIG.json [--dtype=fp16] [--seed=1] [--tokenizer=DIR] OUT_DIR",
     "a model folder with random weights, for tests and measurements", lockstep::MakeModelCommand},
    {"grade", "FILE.jsonl [--kind=math] [--out=FILE]", "score the responses of a file with a verifier",
     lockstep::GradeCommand},
    {"summary", "RUN [--out=FILE] [--phase=NAME:SECONDS ...]", "the table of a finished run", lockstep::SummaryCommand},
    {"report",
     "RUN|FOLDER_OF_RUNS ... [--out=report.html] [--name=TITLE] [--group=LABEL:RUN,RUN ...] [--claims=FILE.json] "
     "[--target=0.95] [--tensorboard=DIR]",
     "runs as one HTML page with tables and figures, or as TensorBoard's event files", lockstep::ReportCommand},
    {"doctor", "[CONFIG [key=value ...]]", "what this machine has, what is missing, how to get it; whether a run fits",
     lockstep::DoctorCommand},
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
