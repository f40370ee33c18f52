#!/usr/bin/env bash
# Reads the PTX of the kernels. The emulation shows that the source gives the CPU's bits in IEEE arithmetic; this shows that
# nvcc keeps that arithmetic: every FP32 sum, product, quotient and root is the one rounded to nearest (.rn, which also forbids
# ptxas to contract), subnormals are kept, and nothing is summed by atomics. Tensor cores take FP16 or BF16 and sum in FP32.
#   arithmetic_test.sh PTX...
set -uo pipefail
(($# > 0)) || { echo "no PTX: the test looks in the wrong place"; exit 1; }
failed=0
forbid() {  # PATTERN WHY
  local hits
  hits=$(grep -nE "$1" "${@:3}")
  [[ -z $hits ]] && return
  echo "FAIL: $2:"
  head -5 <<< "$hits"
  failed=1
}
forbid '[[:space:]](add|sub|mul|fma|mad|div|sqrt|rcp)(\.(approx|full|sat|ftz|rz|rm|rp))*\.f32' 'arithmetic that is not rounded to nearest' "$@"
# FP64's logarithm and quotient begin with an approximation that they refine.
forbid '[[:space:]](add|sub|mul|fma|mad|div|sqrt)(\.(approx|full|sat|ftz|rz|rm|rp))*\.f64' 'arithmetic that is not rounded to nearest' "$@"
forbid '\.(approx|full)(\.ftz)?\.f32' 'an approximation' "$@"
forbid '\.ftz\.f32' 'subnormals are flushed' "$@"
forbid '[[:space:]](atom|red)\.' 'an atomic operation: no order of sums' "$@"
# Of the tensor cores' products one is used: m16n8k16, operands as they are stored, FP32 sums.
if hits=$(grep -nE '[[:space:]](mma|wmma|wgmma)\.' "$@" | grep -vE 'mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.(f16\.f16|bf16\.bf16)\.f32'); then
  echo "FAIL: a tensor core's product of another shape or type:"
  head -5 <<< "$hits"
  failed=1
fi
for needed in m16n8k16.row.col.f32.f16.f16.f32 m16n8k16.row.col.f32.bf16.bf16.f32 ldmatrix.sync cp.async.cg.shared.global \
  fma.rn.f32 add.rn.f32 mul.rn.f32 div.rn.f32 sqrt.rn.f32 fma.rn.f64; do
  grep -qF "$needed" "$@" || { echo "FAIL: no $needed in any kernel: the test reads something else"; failed=1; }
done
echo "$(cat "$@" | grep -cE '\.rn\.f(32|64)') operations rounded to nearest in $# files"
exit "$failed"
