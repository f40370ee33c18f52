#!/usr/bin/env python3
"""Makes learner/verifier/testdata/equal_answers.txt: pairs of lines of answers.txt, at most 50 apart, that an oracle
calls equal, as "LEFT<tab>RIGHT".

    pip install math-verify[antlr4_13_2]     # 0.9.0 was used, with sympy 1.14.0
    tests/golden/make_equal_answers_golden.py learner/verifier/testdata/answers.txt > equal_answers.txt

Equal is: math-verify says so in both directions, or the texts agree without spaces, units, signs of degrees, percent and
money, and a leading "x=". math-verify reads 40_9 as 40: a pair of which one alone states its base is not equal. With --rewritings FILE the oracle instead prints how many of the pairs in FILE
("REWRITTEN<tab>ANSWER" a line) it accepts.
"""
import re
import sys

from math_verify import parse, verify

WINDOW = 50
cache = {}


def parsed(answer):
    if answer not in cache:
        text = answer if "$" in answer and "\\$" not in answer else f"${answer}$"
        try:
            cache[answer] = parse(text, parsing_timeout=None)
        except Exception:
            cache[answer] = []
    return cache[answer]


def oracle(a, b):
    try:
        return verify(parsed(a), parsed(b), timeout_seconds=None, strict=True)
    except Exception:
        return False


def plain(answer):
    answer = re.sub(r"\\(text|mbox)\{([^}]*)\}(\^2)?", "", answer) or answer
    answer = re.sub(r"\^\\circ|\^\{\\circ\}|\\[%$!,]|\\left|\\right|\s|\.$", "", answer)
    return re.sub(r"^[a-z]=", "", answer.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"))


def base(answer):
    stated = re.search(r"\d_\{?(\d+)\}?$", answer)
    return stated and stated[1]


def main():
    if sys.argv[1] == "--rewritings":
        pairs = [line.rstrip("\n").split("\t") for line in open(sys.argv[2], encoding="utf-8")]
        accepted = sum(bool(oracle(answer, rewritten)) for rewritten, answer in pairs)
        print(f"the oracle accepts {accepted} of {len(pairs)}")
        return
    answers = [line.rstrip("\n") for line in open(sys.argv[1], encoding="utf-8")]
    for i, left in enumerate(answers):
        for right in answers[i + 1 : i + 1 + WINDOW]:
            if base(left) != base(right):
                continue
            if plain(left) == plain(right) or (oracle(left, right) and oracle(right, left)):
                print(f"{left}\t{right}")


if __name__ == "__main__":
    main()
