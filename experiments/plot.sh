#!/usr/bin/env bash
# Draws the reward curves of a results file: a line a variant, the mean over its seeds, in a band from the least to the
# greatest.   experiments/plot.sh experiments/results/FIGURE.json OUT.svg
set -euo pipefail
(($# == 2)) || { echo "usage: experiments/plot.sh RESULTS.json OUT.svg" >&2; exit 2; }
results=$1 out=$2
command -v gnuplot >/dev/null || { echo "plot: gnuplot is not installed (Debian package gnuplot-nox)" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
jq -r '[.runs[].variant] | reduce .[] as $v ([]; if index([$v]) then . else . + [$v] end) | .[]' "$results" > "$work/variants"
colours=(000000 e69f00 56b4e9 009e73 cc79a7 d55e00 0072b2 f0e442 7f7f7f a0522d)
{
  echo "set terminal svg size 860,420 font 'sans-serif,11' background '#ffffff'"
  echo "set output '$work/out.svg'"
  echo "set key outside right top; set grid lc rgb '#dddddd'; set xlabel 'step'; set ylabel 'training reward'; set yrange [0:1]"
  printf 'plot '
  n=0
  while read -r variant; do
    # Columns: step (the last of the mean), mean, least, greatest over the seeds that got there.
    jq -r --arg v "$variant" '[.runs[] | select(.variant == $v)] | .[0].every as $every | [.[].reward] as $curves
      | range($curves | map(length) | max) as $i | [$curves[] | select(length > $i) | .[$i]]
      | [($i + 1) * $every, add / length, min, max] | @tsv' "$results" > "$work/$n.tsv"
    ((n > 0)) && printf ', '
    dash=1
    [[ $variant == *bf16* ]] && dash=2  # runs with BF16 are dashed
    colour=${colours[n % ${#colours[@]}]}
    printf "'%s/%d.tsv' using 1:3:4 with filledcurves lc rgb '#%s' fs transparent solid 0.12 noborder notitle, " "$work" "$n" "$colour"
    printf "'%s/%d.tsv' using 1:2 with lines lw 2 dt %d lc rgb '#%s' title \"%s\" noenhanced" "$work" "$n" "$dash" "$colour" "$variant"
    n=$((n + 1))
  done < "$work/variants"
  echo
} > "$work/plot.gp"
gnuplot "$work/plot.gp"
mkdir -p "$(dirname "$out")"
mv "$work/out.svg" "$out"
