#!/usr/bin/env python3
"""Parity with the installed transformers: folders that it writes, what the engine makes of them, and back.

    bazel build //tests/parity:engine_side
    python tests/parity/parity_live.py bazel-bin/tests/parity/engine_side [CASE...]

For each family and numerics, on random models of awkward shapes:
  fp32       logits within 1e-4 of a row's largest, log-probs within 1e-4, gradients of the log-likelihood within 1e-3
             (Euclidean, a tensor), 64 greedy tokens identical
  fp16 bf16  logits no farther from transformers' FP32 ones than transformers' own in the same type. Of one mixture the
             median row counts: in 16 bits the choice between two almost equal experts may fall either way, on both
             sides, and one such row outweighs all others. Over MIXTURES random models of the shape all rows count
  export     the engine's folder (in shards) loads in transformers with the same bits
Ends with status 1 when a limit does not hold, 77 when torch or transformers is not installed.
"""
import os
import struct
import subprocess
import sys
import tempfile

try:
    import numpy as np
    import torch
    import transformers
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

LLAMA3 = dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
PLAIN = dict(rope_type="default", rope_theta=1e6)
CASES = {
    "qwen2_tied": ("Qwen2", dict(hidden_size=84, num_attention_heads=6, num_key_value_heads=3, intermediate_size=132,
                                 rope_parameters=PLAIN, tie_word_embeddings=True)),
    "qwen2_gqa7": ("Qwen2", dict(hidden_size=98, num_attention_heads=7, num_key_value_heads=1, intermediate_size=150,
                                 rope_parameters=PLAIN, tie_word_embeddings=False)),
    "llama_gqa1": ("Llama", dict(hidden_size=90, num_attention_heads=5, num_key_value_heads=5, intermediate_size=131,
                                 rope_parameters=dict(PLAIN, rope_theta=1e4), tie_word_embeddings=False)),
    "llama3": ("Llama", dict(hidden_size=72, num_attention_heads=6, num_key_value_heads=3, head_dim=20,
                             intermediate_size=116, rope_parameters=LLAMA3, tie_word_embeddings=True)),
    "qwen3_tied": ("Qwen3", dict(hidden_size=76, num_attention_heads=6, num_key_value_heads=3, head_dim=22,
                                 intermediate_size=140, rope_parameters=PLAIN, tie_word_embeddings=True)),
    "qwen3_gqa7": ("Qwen3", dict(hidden_size=66, num_attention_heads=7, num_key_value_heads=1, head_dim=16,
                                 intermediate_size=101, rope_parameters=PLAIN, tie_word_embeddings=False)),
    "moe_4": ("Qwen3Moe", dict(hidden_size=68, num_attention_heads=4, num_key_value_heads=2, head_dim=18,
                               intermediate_size=90, moe_intermediate_size=37, num_experts=4, num_experts_per_tok=2,
                               norm_topk_prob=True, mlp_only_layers=[1], rope_parameters=PLAIN,
                               tie_word_embeddings=False)),
    "moe_60": ("Qwen3Moe", dict(hidden_size=60, num_attention_heads=6, num_key_value_heads=2, head_dim=16,
                                intermediate_size=90, moe_intermediate_size=22, num_experts=60, num_experts_per_tok=4,
                                norm_topk_prob=False, decoder_sparse_step=2, rope_parameters=PLAIN,
                                tie_word_embeddings=True)),
}
COMMON = dict(vocab_size=307, num_hidden_layers=4, max_position_embeddings=512, rms_norm_eps=1e-6, bos_token_id=1,
              eos_token_id=None)
LENGTHS = [37, 130, 2, 61]
NEW_TOKENS = 64
MIXTURES = 24
FAR = 5


def make_model(family, shape, seed=11):
    config = getattr(transformers, family + "Config")(**COMMON, **shape)
    config._attn_implementation = config._experts_implementation = "eager"
    torch.manual_seed(seed)
    model = getattr(transformers, family + "ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name:
                tensor.copy_(1 + 0.2 * torch.randn_like(tensor))
            elif name.endswith("bias"):
                tensor.copy_(0.5 * torch.randn_like(tensor))
            else:
                tensor.copy_(torch.randn_like(tensor) * (0.5 if "embed" in name else 1.2 * tensor.shape[-1] ** -0.5))
            # Values that fp16 and bf16 hold exactly: what is compared is arithmetic, not the rounding of weights.
            tensor.copy_(tensor.bfloat16().clamp(-8, 8).half().float())
    return model


def tensor_gradients(model):
    """(name, gradient) in the order of the engine's layout."""
    c, grads = model.config, {name: p.grad for name, p in model.named_parameters()}
    yield "model.embed_tokens.weight", grads["model.embed_tokens.weight"]
    for i in range(c.num_hidden_layers):
        p = f"model.layers.{i}."
        names = ["input_layernorm.weight"] + [f"self_attn.{x}_proj.weight" for x in "qkv"]
        names += [f"self_attn.{x}_proj.bias" for x in "qkv"] + ["self_attn.q_norm.weight", "self_attn.k_norm.weight"]
        names += ["self_attn.o_proj.weight", "post_attention_layernorm.weight", "mlp.gate_proj.weight",
                  "mlp.up_proj.weight", "mlp.down_proj.weight", "mlp.gate.weight"]
        for name in names:
            if p + name in grads:
                yield p + name, grads[p + name]
        if p + "mlp.experts.gate_up_proj" in grads:
            gate_up, down = grads[p + "mlp.experts.gate_up_proj"], grads[p + "mlp.experts.down_proj"]
            for e in range(len(down)):
                gate, up = gate_up[e].chunk(2)
                yield f"{p}experts.{e}.gate", gate
                yield f"{p}experts.{e}.up", up
                yield f"{p}experts.{e}.down", down[e]
    yield "model.norm.weight", grads["model.norm.weight"]
    if not c.tie_word_embeddings:
        yield "lm_head.weight", grads["lm_head.weight"]


def ask_engine(binary, folder, dtype, numerics, sequences, scratch, export=None):
    request = struct.pack("<2i", len(sequences), NEW_TOKENS)
    for ids in sequences:
        request += struct.pack("<i", len(ids)) + np.asarray(ids, dtype="<i4").tobytes()
    with open(f"{scratch}/request", "wb") as f:
        f.write(request)
    command = [binary, folder, dtype, numerics, f"{scratch}/request", f"{scratch}/answer"]
    subprocess.run(command + ([export] if export else []), check=True)
    return open(f"{scratch}/answer", "rb").read()


class Checks:
    def __init__(self):
        self.failed = 0

    def below(self, what, value, limit):
        ok = value <= limit
        self.failed += not ok
        return f"{what} {value:.3g}" + ("" if ok else f" ABOVE {limit:.3g}")


def log_probs(logits, sequences):
    rows = [z[:-1].double().log_softmax(-1).gather(1, ids[1:, None])[:, 0] for z, ids in zip(logits, sequences)]
    return torch.cat(rows)


def errors(logits, truth):
    """Root mean square over everything, and the median of the rows'."""
    squares = (torch.cat(logits).double() - torch.cat(truth).double()).square().mean(-1)
    return squares.mean().sqrt().item(), squares.median().sqrt().item()


def run_case(binary, name, checks):
    family, shape = CASES[name]
    model = make_model(family, shape)
    generator = torch.Generator().manual_seed(3)
    sequences = [torch.randint(0, COMMON["vocab_size"], (n,), generator=generator) for n in LENGTHS]
    truth = [model(ids[None]).logits[0] for ids in sequences]
    true_log_probs = log_probs(truth, sequences)
    true_log_probs.sum().backward()
    gradients = [(tensor, gradient.clone()) for tensor, gradient in tensor_gradients(model)]  # .to() would round them
    truth = [z.detach() for z in truth]
    greedy = [model.generate(ids[None], attention_mask=torch.ones_like(ids[None]), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)[0, len(ids):] for ids in sequences]
    theirs = {}
    for dtype in (torch.float16, torch.bfloat16):
        with torch.no_grad():
            model.to(dtype)
            theirs[dtype] = errors([model(ids[None]).logits[0] for ids in sequences], truth)
    model.float()
    true_log_probs = true_log_probs.detach()
    with tempfile.TemporaryDirectory() as scratch:
        folder = f"{scratch}/model"
        model.save_pretrained(folder)
        for numerics in ("matched", "native"):
            export = f"{scratch}/export_{numerics}"
            answer = ask_engine(binary, folder, "fp32", numerics, sequences, scratch, export)
            floats = np.frombuffer(answer[:-4 * NEW_TOKENS * len(sequences)], dtype="<f4")
            vocab, total = COMMON["vocab_size"], sum(LENGTHS)
            logits = torch.tensor(floats[:total * vocab].reshape(total, vocab))
            rest = torch.tensor(floats[total * vocab:])
            z = torch.cat(truth)
            line = [checks.below("logits", ((logits - z).abs().amax(-1) / z.abs().amax(-1)).max().item(), 1e-4)]
            ours = rest[:len(true_log_probs)].double()
            line.append(checks.below("log-probs",
                                     ((ours - true_log_probs).abs() / true_log_probs.abs().clamp(min=1)).max().item(),
                                     1e-4))
            rest, worst = rest[len(true_log_probs):], 0.0
            for _, gradient in gradients:
                mine, rest = rest[:gradient.numel()].reshape(gradient.shape), rest[gradient.numel():]
                norm = gradient.norm().item()
                worst = max(worst, (mine - gradient).norm().item() / norm if norm > 0 else mine.norm().item())
            assert len(rest) == 0, f"{len(rest)} numbers left"
            line.append(checks.below("gradients", worst, 1e-3))
            tokens = np.frombuffer(answer[-4 * NEW_TOKENS * len(sequences):], dtype="<i4").reshape(len(sequences), -1)
            same = sum(int((torch.tensor(mine) == wanted).all()) for mine, wanted in zip(tokens, greedy))
            checks.failed += same != len(sequences)
            line.append(f"greedy {same}/{len(sequences)} sequences of {NEW_TOKENS}")
            for dtype, text in ((torch.float16, "fp16"), (torch.bfloat16, "bf16")):
                logits = engine_logits(binary, folder, text, numerics, sequences, scratch)
                own = errors([logits], truth)
                which = 1 if family == "Qwen3Moe" else 0
                line.append(checks.below(text, own[which], theirs[dtype][which]) + f" (theirs {theirs[dtype][which]:.3g})")
                if which == 1:
                    line[-1] += f" over all rows {own[0]:.3g} ({theirs[dtype][0]:.3g})"
            print(f"{name} {numerics}: " + ", ".join(line), flush=True)
            back = type(model).from_pretrained(export)
            state = back.state_dict()
            assert os.path.exists(f"{export}/model.safetensors.index.json"), "the export is not in shards"
            for key, value in model.state_dict().items():
                assert torch.equal(state[key], value), f"{name}: {key} differs after the export"


def engine_logits(binary, folder, dtype, numerics, sequences, scratch):
    answer = ask_engine(binary, folder, dtype, numerics, sequences, scratch)
    total, vocab = sum(len(ids) for ids in sequences), COMMON["vocab_size"]
    return torch.tensor(np.frombuffer(answer[:4 * total * vocab], dtype="<f4").reshape(total, vocab))


def row_errors(logits, truth):
    """Root mean square of each row."""
    return (torch.cat(logits).double() - torch.cat(truth).double()).square().mean(-1).sqrt().numpy()


def run_mixtures(binary, name, checks):
    """All rows of many random models of one shape. Where a router falls the other way, that row and all later ones of the
    sequence are far from the FP32 ones: by more than FAR times the median row. That comes by chance on either side, so
    the sequences with such rows are counted, and the counts compared within three standard deviations of their
    difference; all other rows by their root mean square."""
    family, shape = CASES[name]
    rows = {}  # (type, side) -> of each model the rows' errors
    for seed in range(101, 101 + MIXTURES):
        model = make_model(family, shape, seed)
        generator = torch.Generator().manual_seed(seed)
        sequences = [torch.randint(0, COMMON["vocab_size"], (n,), generator=generator) for n in LENGTHS]
        with torch.no_grad(), tempfile.TemporaryDirectory() as scratch:
            truth = [model(ids[None]).logits[0] for ids in sequences]
            model.save_pretrained(f"{scratch}/model")
            for dtype, text in ((torch.float16, "fp16"), (torch.bfloat16, "bf16")):
                ours = engine_logits(binary, f"{scratch}/model", text, "matched", sequences, scratch)
                model.to(dtype)
                theirs = [model(ids[None]).logits[0] for ids in sequences]
                model.float()  # the weights are values that both types hold
                rows.setdefault((text, "ours"), []).append(row_errors([ours], truth))
                rows.setdefault((text, "theirs"), []).append(row_errors(theirs, truth))
    for text in ("fp16", "bf16"):
        ours, theirs = (np.concatenate(rows[text, side]) for side in ("ours", "theirs"))
        limit = FAR * np.median(theirs)
        far_ours, far_theirs = (sum((e > limit).any() for model in rows[text, side] for e in
                                    np.split(model, np.cumsum(LENGTHS)[:-1])) for side in ("ours", "theirs"))
        near_ours, near_theirs = (np.sqrt(np.mean(e[e <= limit] ** 2)) for e in (ours, theirs))
        print(f"{name}, {MIXTURES} models, {text}: " + checks.below("near rows", near_ours, near_theirs) +
              f" (theirs {near_theirs:.3g}), " +
              checks.below("sequences with far rows", far_ours, far_theirs + 3 * np.sqrt(far_ours + far_theirs)) +
              f" (theirs {far_theirs}) of {MIXTURES * len(LENGTHS)}", flush=True)


def main():
    binary, names = sys.argv[1], sys.argv[2:] or list(CASES)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    checks = Checks()
    for name in names:
        run_case(binary, name, checks)
        if CASES[name][0] == "Qwen3Moe":
            run_mixtures(binary, name, checks)
    print("all within their limits" if checks.failed == 0 else f"{checks.failed} limits do not hold")
    sys.exit(checks.failed != 0)


if __name__ == "__main__":
    main()
