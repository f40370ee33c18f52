# jq -s -c --argjson every K -f results.jq RUN/metrics.jsonl: the figures of one run.
# A resumed run repeats the steps after its checkpoint: the last line of a step counts.
#   final      mean reward of the last tenth of the steps; best: the best mean of as many steps in a row
#   collapsed  the mean reward of 5 steps in a row fell under half of the best such mean before it, as in `lockstep report`;
#              collapsed_at: the last of the first such 5 steps
def number: if type == "string" then tonumber else . // 0 end;
def mean: if length > 0 then add / length else 0 end;
map(select(has("eval") | not)) | map(.step = (.step | number)) | group_by(.step) | map(last) | . as $steps
| ($steps | length) as $n
| ([1, ($n / 10 | floor)] | max) as $window
| ($steps | map(.reward_mean | number)) as $reward
| [range($n - $window + 1) | $reward[.:. + $window] | mean] as $smooth
| ($smooth | max) as $best | ($smooth | last) as $final
| [range($n - 4) | $reward[.:. + 5] | mean] as $five
| ([range($five | length) | select(. > 0 and $five[.] < ($five[:.] | max) / 2)] | first) as $fall
| ($steps | map(.response_tokens | number) | add) as $tokens
| def per_token($key): ($steps | map((.[$key] | number) * (.response_tokens | number)) | add) / ([$tokens, 1] | max);
  def average($key): $steps | map(.[$key] | number) | mean;
  def largest($key): $steps | map(.[$key] | number) | max;
  def seconds($key): $steps | map(.seconds[$key] // 0 | number) | add;
  {
    steps: $n, every: $every, window: $window,
    reward: [range(0; $n; $every) | $reward[.:. + $every] | mean | . * 10000 | round / 10000],
    start: $smooth[0], final: $final, best: $best, best_at: ($smooth | index($best)), mean_reward: ($reward | mean),
    collapsed: ($fall != null), collapsed_at: (if $fall != null then $steps[$fall + 4].step else null end),
    kl_k1: per_token("kl_k1"), kl_k3: per_token("kl_k3"), kl_k3_last: ($steps | last | .kl_k3 | number),
    mean_abs_log_ratio: per_token("mean_abs_log_ratio"), max_abs_log_ratio: largest("max_abs_log_ratio"),
    ratio_outside_fraction: per_token("ratio_outside_fraction"),
    sequence_log_ratio_mean: average("sequence_log_ratio_mean"),
    sequence_log_ratio_min: ($steps | map(.sequence_log_ratio_min | number) | min),
    sequence_log_ratio_slope: average("sequence_log_ratio_slope"),
    effective_sample_size_sequence: average("effective_sample_size_sequence"),
    entropy: average("entropy"), clip_fraction: average("clip_fraction"),
    response_length_mean: average("response_length_mean"),
    grad_norm_max: largest("grad_norm"),
    skipped_steps: ($steps | last | .skipped_steps_total | number), response_tokens: $tokens,
    seconds: (($steps | map((.seconds // {}) | keys) | add | unique) as $phases
      | [$phases[] | {key: ., value: (seconds(.) * 1000 | round / 1000)}] | from_entries
      | .total = ($steps | map(.seconds_total | number) | add))
  }
