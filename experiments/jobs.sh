# Commands that may be stopped, as children of experiments/run. Sourced by it.
#
# Each job has a session of its own, so that a Ctrl-C of the terminal reaches this script alone, which passes it on once:
# a run then ends after the step in progress, with a checkpoint (a second Ctrl-C ends it at once).
declare -A job_of=()  # pid -> what it is
stopping=0

stop_jobs() {
  stopping=1
  ((${#job_of[@]} > 0)) || return
  echo "experiments: stopping ${#job_of[@]} job(s) after the step in progress; the same command goes on from there"
  kill -INT "${!job_of[@]}" 2>/dev/null
}

start_job() { # NAME LOG COMMAND...: sets job_pid
  local name=$1 log=$2
  shift 2
  setsid "$@" < /dev/null >> "$log" 2>&1 9>&- & # 9: the lock
  job_pid=$!
  job_of[$job_pid]=$name
}

# Waits for one job; its exit code. A signal ends `wait`, not the job.
wait_job() {
  local pid=$1 code
  while true; do
    wait "$pid"
    code=$?
    kill -0 "$pid" 2>/dev/null || break
  done
  unset "job_of[$pid]"
  return "$code"
}

run_job() { # NAME LOG COMMAND...: one job from start to end; fails when it was stopped
  start_job "$@"
  wait_job "$job_pid" && ((stopping == 0)) && return
  ((stopping)) && return 1
  echo "experiments: $1 failed: $(grep -h '^error' "$2" | tail -n 1) ($2)" >&2
  return 1
}
