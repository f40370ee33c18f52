# jq -f experiments/mismatch.jq runs/experiments/mismatch/mismatch.json: the same without its points, which are 20 times the
# rest, and with the standard errors that they give: of the mean (sequence_kl) and of the least-squares slope; and
# sequence_kl_k3, kl_k3 times the mean length, the estimate of lesser variance.
def mean: add / length;
.pairs |= map(
  .sequence_points as $points | ($points.length | length) as $n | ($points.length | mean) as $mx | ($points.log_ratio | mean) as $my
  | ([$points.length[] | . - $mx | . * .] | add) as $sxx
  | ((.slope // 0) / 1000) as $b
  | ([range($n) | $points.log_ratio[.] - $my - $b * ($points.length[.] - $mx) | . * .] | add / ($n - 2)) as $residual
  | .sequence_kl_error = (([$points.log_ratio[] | . - $my | . * .] | add) / ($n - 1) / $n | sqrt)
  | .slope_error = (if $sxx > 0 then 1000 * ($residual / $sxx | sqrt) else null end)
  | .mean_length = $mx | .sequence_kl_k3 = .kl_k3 * $mx
  | del(.token_points, .sequence_points))
