# jq -r -f experiments/table.jq experiments/results/FIGURE.json: a row a variant, in Markdown, over its finished runs.
def mean: add / length;
def fixed($digits): pow(10; $digits) as $p | (. * $p | round) / $p | tostring;
def power: if . == 0 then "0" else (fabs | log10 | floor) as $e | ((. / pow(10; $e) * 10 | round) / 10 | tostring) + "e" + ($e | tostring) end;
def spread($key): map(.[$key]) | if length > 1 then "\(mean | fixed(3)) (\(min | fixed(3)) to \(max | fixed(3)))" else mean | fixed(3) end;
[.runs[] | select(.finished)] as $runs
| ($runs | reduce .[].variant as $v ([]; if index([$v]) then . else . + [$v] end)) as $variants
| "| run | seeds | steps | reward at the end | collapsed | KL k3 a token | mean abs log ratio | least sequence log ratio | skipped |",
  "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
  ($variants[] as $v | [$runs[] | select(.variant == $v)]
   | "| \($v) | \(length) | \(map(.steps) | max) | \(spread("final")) | \(map(select(.collapsed)) | length) of \(length) | \(map(.kl_k3) | mean | power) | \(map(.mean_abs_log_ratio) | mean | power) | \(map(.sequence_log_ratio_min) | min | fixed(4)) | \(map(.skipped_steps) | add) |")
