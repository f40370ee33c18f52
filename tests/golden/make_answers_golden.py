#!/usr/bin/env python3
"""Makes learner/verifier/testdata/answers.txt: the distinct answers of JSONL data sets, one a line, in their order.

    tests/golden/make_answers_golden.py math_500.jsonl math_sanity_1460.jsonl aime_2024.jsonl > answers.txt

The problems themselves stay out. A line break within an answer is written as a space.
"""
import json
import sys

seen = set()
for path in sys.argv[1:]:
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            answer = " ".join(json.loads(line)["answer"].split("\n")).strip()
            if answer not in seen:
                seen.add(answer)
                print(answer)
