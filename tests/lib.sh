# What the end-to-end tests share: the real binaries, a tiny model, and assertions that say what was found.
set -uo pipefail

bin=${TEST_SRCDIR:?run me with bazel test}/${TEST_WORKSPACE:-lockstep}
lockstep=$bin/client/lockstep
work=$(mktemp -d "${TEST_TMPDIR:-/tmp}/e2e-XXXXXX")
cd "$work" || exit 1
trap 'code=$?; pkill -KILL -f "$work" 2>/dev/null; rm -rf "$work"; exit $code' EXIT

fail() {
  echo "FAILED: $*" >&2
  for log in "$work"/*/logs/*.log; do
    [[ -f $log ]] && { echo "--- $log"; tail -n 15 "$log"; } >&2
  done
  exit 1
}

# expect_line TEXT COMMAND...: the command fails and prints a line that contains TEXT on stderr, and nothing crashes.
expect_line() {
  local text=$1
  shift
  local out
  out=$("$@" 2>&1 >/dev/null)
  local code=$?
  ((code != 0)) || fail "'$*' succeeded; expected: $text"
  ((code < 128)) || fail "'$*' died of signal $((code - 128)): $out"
  [[ $out == *"$text"* ]] || fail "'$*' printed '$out'; expected: $text"
}

# wait_for SECONDS COMMAND...: polls until the command succeeds.
wait_for() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || return 1
    read -rt 0.1 <> <(:) || true
  done
}

# Lines of held-out evaluations have "eval".
steps_done() { [[ -f $1/metrics.jsonl ]] && (($(grep -vc '"eval":' "$1/metrics.jsonl") >= $2)); }

# What must be equal between two runs of the same seed, whatever happened on the way: one line a step.
figures() { jq -c 'select(has("eval") | not) | [.step, .reward_mean, .loss, .grad_norm, .response_tokens, .loss_scale]' "$1/metrics.jsonl"; }

# The same of evaluations: one line each, without its time.
evaluations() { jq -c 'select(has("eval")) | del(.eval.seconds)' "$1/metrics.jsonl"; }

# A folder base: a model with heads that the device's kernels take, as small as it can be and still be right now and then
# (the emulated device computes 60 tokens a second), trained on the CPU; rl.jsonl, its problems.
make_tiny_model() {
  mkdir -p model
  cat > model/config.json <<'JSON'
{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 32, "num_hidden_layers": 2,
 "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64, "vocab_size": 24,
 "max_position_embeddings": 64, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "tie_word_embeddings": true,
 "hidden_act": "silu", "eos_token_id": 22}
JSON
  "$bin/learner/tasks/make_arithmetic" --count=400 --seed=3 --min_digits=1 --max_digits=1 --out_sft=sft.jsonl \
    --out_rl=rl.jsonl --tokenizer_dir=model || fail "make_arithmetic"
  cat > pretrain.yaml <<'YAML'
seed: 5
model: {path: model}
data: {train: sft.jsonl, max_prompt_tokens: 16}
learner: {dtype: fp16, lr: 3e-3, threads: 1, warmup_steps: 5}
trainer: {prompts_per_step: 32, max_steps: 400, checkpoint_every: 0}
run_dir: pretrain
YAML
  "$lockstep" pretrain pretrain.yaml > pretrain.log 2>&1 || fail "pretrain: $(tail -n 3 pretrain.log)"
  cp -r pretrain/checkpoints/step-400 base
}

make_model() {
  mkdir -p model
  cat > model/config.json <<'JSON'
{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 32, "num_hidden_layers": 2,
 "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 24,
 "max_position_embeddings": 128, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "tie_word_embeddings": true,
 "hidden_act": "silu", "eos_token_id": 22}
JSON
  "$bin/learner/tasks/make_arithmetic" --count=400 --seed=3 --min_digits=1 --max_digits=2 --out_sft=sft.jsonl \
    --out_rl=rl.jsonl --tokenizer_dir=model || fail "make_arithmetic"
  cat > pretrain.yaml <<'YAML'
seed: 5
model: {path: model}
data: {train: sft.jsonl, max_prompt_tokens: 32}
learner: {dtype: fp16, lr: 3e-3, threads: 1, warmup_steps: 5}
trainer: {prompts_per_step: 32, max_steps: 40, checkpoint_every: 0}
run_dir: pretrain
YAML
  cat > run.yaml <<'YAML'
seed: 5
model: {path: base}
data: {train: rl.jsonl, max_prompt_tokens: 32, reward: numeric}
rollout: {num_servers: 2, n: 4, max_tokens: 40, threads: 1}
learner: {lr: 1e-3, threads: 1}
trainer: {prompts_per_step: 8, max_steps: 4, checkpoint_every: 2}
run_dir: run
YAML
  "$lockstep" pretrain pretrain.yaml > pretrain.log 2>&1 || fail "pretrain: $(tail -n 3 pretrain.log)"
  cp -r "$(find pretrain/checkpoints -maxdepth 1 -name 'step-*' | sort -V | tail -n 1)" base
}
