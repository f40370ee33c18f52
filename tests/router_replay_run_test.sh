#!/usr/bin/env bash
# Router replay in whole runs: a mixture of experts, its routing sent along, replayed by one rank and by two, and taken
# from the ledger by a resumed run; a dense model is refused before anything starts.
source "$(dirname "$(realpath "$0")")/lib.sh"
make_model

expect_line "learner.router_replay: 'replay' needs a model with experts, and this Qwen2ForCausalLM has none" \
  "$lockstep" run run.yaml run_dir=dense learner.router_replay=replay
[[ ! -f dense/ledger.db ]] || fail "the dense run was started"
expect_line "learner.router_replay: 'on' is unknown; use one of off, measure, replay" \
  "$lockstep" run run.yaml run_dir=dense learner.router_replay=on

mkdir mixture
cp model/* mixture/
cat > mixture/config.json <<'JSON'
{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 32, "num_hidden_layers": 3,
 "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64,
 "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": true,
 "decoder_sparse_step": 1, "mlp_only_layers": [1], "vocab_size": 24, "max_position_embeddings": 128,
 "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "tie_word_embeddings": true, "hidden_act": "silu", "eos_token_id": 22}
JSON
rm -rf pretrain base
"$lockstep" pretrain pretrain.yaml model.path=mixture > pretrain.log 2>&1 || fail "pretrain: $(tail -n 3 pretrain.log)"
cp -r "$(find pretrain/checkpoints -maxdepth 1 -name 'step-*' | sort -V | tail -n 1)" base

# run NAME SETTING...
run() {
  local name=$1
  shift
  "$lockstep" run run.yaml run_dir="$name" "$@" > "$name.log" 2>&1 || fail "$name: $(tail -n 3 "$name.log")"
}
expect_steps() {
  jq -es "length == 4 and all(.[]; $2)" "$1/metrics.jsonl" > /dev/null || fail "$1: $3: $(cat "$1/metrics.jsonl")"
}

# Matched numerics: nothing to correct, and replay changes no figure.
run off
run matched learner.router_replay=replay
expect_steps off '.router_choices == 0 and .router_mismatch == 0' "no routing was asked for"
expect_steps matched '.router_choices > 0 and .router_mismatch == 0 and .max_abs_log_ratio == 0' "matched is matched"
[[ $(figures off) == "$(figures matched)" ]] || fail "replay changed a matched run: $(figures off) $(figures matched)"

# BF16 over FP16: the same first step, with and without. (Native numerics would do as well, but not draw alike in two
# runs.)
bf16=(learner.dtype=bf16 trainer.prompts_per_step=32)
run measured "${bf16[@]}" learner.router_replay=measure
run replayed "${bf16[@]}" learner.router_replay=replay
expect_steps replayed '.router_choices > 0 and .router_mismatch < 0.5' "routing was sent"
"$lockstep" summary measured | grep -q "^.*experts chosen otherwise.*%" || fail "summary: $("$lockstep" summary measured)"
"$lockstep" summary off | grep -q "experts" && fail "summary of a run without routing: $("$lockstep" summary off)"
first() { jq -r "select(.step == 1) | .$2" "$1/metrics.jsonl"; }
[[ $(first measured response_tokens) == "$(first replayed response_tokens)" ]] || fail "the first steps differ in tokens"
jq -en "$(first measured router_mismatch) > 0" > /dev/null || fail "no token is routed otherwise: nothing to replay"
jq -en "$(first replayed kl_k3) <= $(first measured kl_k3)" > /dev/null ||
  fail "kl_k3 $(first replayed kl_k3) with replay, $(first measured kl_k3) without"

# A learner that is killed takes the groups of its step with their routing from the ledger: the same figures.
"$lockstep" run run.yaml run_dir="$work/killed" "${bf16[@]}" learner.router_replay=replay > killed.log 2>&1 &
client=$!
wait_for 60 steps_done killed 3 || fail "killed: no third step"
kill -KILL "$(pgrep -f "lockstep_learner --config=$work/killed/")" || fail "no learner to kill"
wait $client && fail "the client reports success though its learner was killed"
"$lockstep" run run.yaml run_dir="$work/killed" "${bf16[@]}" learner.router_replay=replay --resume >> killed.log 2>&1 ||
  fail "resume: $(tail -n 3 killed.log)"
[[ $(figures killed) == "$(figures replayed)" ]] || fail "resumed otherwise: $(diff <(figures killed) <(figures replayed))"
cmp killed/checkpoints/step-4/model.safetensors replayed/checkpoints/step-4/model.safetensors ||
  fail "the weights after resume differ"
(($(sqlite3 killed/ledger.db "select count(*) from routing") == 4 * 32 * 4)) || fail "the ledger lacks routing"

# A second rank replays what rank 0 tells it; samples in flight at a new version keep a row a token.
run two_ranks "${bf16[@]}" learner.router_replay=replay learner.world_size=2
expect_steps two_ranks '.router_choices > 0' "routing reached the ranks"
[[ $(first two_ranks router_choices) == "$(first replayed router_choices)" ]] || fail "two ranks count otherwise"
for in_flight in continue restart; do
  run $in_flight "${bf16[@]}" learner.router_replay=replay algorithm.max_staleness=1 weight_sync.in_flight=$in_flight
  expect_steps $in_flight '.router_choices > 0 and .samples == 128' "in_flight $in_flight"
done
echo "passed"
