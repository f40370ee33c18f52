#!/usr/bin/env bash
# The benchmark's code, over the emulated device and a tiny model: every row is there, in every table, and has figures.
# What they are means nothing.
set -uo pipefail
bench=$1
out=$(mktemp)
trap 'rm -f "$out" "$out.stdout"' EXIT
failed=0
fail() {
  echo "FAIL: $1"
  failed=1
}

"$bench" --tiny --out="$out" > "$out.stdout" || fail "exit $?"
cmp -s "$out" "$out.stdout" || fail "the file is not what was printed"
cat "$out"
row='[0-9]+\.[0-9]+ ms \|'
for expected in "^### Decode of tiny, fp16, context 20" "^\| native \| 1 \| $row" "^\| matched \| 1 \| $row" \
  "^\| native \| 3 \| $row" "^\| matched \| 3 \| $row.*\| [0-9]+\.[0-9]+ \|$" \
  "^### The rollout server's loop: decode of tiny, fp16, context 20" \
  "^\| native \| 3 \| $row [0-9]+ \| $row [0-9.]+ \| 100% \| [0-9]+% \|$" \
  "^\| matched \| 1 \| $row [0-9]+ \| $row [0-9.]+ \| 100% \| [0-9]+% \|$" \
  "^### Training step of tiny, fp16, 32 packed tokens" "^\| native \| $row [0-9]+ \|" "^\| matched \| $row [0-9]+ \|" \
  "^\| copy on the device .* GB/s \|$" "^\| read by a kernel \| [0-9]+ GB/s \|$" \
  "^\| matrix product by cuBLASLt, 64\^3 \| [0-9.]+ TFLOP/s \|$"; do
  grep -qE "$expected" "$out" || fail "no line like $expected"
done
if grep -qwE 'nan|inf' "$out"; then fail "a figure is no number"; fi
# Every row of a table has the cells of its head.
awk -F'|' '/^###/ { cells = 0 } /^\|/ { if (cells == 0) cells = NF; if (NF != cells) { print "FAIL: " NF - 2 " cells, not " cells - 2 ": " $0; exit 1 } }' "$out" || failed=1

"$bench" --tiny --dtype=bf16 --batches=1 > "$out" || fail "bf16: exit $?"
grep -q '^### Training step of tiny, bf16' "$out" || fail "bf16: $(cat "$out")"
"$bench" --tiny --batches=1 --train_tokens=8 --train_length=8 --context=500 > "$out" && fail "a context longer than the model's is measured"
grep -q "a context of 500 is more than the model's 128" "$out" || fail "a long context is not named: $(cat "$out")"
for wrong in --batches=0 --dtype=fp8 --nothing --shapes=unknown; do
  line=$("$bench" $wrong 2>&1)
  (($? == 2 && $(wc -l <<< "$line") == 1)) || fail "$wrong: $line"
done
exit "$failed"
