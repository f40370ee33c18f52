# jq -r -f experiments/time.jq experiments/results/recompute.json: claim 7, seconds of a run's steps and the share of the pass that
# recomputes the old log-probs, in Markdown.
def mean: add / length;
def fixed($digits): pow(10; $digits) as $p | (. * $p | round) / $p | tostring;
def spread($digits): if length > 1 then "\(mean | fixed($digits)) (\(min | fixed($digits)) to \(max | fixed($digits)))" else mean | fixed($digits) end;
def training: .seconds | .old_log_prob + .forward_backward + .reduce + .optimizer;
[.runs[] | select(.finished)] as $runs
| ($runs | reduce .[].variant as $v ([]; if index([$v]) then . else . + [$v] end)) as $variants
| "| run | seeds | training, seconds a step | old log-probs, seconds a step | share of training, % | share of the step, % |",
  "| --- | --- | --- | --- | --- | --- |",
  ($variants[] as $v | [$runs[] | select(.variant == $v)]
   | "| \($v) | \(length) | \(map(training / .steps) | spread(3)) | \(map(.seconds.old_log_prob / .steps) | spread(3)) | \(map(100 * .seconds.old_log_prob / training) | spread(1)) | \(map(100 * .seconds.old_log_prob / .seconds.total) | spread(1)) |")
