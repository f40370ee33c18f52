#!/usr/bin/env python3
"""Compares `lockstep tokenize` with the `tokenizers` package, token by token, on lines of varied text.

    python3 -m venv VENV && VENV/bin/pip install tokenizers==0.23.3
    VENV/bin/python tests/parity/tokenizer_parity.py --lockstep bazel-bin/client/lockstep [--data DIR] [--lines 10000]

Trains byte-level BPE tokenizers in the formats of the model families on generated text and the *.jsonl files of --data,
makes the lines from a seed, and exits with 1 at the first family that differs. Texts go through as JSON strings
(--json), lines with invalid UTF-8 as they are; what comes back is decoded (--decode) and compared too.
"""
import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import unicodedata

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

WORDS = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}%s| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+"
         "|\\s+(?!\\S)|\\s+")
QWEN2 = WORDS % ""
LLAMA3 = WORDS % "{1,3}"
DEEPSEEK = ("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
            "| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+")

SPACES = [" ", "  ", "    ", "\t", "\r\n", "\n", "\n\n", "\r", "\v", "\f", "\x1c", "\x85", "\u00a0", "\u1680", "\u180e", "\u2003",
          "\u200a", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\ufeff", "\u200b", "\x00"]
ENGLISH = ("the of and to in is that it was for on are as with his they at be this have from or one had by word but not what all "
           "we're I'll you've don't it's he'd I'm THEY'RE Isn't O'Neil rock'n'roll naïve café Größe Straße").split()
CODE = ["def f(x: int) -> str:\n    return f\"{x!r}\"\n", "for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; }", "#include <vector>\r\n",
        "if x != y and not z:\n\tpass", "SELECT * FROM t WHERE a >= 3 -- comment", "x = {'a': [1, 2.5e-3, None], \"b\": (True,)}",
        "std::unordered_map<std::string, int> counts_;", "=> `${a}` // TODO", "\\n\\t\\\"", "a.b.c->d[0]::e", "/* ... */", "<div class=\"x\">"]
CJK = "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生こんにちは世界カタカナ日本語テスト안녕하세요세계"
EMOJI = ["😀", "👍🏽", "👨‍👩‍👧‍👦", "🇩🇪", "🏳️‍🌈", "❤️", "1️⃣", "🤷🏿‍♀️", "☕", "✔︎", "🦀"]
LATEX = ["\\frac{1}{2}", "\\boxed{42}", "$x^2 + y^2 = z^2$", "\\sum_{k=1}^\\infty \\frac{1}{k^2}", "\\left( 3, \\frac{\\pi}{2} \\right)",
         "\\[ \\int_0^1 f(x)\\,dx \\]", "\\begin{pmatrix} a & b \\\\ c & d \\end{pmatrix}", "\\sqrt[3]{x}", "\\text{if } n \\ge 0", "a_{ij}"]
MARKS = ["\u0301", "\u0300", "\u0308", "\u0327", "\u0323", "\u0307", "\u20d0", "\u093c", "\u094d", "\u064b", "\u05b0", "\u3099", "\u0345"]
SCRIPTS = ["Привет, мир", "مرحبا بالعالم", "שלום עולם", "नमस्ते दुनिया", "สวัสดีชาวโลก", "Γειά σου Κόσμε", "tiếng Việt", "ﬁ ﬂ ß ſ Å Å K",
           "\u1112\u1161\u11ab\u1100\u1173\u11af", "ǅ Ⅷ ½ ² ٣ ၃", "Ⓐ 🄰 ⓩ", "'ſ 'S 'RE 'Ll", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟘𝟙"]
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool>", "<left>", "<right>", "word", "café",
          "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<｜User｜>", "<｜Assistant｜>", "<|endof", "<thin", "<<tool>>", "--"]
INVALID = [b"\xff", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80\x80", b"\xfe\xfe"]


def newer_mark(character):
    """A combining mark that Unicode 3.2 does not know: `tokenizers` normalises by an older Unicode than ours."""
    return unicodedata.combining(character) and unicodedata.ucd_3_2_0.category(character) == "Cn"


def random_character(rng):
    while True:
        code = rng.choice([rng.randrange(0x80), rng.randrange(0x3000), rng.randrange(0x10000), rng.randrange(0x20000)])
        if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co") and not newer_mark(chr(code)):  # as this Python knows it
            return chr(code)


def piece(rng, problems):
    kind = rng.randrange(13)
    if kind == 0:
        return rng.choice(SPACES) * rng.choice([1, 1, 1, 2, 5])
    if kind == 1:
        return " ".join(rng.choice(ENGLISH) for _ in range(rng.randrange(1, 9)))
    if kind == 2:
        return rng.choice(CODE)
    if kind == 3:
        return "".join(rng.choice(CJK) for _ in range(rng.randrange(1, 12)))
    if kind == 4:
        return "".join(rng.choice(EMOJI) for _ in range(rng.randrange(1, 4)))
    if kind == 5:
        return rng.choice(LATEX)
    if kind == 6:
        return "".join(rng.choice("aeiouAEIOUnsc가나か") + "".join(rng.choice(MARKS) for _ in range(rng.randrange(1, 4)))
                       for _ in range(rng.randrange(1, 5)))
    if kind == 7:
        return rng.choice(SCRIPTS)
    if kind == 8:
        return rng.choice(["", " ", "  ", "x", "\n"]) + rng.choice(TOKENS) + rng.choice(["", " ", "  ", "x", "\n"])
    if kind == 9:
        return str(rng.randrange(10 ** rng.randrange(1, 15))) + rng.choice(["", ".5", ",000", "%", "e-7", "th"])
    if kind == 10:
        return "".join(random_character(rng) for _ in range(rng.randrange(1, 6)))
    if kind == 11 and problems:
        problem = rng.choice(problems)
        begin = rng.randrange(len(problem))
        return problem[begin:begin + rng.randrange(1, 120)]
    return rng.choice("aX.,;:!?-_=+*/()[]{}<>|\\\"'`~#@&^%$") * rng.choice([1, 1, 2, 3, 17])


def text(rng, problems):
    separator = rng.choice(["", "", " "])
    return separator.join(piece(rng, problems) for _ in range(rng.randrange(1, 9)))


def split(regex):
    return pre_tokenizers.Split(Regex(regex), behavior="isolated")


def byte_level():
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def begin_with(token):
    return lambda tokenizer: processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, tokenizer.token_to_id(token))])


def drop_merges(data):
    """ignore_merges, and tokens that are reached by it alone."""
    data["model"]["ignore_merges"] = True
    data["model"]["merges"] = [m for i, m in enumerate(data["model"]["merges"]) if i < 300 or i % 9]


def string_merges(data):
    data["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]


ODD_TOKENS = [AddedToken("<tool>", lstrip=True, rstrip=True, normalized=False), AddedToken("<left>", lstrip=True, normalized=False),
              AddedToken("<right>", rstrip=True, normalized=True), AddedToken("word", single_word=True, normalized=True),
              AddedToken("--", single_word=True, normalized=False), AddedToken("café", normalized=True)]

FAMILIES = {
    "gpt2": dict(pre=pre_tokenizers.ByteLevel(add_prefix_space=False), specials=["<|endoftext|>"], edit=string_merges,
                 post=lambda t: processors.ByteLevel(trim_offsets=False)),
    "gpt2_prefix": dict(pre=pre_tokenizers.ByteLevel(add_prefix_space=True), specials=["<|endoftext|>"]),
    "qwen2": dict(pre=pre_tokenizers.Sequence([split(QWEN2), byte_level()]), normalizer=normalizers.NFC(),
                  specials=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], extra=["<think>", "</think>"], odd=ODD_TOKENS,
                  post=lambda t: processors.ByteLevel(trim_offsets=False)),
    "llama3": dict(pre=pre_tokenizers.Sequence([split(LLAMA3), byte_level()]), edit=drop_merges,
                   specials=["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
                   post=lambda t: processors.Sequence([processors.ByteLevel(trim_offsets=False),
                                                       begin_with("<|begin_of_text|>")(t)])),
    "r1_distill_qwen": dict(pre=pre_tokenizers.Sequence([split(QWEN2), byte_level()]), normalizer=normalizers.Sequence([]),
                            specials=["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"],
                            extra=["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"], odd=ODD_TOKENS[:2],
                            post=begin_with("<｜begin▁of▁sentence｜>"),
                            config={"add_bos_token": True, "add_eos_token": False, "bos_token": "<｜begin▁of▁sentence｜>",
                                    "eos_token": "<｜end▁of▁sentence｜>", "tokenizer_class": "LlamaTokenizerFast"}),
    "deepseek_v3": dict(pre=pre_tokenizers.Sequence([split("\\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK), byte_level()]),
                        normalizer=normalizers.Sequence([]), specials=["<｜begin▁of▁sentence｜>"], extra=["<｜User｜>"],
                        post=begin_with("<｜begin▁of▁sentence｜>")),
}


def make_folder(folder, spec, corpus, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = spec["pre"]
    tokenizer.decoder = decoders.ByteLevel()
    if "normalizer" in spec:
        tokenizer.normalizer = spec["normalizer"]
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in spec["specials"]])
    tokenizer.add_tokens([AddedToken(s, special=False, normalized=False) for s in spec.get("extra", [])])
    tokenizer.add_tokens(spec.get("odd", []))
    if "post" in spec:
        tokenizer.post_processor = spec["post"](tokenizer)
    data = json.loads(tokenizer.to_str())
    spec.get("edit", lambda data: None)(data)
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False))
    if "config" in spec:
        (folder / "tokenizer_config.json").write_text(json.dumps(spec["config"], ensure_ascii=False))
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def run(command, lines):
    result = subprocess.run(command, input=b"".join(line + b"\n" for line in lines), stdout=subprocess.PIPE, check=False)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {result.returncode}")
    out = [json.loads(line) for line in result.stdout.split(b"\n")[:-1]]
    if len(out) != len(lines):
        sys.exit(f"{' '.join(command)} gave {len(out)} lines for {len(lines)}")
    return out


def compare(name, what, inputs, ours, theirs):
    differences = [i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b]
    for i in differences[:5]:
        print(f"{name}: {what} of {inputs[i]!r}\n  lockstep   {ours[i]!r}\n  tokenizers {theirs[i]!r}")
    return len(differences)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lockstep", required=True)
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--lines", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--vocab_size", type=int, default=6000)
    args = parser.parse_args()
    problems = []
    for path in sorted(args.data.glob("*.jsonl")) if args.data else []:
        with open(path) as file:
            problems += [json.loads(line)["problem"] for line in file if line.strip()]
    corpus_rng = random.Random(args.seed + 1000)
    corpus = problems + [text(corpus_rng, problems) for _ in range(4000)]
    rng = random.Random(args.seed)
    texts = [text(rng, problems) for _ in range(args.lines - args.lines // 10)]
    raw = []
    for _ in range(args.lines // 10):  # invalid UTF-8, and no JSON around it
        pieces = [rng.choice([text(rng, problems).encode(), rng.choice(INVALID)]) for _ in range(rng.randrange(1, 6))]
        raw.append(b"".join(pieces).replace(b"\n", b" "))
    total = failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        for name, spec in FAMILIES.items():
            folder = pathlib.Path(temporary) / name
            theirs = make_folder(folder, spec, corpus, args.vocab_size)
            command = [args.lockstep, "tokenize", "--model", str(folder)]
            as_json = [json.dumps(t).encode() for t in texts]
            differences = 0
            for flags, special in ((["--add-special-tokens"], True), (["--no-add-special-tokens"], False)):
                expected = [e.ids for e in theirs.encode_batch(texts, add_special_tokens=special)]
                differences += compare(name, "ids", texts, run([*command, "--json", *flags], as_json), expected)
            replaced = [line.decode("utf-8", errors="replace") for line in raw]
            expected_raw = [e.ids for e in theirs.encode_batch(replaced)]
            differences += compare(name, "ids", raw, run(command, raw), expected_raw)
            as_ids = [json.dumps(ids).encode() for ids in expected]
            for flags, skip in (([], False), (["--skip-special-tokens"], True)):
                decoded = theirs.decode_batch(expected, skip_special_tokens=skip)
                differences += compare(name, "text", expected, run([*command, "--decode", *flags], as_ids), decoded)
            tokens = sum(map(len, expected)) + sum(map(len, expected_raw))
            print(f"{name}: {len(texts) + len(raw)} lines, {tokens} tokens, {differences} differences", flush=True)
            total += len(texts) + len(raw)
            failed += differences
    print(f"{total} lines in {len(FAMILIES)} families, {failed} differences")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
