#!/usr/bin/env python3
"""Makes engine/model/testdata/*.golden: the oracle of the decoder's forward and backward pass.

The decoder is written out below in plain PyTorch and float64, one sequence at a time, without packing, caches or fused
matrices; where transformers can be imported, its model with the same weights must agree as well. A golden
holds tokens, log-probs, entropies and the gradient of sum(coefficient * log_prob) for every parameter. Weights are not
stored: both sides compute them (see `weight`), with values that fp16 and bf16 hold exactly.

Made with PyTorch 2.15.0 and transformers 5.24.0:  python tests/golden/make_decoder_golden.py engine/model/testdata
"""
import struct
import sys

import numpy as np
import torch

CASES = {
    "qwen2_tied": dict(V=50, D=40, L=2, H=6, G=3, E=8, F=56, bias=1, tied=1, eps=1e-6, theta=1e6, temperature=1.0,
                       lengths=[17, 1, 140, 5]),
    "qwen2_untied_gqa7": dict(V=29, D=20, L=2, H=7, G=1, E=4, F=24, bias=1, tied=0, eps=1e-6, theta=1e4,
                              temperature=0.7, lengths=[33, 2, 9]),
    "llama_untied": dict(V=31, D=24, L=2, H=4, G=2, E=6, F=20, bias=0, tied=0, eps=1e-5, theta=5e5, temperature=1.3,
                         lengths=[3, 24, 40]),
    "llama_tied": dict(V=26, D=18, L=3, H=3, G=3, E=4, F=22, bias=0, tied=1, eps=1e-5, theta=1e4, temperature=1.0,
                       lengths=[21, 20]),
    "qwen2_gqa1": dict(V=27, D=21, L=1, H=5, G=5, E=6, F=19, bias=1, tied=0, eps=1e-6, theta=1e6, temperature=1.0,
                       lengths=[14, 1, 6]),
    "llama3_rope": dict(V=28, D=18, L=2, H=6, G=3, E=12, F=21, bias=0, tied=1, eps=1e-5, theta=5e5, temperature=0.9,
                        lengths=[18, 120], llama3=(8.0, 1.0, 4.0, 64)),
    "qwen3_tied": dict(V=33, D=26, L=2, H=6, G=3, E=10, F=30, bias=0, tied=1, eps=1e-6, theta=1e6, temperature=1.0,
                       lengths=[35, 1, 20], qk_norm=1),
    "qwen3_untied_gqa7": dict(V=23, D=18, L=2, H=7, G=1, E=6, F=22, bias=0, tied=0, eps=1e-6, theta=1e6,
                              temperature=0.8, lengths=[20, 9], qk_norm=1),
    "moe_4_experts": dict(V=30, D=22, L=3, H=4, G=2, E=8, F=26, bias=0, tied=0, eps=1e-6, theta=1e6, temperature=1.0,
                          lengths=[40, 1, 17], qk_norm=1, N=4, K=2, M=11, norm_topk=1, dense=[1]),
    "moe_60_experts": dict(V=25, D=14, L=1, H=3, G=1, E=6, F=10, bias=0, tied=1, eps=1e-6, theta=1e6, temperature=1.0,
                           lengths=[30, 22], qk_norm=1, N=60, K=5, M=6, norm_topk=0),
    "moe_sparse_step": dict(V=26, D=17, L=2, H=2, G=2, E=8, F=18, bias=0, tied=1, eps=1e-6, theta=1e4, temperature=1.2,
                            lengths=[25, 8], qk_norm=1, N=5, K=5, M=9, norm_topk=1, dense=[0], step=2),
}
DEFAULTS = dict(qk_norm=0, llama3=None, N=0, K=0, M=0, norm_topk=0, dense=[], step=1)
CASES = {name: {**DEFAULTS, **case} for name, case in CASES.items()}
MAX_POSITIONS = 256
MASK = 0xFFFFFFFF


def hash32(param, size):
    """MurmurHash3's finalizer of (param, element): [size] uint32."""
    h = (np.arange(size, dtype=np.uint64) * 0x9E3779B9 + (param + 1) * 0x85EBCA6B) & MASK
    h ^= h >> np.uint64(16)
    h = (h * 0x85EBCA6B) & MASK
    h ^= h >> np.uint64(13)
    h = (h * 0xC2B2AE35) & MASK
    return h ^ (h >> np.uint64(16))


def weight(param, kind, rows, cols):
    h = hash32(param, rows * cols)
    u = (h >> np.uint64(24)).astype(np.float64) / 256 - 0.5
    if kind == "norm":
        values = 1 + (h >> np.uint64(28)).astype(np.float64) / 16 - 0.5
    else:
        values = u * {"embed": 2.0, "bias": 1.0, "matrix": 0.5}[kind]
    return torch.tensor(values.reshape(rows, cols), dtype=torch.float64, requires_grad=True)


def has_experts(c, layer):
    return c["N"] > 0 and layer not in c["dense"]


def make_params(c):
    """Parameters in the engine's canonical order: name -> tensor."""
    qkv = (c["H"] + 2 * c["G"]) * c["E"]
    specs = [("embed", "embed", c["V"], c["D"])]
    for i in range(c["L"]):
        p = f"layers.{i}."
        specs.append((p + "input_norm", "norm", 1, c["D"]))
        specs.append((p + "qkv", "matrix", qkv, c["D"]))
        if c["bias"]:
            specs.append((p + "qkv_bias", "bias", 1, qkv))
        if c["qk_norm"]:
            specs.append((p + "q_norm", "norm", 1, c["E"]))
            specs.append((p + "k_norm", "norm", 1, c["E"]))
        specs.append((p + "o", "matrix", c["D"], c["H"] * c["E"]))
        specs.append((p + "post_norm", "norm", 1, c["D"]))
        if has_experts(c, i):
            specs.append((p + "router", "matrix", c["N"], c["D"]))
            for e in range(c["N"]):
                specs.append((p + f"experts.{e}.gate_up", "matrix", 2 * c["M"], c["D"]))
                specs.append((p + f"experts.{e}.down", "matrix", c["D"], c["M"]))
            continue
        specs.append((p + "gate_up", "matrix", 2 * c["F"], c["D"]))
        specs.append((p + "down", "matrix", c["D"], c["F"]))
    specs.append(("final_norm", "norm", 1, c["D"]))
    if not c["tied"]:
        specs.append(("lm_head", "matrix", c["V"], c["D"]))
    return {name: weight(i, kind, rows, cols) for i, (name, kind, rows, cols) in enumerate(specs)}


def rms_norm(x, w, eps):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * w


def frequencies(c):
    """Angle per position of each pair [E / 2]; with llama3 = (factor, low, high, original context) as Llama 3.1."""
    f = c["theta"] ** (-torch.arange(0, c["E"], 2, dtype=torch.float64) / c["E"])
    if c["llama3"] is None:
        return f
    factor, low, high, context = c["llama3"]
    smooth = ((context * f / (2 * torch.pi) - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * f / factor + smooth * f


def rope(x, f):
    """x [S, heads, E], half-split form."""
    S, _, E = x.shape
    angles = torch.arange(S, dtype=torch.float64)[:, None] * f
    cos, sin = angles.cos()[:, None, :], angles.sin()[:, None, :]
    a, b = x[..., : E // 2], x[..., E // 2:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def swiglu(x, gate_up, down):
    gate, up = (x @ gate_up.T).chunk(2, -1)
    return (torch.nn.functional.silu(gate) * up) @ down.T


def experts(c, p, n, x):
    """Every expert on every token: the weights of those that were not chosen are zero."""
    probabilities = (x @ p[n + "router"].T).softmax(-1)
    value, index = probabilities.topk(c["K"], -1)
    if c["norm_topk"]:
        value = value / value.sum(-1, keepdim=True)
    weights = torch.zeros_like(probabilities).scatter(-1, index, value)
    return sum(weights[:, e, None] * swiglu(x, p[n + f"experts.{e}.gate_up"], p[n + f"experts.{e}.down"])
               for e in range(c["N"]))


def logits_of(c, p, ids):
    H, G, E = c["H"], c["G"], c["E"]
    S = len(ids)
    x = p["embed"][ids]
    mask = torch.ones(S, S, dtype=torch.bool).tril()
    for i in range(c["L"]):
        n = f"layers.{i}."
        qkv = rms_norm(x, p[n + "input_norm"], c["eps"]) @ p[n + "qkv"].T
        if c["bias"]:
            qkv = qkv + p[n + "qkv_bias"]
        q, k, v = (t.reshape(S, -1, E) for t in qkv.split([H * E, G * E, G * E], -1))
        if c["qk_norm"]:
            q, k = rms_norm(q, p[n + "q_norm"], c["eps"]), rms_norm(k, p[n + "k_norm"], c["eps"])
        q, k = rope(q, frequencies(c)), rope(k, frequencies(c))
        k, v = (t.repeat_interleave(H // G, dim=1) for t in (k, v))
        scores = torch.einsum("qhe,khe->hqk", q, k) / E ** 0.5
        weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
        x = x + torch.einsum("hqk,khe->qhe", weights, v).reshape(S, H * E) @ p[n + "o"].T
        normed = rms_norm(x, p[n + "post_norm"], c["eps"])
        if has_experts(c, i):
            x = x + experts(c, p, n, normed)
        else:
            x = x + swiglu(normed, p[n + "gate_up"], p[n + "down"])
    head = p["embed"] if c["tied"] else p["lm_head"]
    return rms_norm(x, p["final_norm"], c["eps"]) @ head.T


def hf_logits(c, p, sequences):
    import transformers
    family = "Qwen3Moe" if c["N"] else "Qwen3" if c["qk_norm"] else "Qwen2" if c["bias"] else "Llama"
    kind, model = (getattr(transformers, family + part) for part in ("Config", "ForCausalLM"))
    rope_parameters = {"rope_type": "default", "rope_theta": c["theta"]}
    if c["llama3"]:
        factor, low, high, context = c["llama3"]
        rope_parameters.update(rope_type="llama3", factor=factor, low_freq_factor=low, high_freq_factor=high,
                               original_max_position_embeddings=context)
    extra = {}
    if c["N"]:
        extra = dict(num_experts=c["N"], num_experts_per_tok=c["K"], moe_intermediate_size=c["M"],
                     norm_topk_prob=bool(c["norm_topk"]), decoder_sparse_step=c["step"],
                     mlp_only_layers=[] if c["step"] > 1 else c["dense"])
    config = kind(vocab_size=c["V"], hidden_size=c["D"], intermediate_size=c["F"], num_hidden_layers=c["L"],
                  num_attention_heads=c["H"], num_key_value_heads=c["G"], head_dim=c["E"], rms_norm_eps=c["eps"],
                  rope_parameters=rope_parameters, max_position_embeddings=MAX_POSITIONS,
                  tie_word_embeddings=bool(c["tied"]), attn_implementation="eager", experts_implementation="eager", **extra)
    net = model(config).double().eval()
    H, G, E, F = c["H"], c["G"], c["E"], c["F"]
    state = {"model.embed_tokens.weight": p["embed"], "model.norm.weight": p["final_norm"][0],
             "lm_head.weight": p["embed"] if c["tied"] else p["lm_head"]}
    for i in range(c["L"]):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        state[theirs + "input_layernorm.weight"] = p[ours + "input_norm"][0]
        state[theirs + "post_attention_layernorm.weight"] = p[ours + "post_norm"][0]
        for name, rows in zip("qkv", p[ours + "qkv"].split([H * E, G * E, G * E])):
            state[f"{theirs}self_attn.{name}_proj.weight"] = rows
        if c["bias"]:
            for name, values in zip("qkv", p[ours + "qkv_bias"][0].split([H * E, G * E, G * E])):
                state[f"{theirs}self_attn.{name}_proj.bias"] = values
        state[theirs + "self_attn.o_proj.weight"] = p[ours + "o"]
        if c["qk_norm"]:
            for name in "qk":
                state[f"{theirs}self_attn.{name}_norm.weight"] = p[f"{ours}{name}_norm"][0]
        if has_experts(c, i):
            state[theirs + "mlp.gate.weight"] = p[ours + "router"]
            for theirs_name, ours_name in (("gate_up_proj", "gate_up"), ("down_proj", "down")):
                state[f"{theirs}mlp.experts.{theirs_name}"] = torch.stack(
                    [p[f"{ours}experts.{e}.{ours_name}"] for e in range(c["N"])])
            continue
        gate, up = p[ours + "gate_up"].split([F, F])
        state[theirs + "mlp.gate_proj.weight"], state[theirs + "mlp.up_proj.weight"] = gate, up
        state[theirs + "mlp.down_proj.weight"] = p[ours + "down"]
    net.load_state_dict({k: v.detach() for k, v in state.items()}, strict=True)
    with torch.no_grad():
        return [net(ids[None]).logits[0] for ids in sequences]


def make(name, c, folder):
    params = make_params(c)
    T = sum(c["lengths"])
    tokens = (hash32(1000, T) % c["V"]).astype(np.int64)
    cu = np.concatenate([[0], np.cumsum(c["lengths"])])
    sequences = [torch.tensor(tokens[a:b]) for a, b in zip(cu[:-1], cu[1:])]
    logits = [logits_of(c, params, ids) for ids in sequences]
    try:
        worst = max(float((ours.detach() - theirs).abs().max())
                    for ours, theirs in zip(logits, hf_logits(c, params, sequences)))
        assert worst < 1e-4, f"{name}: transformers differs by {worst}"
        print(f"{name}: largest difference of a logit from transformers {worst:.2e}")
    except ImportError as error:
        print(f"{name}: transformers is not here, not compared ({error})")

    # Loss on most rows, not on all: the gather and scatter of loss rows must show. The target is the next token.
    z = torch.cat(logits) / c["temperature"]
    targets_all = np.roll(tokens, -1)
    rows = np.flatnonzero(hash32(1001, T) % 4 != 0)
    targets = targets_all[rows]
    log_softmax = z[torch.tensor(rows)].log_softmax(-1)
    log_prob = log_softmax[torch.arange(len(rows)), torch.tensor(targets)]
    entropy = -(log_softmax.exp() * log_softmax).sum(-1)
    coefficient = (hash32(1002, len(rows)) >> np.uint64(24)).astype(np.float64) / 128 - 1
    (torch.tensor(coefficient) * log_prob).sum().backward()
    gradients = np.concatenate([p.grad.reshape(-1).numpy() for p in params.values()])

    with open(f"{folder}/{name}.golden", "wb") as f:
        factor, low, high, context = c["llama3"] or (0.0, 0.0, 0.0, 0)
        f.write(b"LSG2")
        f.write(struct.pack("<13i", c["V"], c["D"], c["L"], c["H"], c["G"], c["E"], c["F"], MAX_POSITIONS, c["bias"],
                            c["tied"], T, len(cu), len(rows)))
        f.write(struct.pack("<7i", c["qk_norm"], context, c["N"], c["K"], c["M"], c["norm_topk"], c["step"]))
        f.write(struct.pack("<i", 0 if c["step"] > 1 else sum(1 << layer for layer in c["dense"])))  # mlp_only_layers
        f.write(struct.pack("<6f", c["eps"], c["theta"], c["temperature"], factor, low, high))
        for values in (tokens, cu, rows, targets):
            f.write(np.asarray(values, dtype="<i4").tobytes())
        for values in (coefficient, log_prob.detach().numpy(), entropy.detach().numpy(), gradients):
            f.write(np.asarray(values, dtype="<f4").tobytes())


if __name__ == "__main__":
    for case, config in CASES.items():
        make(case, config, sys.argv[1])
