#!/usr/bin/env python3
"""Makes engine/model/testdata/*.golden: the oracle of the decoder's forward and backward pass.

The decoder is written out below in plain PyTorch and float64, one sequence at a time, without packing, caches or fused
matrices; where transformers can be imported, its Qwen2/Llama model with the same weights must agree as well. A golden
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
}
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
        specs.append((p + "o", "matrix", c["D"], c["H"] * c["E"]))
        specs.append((p + "post_norm", "norm", 1, c["D"]))
        specs.append((p + "gate_up", "matrix", 2 * c["F"], c["D"]))
        specs.append((p + "down", "matrix", c["D"], c["F"]))
    specs.append(("final_norm", "norm", 1, c["D"]))
    if not c["tied"]:
        specs.append(("lm_head", "matrix", c["V"], c["D"]))
    return {name: weight(i, kind, rows, cols) for i, (name, kind, rows, cols) in enumerate(specs)}


def rms_norm(x, w, eps):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * w


def rope(x, theta):
    """x [S, heads, E], half-split form."""
    S, _, E = x.shape
    angles = torch.arange(S, dtype=torch.float64)[:, None] * theta ** (-torch.arange(0, E, 2, dtype=torch.float64) / E)
    cos, sin = angles.cos()[:, None, :], angles.sin()[:, None, :]
    a, b = x[..., : E // 2], x[..., E // 2:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def logits_of(c, p, ids):
    H, G, E, F = c["H"], c["G"], c["E"], c["F"]
    S = len(ids)
    x = p["embed"][ids]
    mask = torch.ones(S, S, dtype=torch.bool).tril()
    for i in range(c["L"]):
        n = f"layers.{i}."
        qkv = rms_norm(x, p[n + "input_norm"], c["eps"]) @ p[n + "qkv"].T
        if c["bias"]:
            qkv = qkv + p[n + "qkv_bias"]
        q, k, v = (t.reshape(S, -1, E) for t in qkv.split([H * E, G * E, G * E], -1))
        q, k = rope(q, c["theta"]), rope(k, c["theta"])
        k, v = (t.repeat_interleave(H // G, dim=1) for t in (k, v))
        scores = torch.einsum("qhe,khe->hqk", q, k) / E ** 0.5
        weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
        x = x + torch.einsum("hqk,khe->qhe", weights, v).reshape(S, H * E) @ p[n + "o"].T
        gate, up = (rms_norm(x, p[n + "post_norm"], c["eps"]) @ p[n + "gate_up"].T).split([F, F], -1)
        x = x + (torch.nn.functional.silu(gate) * up) @ p[n + "down"].T
    head = p["embed"] if c["tied"] else p["lm_head"]
    return rms_norm(x, p["final_norm"], c["eps"]) @ head.T


def hf_logits(c, p, sequences):
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
    kind, model = (Qwen2Config, Qwen2ForCausalLM) if c["bias"] else (LlamaConfig, LlamaForCausalLM)
    config = kind(vocab_size=c["V"], hidden_size=c["D"], intermediate_size=c["F"], num_hidden_layers=c["L"],
                  num_attention_heads=c["H"], num_key_value_heads=c["G"], head_dim=c["E"], rms_norm_eps=c["eps"],
                  rope_theta=c["theta"], max_position_embeddings=MAX_POSITIONS, tie_word_embeddings=bool(c["tied"]),
                  attn_implementation="eager")
    if getattr(config, "rope_parameters", None) is not None:
        config.rope_parameters["rope_theta"] = c["theta"]
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
        f.write(b"LSGD")
        f.write(struct.pack("<13i", c["V"], c["D"], c["L"], c["H"], c["G"], c["E"], c["F"], MAX_POSITIONS, c["bias"],
                            c["tied"], T, len(cu), len(rows)))
        f.write(struct.pack("<3f", c["eps"], c["theta"], c["temperature"]))
        for values in (tokens, cu, rows, targets):
            f.write(np.asarray(values, dtype="<i4").tobytes())
        for values in (coefficient, log_prob.detach().numpy(), entropy.detach().numpy(), gradients):
            f.write(np.asarray(values, dtype="<f4").tobytes())


if __name__ == "__main__":
    for case, config in CASES.items():
        make(case, config, sys.argv[1])
