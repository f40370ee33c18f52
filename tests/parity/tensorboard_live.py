#!/usr/bin/env python3
"""What the installed tensorboard reads from a run's event files, against the run's metrics.jsonl.

    python tests/parity/tensorboard_live.py RUN [EXPORTED]

RUN is a run folder (with tensorboard/); EXPORTED a folder that `lockstep report RUN --tensorboard=DIR` wrote (DIR/NAME).
For each: every step once, each figure of each step at its tag with the value of metrics.jsonl in single precision, also
after a resume that did steps again. Ends with status 1 when something differs, 77 when tensorboard is not installed.
"""
import json
import math
import struct
import sys

try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

# Names whose tag says something else than group/name.
RENAMED = {"reward_mean": "reward", "response_length_mean": "response_length", "staleness_mean": "staleness"}


def single(value):
    return math.nan if value is None else struct.unpack("f", struct.pack("f", float(value)))[0]


def expected(run):
    """{last part of the tag or "eval/name": {step: value}}; the last line of a step counts."""
    figures = {}
    for line in open(f"{run}/metrics.jsonl"):
        record = json.loads(line)
        step = record.pop("step")
        if "eval" in record:
            for name, value in record["eval"].items():
                name = name.replace("pass@", "pass_at_").replace("maj@", "majority_at_")
                figures.setdefault("eval/" + name, {})[step] = single(value)
            continue
        for phase, value in record.pop("seconds").items():
            figures.setdefault("seconds/" + phase, {})[step] = single(value)
        for name, value in record.items():
            figures.setdefault(RENAMED.get(name, name), {})[step] = single(value)
    return figures


def check(run, folder):
    events = EventAccumulator(folder, size_guidance={"scalars": 0})
    events.Reload()
    want = expected(run)
    failures, seen, points = [], set(), 0
    for tag in events.Tags()["scalars"]:
        name = tag if tag.startswith("eval/") else tag.split("/", 1)[1]
        seen.add(name)
        got = [(event.step, event.value) for event in events.Scalars(tag)]
        have = sorted(want.get(name, {}).items())
        points += len(got)
        same = len(got) == len(have) and all(
            a == c and (b == d or (math.isnan(b) and math.isnan(d))) for (a, b), (c, d) in zip(sorted(got), have))
        if not same:
            failures.append(f"{tag}: {got[:3]}... of {len(got)}, metrics.jsonl has {have[:3]}... of {len(have)}")
    supervised = not any(name == "seconds/rollout" for name in want)
    missing = sorted(set(want) - seen)
    if missing and not supervised:
        failures.append(f"no tag shows {missing}")
    print(f"{folder}: {len(seen)} tags, {points} points, {len(failures)} differ")
    for failure in failures:
        print("  " + failure)
    return not failures and points > 0


if len(sys.argv) not in (2, 3):
    sys.exit(__doc__)
good = check(sys.argv[1], sys.argv[1] + "/tensorboard")
if len(sys.argv) == 3:
    good = check(sys.argv[1], sys.argv[2]) and good
sys.exit(0 if good else 1)
