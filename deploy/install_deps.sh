#!/usr/bin/env bash
# Installs what Lockstep needs to build, run and be tested on Debian 12, as root or through sudo.
# Safe to call again: packages that are present cost nothing. `--check` only prints what is missing.
set -euo pipefail

packages=(
  # build
  g++ bazel-bootstrap bazel-rules-java bazel-rules-proto clang-format git ca-certificates
  # RPC, messages, errors and logging
  libgrpc++-dev protobuf-compiler-grpc libprotobuf-dev protobuf-compiler libabsl-dev
  # collectives, storage, config, Unicode
  libgloo-dev libsqlite3-dev sqlite3 libyaml-cpp-dev nlohmann-json3-dev libutf8proc-dev libpcre2-dev
  # exact fractions of answers
  libgmp-dev
  # metrics
  prometheus-cpp-dev prometheus
  # plots
  gnuplot-nox
  # tests and benchmarks
  libgtest-dev libgmock-dev libbenchmark-dev
  # fuzzing (tests/fuzz/run.sh)
  clang libclang-rt-14-dev
  # the reward service example and its test
  python3-grpcio python3-protobuf
  # what the scripts call
  curl jq procps
)

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true)
  [[ $status == "install ok installed" ]] || missing+=("$package")
done

if [[ ${1:-} == --check ]]; then
  if ((${#missing[@]} > 0)); then
    echo "missing: ${missing[*]}"
    exit 1
  fi
  echo "nothing is missing"
  exit 0
fi
((${#missing[@]} == 0)) && exit 0

as_root=()
if ((EUID != 0)); then
  if ! command -v sudo >/dev/null; then
    echo "install_deps: needs root to install ${missing[*]}; run it as root or install sudo" >&2
    exit 1
  fi
  as_root=(sudo)
fi

echo "install_deps: installing ${#missing[@]} packages: ${missing[*]}"
# Debian starts packaged daemons at install; the Prometheus that tests use is started by the tests on their own port.
policy=/usr/sbin/policy-rc.d
made_policy=0
if [[ ! -e $policy ]]; then
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod +x "$policy"
  made_policy=1
fi
cleanup() { if ((made_policy)); then "${as_root[@]}" rm -f "$policy"; fi; }
trap cleanup EXIT
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
echo "install_deps: done"
