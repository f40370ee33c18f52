#!/usr/bin/env bash
# Whole runs with `device: cuda`: the product's services over the emulated device (environment.h in
# engine/kernels/cuda/emulation), started by the product's client. All transports, faults of processes and of devices, and
# what is refused before anything is started.
source "$(dirname "$(realpath "$0")")/lib.sh"

# The programs that the client starts: its own, but for the two that compute.
mkdir services faults
for service in learner rollout_server; do ln -s "$bin/$service/emulated_$service" services/lockstep_$service; done
machine=  # settings of the emulated machine
gpu() { LOCKSTEP_BIN_DIR=$work/services LOCKSTEP_EMULATED_GPU="faults=$work/faults $machine" "$lockstep" "$@"; }

make_tiny_model
cat > run.yaml <<'YAML'
seed: 5
device: cuda
model: {path: base}
data: {train: rl.jsonl, max_prompt_tokens: 16, reward: numeric}
rollout: {num_servers: 1, n: 4, max_tokens: 20, threads: 1}
learner: {lr: 1e-3, threads: 1}
trainer: {prompts_per_step: 2, max_steps: 3, checkpoint_every: 1}
run_dir: run
YAML
cp -r base base8
sed -i -E 's/"num_attention_heads": *2/"num_attention_heads": 4/; s/"head_dim": *16/"head_dim": 8/' base8/config.json

took=$SECONDS
say() {
  echo "   ($((SECONDS - took)) s)"
  took=$SECONDS
  echo "== $*"
}
# run DIR SETTING...: a run that ends well, with mu == pi in each of its 3 steps.
run() {
  gpu run run.yaml run_dir="$1" "${@:2}" > "$1.log" 2>&1 || fail "$1: exit code $?: $(tail -n 3 "$1.log")"
  exact "$1"
}
exact() {
  jq -es 'length >= 3 and all(.[]; .max_abs_log_ratio == 0 and .kl_k1 == 0 and .response_tokens > 0)' \
    "$1/metrics.jsonl" > /dev/null || fail "$1: mu is not pi: $(jq -c '[.step, .max_abs_log_ratio]' "$1/metrics.jsonl" | tr '\n' ' ')"
}
# The first 3 steps of both.
first() { figures "$1" | head -n 3; }
same() { [[ $(first "$1") == "$(first "$2")" ]] || fail "figures of $1 and $2 differ: $(diff <(first "$1") <(first "$2"))"; }
# One line on the client's stderr, of which nothing has been started.
refused() {
  expect_line "$1" gpu run run.yaml run_dir=refused "${@:2}"
  local lines
  lines=$(gpu run run.yaml run_dir=refused "${@:2}" 2>&1 > /dev/null | wc -l)
  ((lines == 1)) || fail "$* printed $lines lines"
  [[ -z $(find refused/logs -name 'rollout-*.log' -o -name learner.log 2> /dev/null) ]] || fail "'$1' came after something was started"
}
# fault PROGRAM ERROR: the next piece of work on its device fails, and all after it.
fault() { echo "0 $2" > "faults/.new" && mv faults/.new "faults/lockstep_$1"; }
launch_failure=719 unknown_error=999 ecc_error=214

say "what cannot be is refused before anything is started"
machine="driver=0" refused "no NVIDIA driver (cudaErrorInsufficientDriver); install NVIDIA driver 580 or newer"
machine="driver=0" refused "no NVIDIA driver" --overcommit
machine="devices=0" refused "the driver sees no device" --overcommit
machine="capability=75" refused "compute capability"
machine="memory_mib=800" refused "memory: CUDA device 0 (Emulated device) needs 1.0 GiB"
machine="memory_mib=800" refused "--overcommit starts it all the same"
machine="used_mib=16000" refused "CUDA device 0 (Emulated device), 0.4 GiB free"
refused "the learner and rollout server 0 would share CUDA device 0" weight_sync.transport=nccl --overcommit
machine="devices=2" refused "\"ipc\" works on one GPU" weight_sync.transport=ipc
machine="devices=2" refused "the learner and rollout server 1 would share CUDA device 0" weight_sync.transport=nccl rollout.num_servers=2
refused "ranks 0 and 1 would share CUDA device 0" learner.world_size=2
machine="devices=2 nccl=0" refused "NCCL" weight_sync.transport=nccl
refused "head_dim" model.path=base8
machine="memory_mib=800" gpu run run.yaml run_dir=overcommit trainer.max_steps=1 --overcommit > overcommit.log 2>&1 ||
  fail "--overcommit does not start a run that the plan alone refuses: $(tail -n 3 overcommit.log)"

say "weights go by Gloo, CUDA IPC and NCCL: the same run, to the bit"
run gloo
run ipc weight_sync.transport=ipc
machine="devices=2" run nccl weight_sync.transport=nccl
same gloo ipc
same gloo nccl
jq -es 'any(.[]; .grad_norm > 0) and any(.[]; .reward_mean > 0)' gloo/metrics.jsonl > /dev/null || fail "nothing is learnt: $(figures gloo)"
cmp gloo/checkpoints/step-3/model.safetensors nccl/checkpoints/step-3/model.safetensors || fail "the weights differ"

say "in FP32 the device's figures are the CPU's"
fp32=(learner.dtype=fp32 rollout.dtype=fp32)
"$lockstep" run run.yaml run_dir=cpu32 device=cpu "${fp32[@]}" > cpu32.log 2>&1 || fail "cpu32: $(tail -n 3 cpu32.log)"
run gpu32 "${fp32[@]}"
same cpu32 gpu32
cmp cpu32/checkpoints/step-3/model.safetensors gpu32/checkpoints/step-3/model.safetensors || fail "the weights differ"

say "a run goes on on the other device"
"$lockstep" run run.yaml run_dir=moved device=cpu "${fp32[@]}" trainer.max_steps=1 > moved.log 2>&1 || fail "moved: $(tail -n 3 moved.log)"
gpu run run.yaml run_dir=moved "${fp32[@]}" trainer.max_steps=2 --resume >> moved.log 2>&1 || fail "moved: $(tail -n 3 moved.log)"
"$lockstep" run run.yaml run_dir=moved device=cpu "${fp32[@]}" --resume >> moved.log 2>&1 || fail "moved: $(tail -n 3 moved.log)"
exact moved
same cpu32 moved

say "two ranks sum their gradients by NCCL, or through the host"
machine="devices=3" run ranks learner.world_size=2 weight_sync.transport=nccl "${fp32[@]}"
"$lockstep" run run.yaml run_dir=ranks_cpu device=cpu learner.world_size=2 "${fp32[@]}" > ranks_cpu.log 2>&1 || fail "ranks_cpu: $(tail -n 3 ranks_cpu.log)"
same ranks_cpu ranks
machine="nccl=0" run ranks_host learner.world_size=2 "${fp32[@]}"
grep -q 'gradients are summed through the host' ranks_host/logs/learner.log || fail "the learner does not say that it has no NCCL"
same ranks_cpu ranks_host

# in_step DIR N: waits until the run has done N steps.
in_step() { wait_for 60 steps_done "$1" "$2" || fail "$1 makes no step $2: $(tail -n 3 "$1.log")"; }
# More steps than the others: a fault has to come before the end.
long=trainer.max_steps=20
begin() {
  gpu run run.yaml run_dir="$1" $long "${@:2}" > "$1.log" 2>&1 &
  client=$!
  in_step "$1" 1
}

say "a rollout server that is killed, or whose context is lost, is started again, and changes no figure"
begin killed weight_sync.transport=ipc
pkill -KILL -f 'lockstep_rollout_server --config=killed/' || fail "no server to kill"
wait_for 60 grep -q 'rollout-0 is back at' killed.log || fail "the server does not come back: $(cat killed.log)"
fault rollout_server $launch_failure
wait $client || fail "the run did not survive: $(tail -n 3 killed.log)"
[[ ! -e faults/lockstep_rollout_server ]] || fail "no server met the fault"
grep -q 'killed by signal 9' killed.log || fail "the client does not name the killed server: $(cat killed.log)"
grep -q 'a kernel failed (cudaErrorLaunchFailure); every further call of this process fails: restart it' killed.log ||
  fail "the client does not say what the server met: $(cat killed.log)"
(($(grep -c 'rollout-0 is back at' killed.log) == 2)) || fail "the server did not come back twice: $(cat killed.log)"
exact killed
same gloo killed

say "a server whose GPU needs a reset is left out, and with the last one the run ends with a checkpoint"
machine="devices=3" begin reset weight_sync.transport=nccl rollout.num_servers=2
fault rollout_server $ecc_error
wait_for 60 grep -q "'s GPU cannot be used before it is reset; the run goes on without it" reset.log || fail "the client keeps the server: $(cat reset.log)"
grep -q restarting reset.log && fail "a server is started again on a GPU that needs a reset"
fault rollout_server $unknown_error
wait $client
code=$?
((code == 69)) || fail "exit code $code, not 69: $(tail -n 3 reset.log)"
grep -q 'lockstep: no rollout server is left; the last: .*fallen off the bus.*--resume goes on' reset.log || fail "no line about the end: $(cat reset.log)"
gpu run run.yaml run_dir=reset $long --resume >> reset.log 2>&1 || fail "resume: $(tail -n 3 reset.log)"
exact reset
same gloo reset

say "a learner whose context or device is lost ends the run with one line; it goes on from the checkpoint"
for case in "$launch_failure 75 a kernel failed" "$unknown_error 69 fallen off the bus"; do
  read -r error wanted text <<< "$case"
  dir=lost$wanted
  begin "$dir"
  fault learner "$error"
  wait $client
  code=$?
  ((code == wanted)) || fail "$dir: exit code $code: $(tail -n 3 "$dir.log")"
  (($(grep -c "^lockstep: learner: .*$text.*lockstep run with --resume goes on from the last checkpoint$" "$dir.log") == 1)) ||
    fail "$dir: not one line: $(tail -n 3 "$dir.log")"
  pgrep -f "config=$dir/" > /dev/null && fail "processes are left: $(pgrep -af "config=$dir/")"
done
gpu run run.yaml run_dir=lost75 $long --resume >> lost75.log 2>&1 || fail "resume: $(tail -n 3 lost75.log)"
exact lost75
same gloo lost75

say "a rank that is lost ends the run for all"
machine="devices=3" begin rank learner.world_size=2
fault learner $launch_failure
wait $client
code=$?
((code == 75)) || fail "exit code $code, not 75: $(tail -n 3 rank.log)"
say passed
