#!/usr/bin/env python3
"""Goldens of engine/tokenizer: small trained tokenizers and what Hugging Face's `tokenizers` does with them.

    python3 -m venv VENV && VENV/bin/pip install tokenizers==0.23.3
    VENV/bin/python tests/golden/make_tokenizer_golden.py engine/tokenizer/testdata

Writes NAME.tokenizer.json and NAME.cases.json (a list of {"text", "ids", "decoded"}) for each NAME, and versions.json.
"""
import json
import pathlib
import random
import sys

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's what we'd do, they're here, I'll go, you've won.",
    "Let x = 384 + 597. Then 4+7=11, carry 1; the answer is 981.\n\n\\boxed{981}\n",
    "def add(a, b):\n    return a + b\n\n\tif x != y:   \n        pass\n",
    "Größe, naïve café, Straße; Δx ≤ π/2, 東京は晴れです。 Привет, мир! مرحبا 👋🏽 👩‍👩‍👧",
    "WE'RE NOT 1234567 or 3.14159 -- (see [1], \"two\") #tag @user a_b-c",
] * 4

TEXTS = CORPUS[:5] + [
    "", " ", "  ", "\n", " \n ", "a", "aaaaaaaaaaaaaaaaaaaaaaaa", "   leading and trailing   ", "tab\tand\r\nCRLF\r\n\r\n",
    "It'S THEY'LL i'm", "12345 67", "\u00a0nbsp\u2003em\u3000ideographic", "e\u0301 vs \u00e9 and \u1112\u1161\u11ab",
    "<|endoftext|>", "a<|endoftext|>b<|im_start|>user\nhi<|im_end|>\n", "<|endoftext|><|endoftext|>", "<|endof", "x <tool> y",
    "<tool>word", "word<tool>", "zero\u200bwidth\ufeffbom", "\x00\x01\x7f\x85", "emoji 😀😀 👨‍👩‍👧‍👦 🇩🇪", "ﬁ ligature Å Å",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "half\u0300\u0301\u0327 marks q\u0323\u0307", "a  b   c    d", "...!!!???", "\u2028line\u2029para",
]


def random_texts(seed, count):
    rng = random.Random(seed)
    alphabet = list("abc ABC  \n\t'.,!0123456789éßπ日本👋\u0301\u00a0") + ["<|endoftext|>", "<|im_end|>", "'s", "'re"]
    return ["".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 40))) for _ in range(count)]


def train(pre_tokenizer, normalizer, vocab_size, specials, extra=()):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    for token in extra:
        tokenizer.add_tokens([token])
    return tokenizer


def split(regex):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(regex), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def write(folder, name, tokenizer, edit=None):
    data = json.loads(tokenizer.to_str())
    if edit is not None:
        edit(data)
        tokenizer = Tokenizer.from_str(json.dumps(data))
    (folder / f"{name}.tokenizer.json").write_text(json.dumps(data, ensure_ascii=False) + "\n")
    cases = []
    for text in TEXTS + random_texts(7, 40):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        cases.append({"text": text, "ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False)})
    (folder / f"{name}.cases.json").write_text(json.dumps(cases) + "\n")


def string_merges(data):
    data["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]


def ignore_merges(data):
    data["model"]["ignore_merges"] = True


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    write(folder, "gpt2", train(pre_tokenizers.ByteLevel(add_prefix_space=False), None, 330, specials), string_merges)
    write(folder, "gpt2_prefix", train(pre_tokenizers.ByteLevel(add_prefix_space=True), None, 300, specials))
    write(folder, "qwen2", train(split(QWEN2), normalizers.NFC(), 360, specials, [
        AddedToken("<tool>", lstrip=True, rstrip=True, single_word=False, normalized=False),
        AddedToken("word", single_word=True, normalized=True)]))
    write(folder, "llama3", train(split(LLAMA3), None, 340, specials), ignore_merges)
    (folder / "versions.json").write_text(json.dumps({"tokenizers": tokenizers.__version__}) + "\n")


if __name__ == "__main__":
    main()
