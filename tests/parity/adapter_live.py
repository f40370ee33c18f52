#!/usr/bin/env python3
"""Parity of LoRA with the installed peft: adapters that it trains and saves, what the engine makes of them, and back.

    bazel build //tests/parity:adapter_side
    python tests/parity/adapter_live.py bazel-bin/tests/parity/adapter_side [CASE...]

For each family, rank and set of modules, on random models after three steps of AdamW through peft:
  logits   of the engine, which merges, within 1e-4 of a row's largest of peft's, which adds B (A x)
  adapter  the engine's folder loads in peft on the same base, and gives peft's own logits bit for bit
  merged   the engine's merged folder loads in transformers, logits within 1e-4 of peft's
Ends with status 1 when a limit does not hold, 77 when torch, transformers or peft is not installed.
"""
import os
import subprocess
import sys
import tempfile

try:
    import numpy as np
    import peft
    import torch
    import transformers
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = ATTENTION + ["gate_proj", "up_proj", "down_proj"]
COMMON = dict(vocab_size=211, num_hidden_layers=3, max_position_embeddings=128, rms_norm_eps=1e-6, eos_token_id=None)
CASES = {
    "qwen2_all_r5": ("Qwen2", dict(hidden_size=84, num_attention_heads=6, num_key_value_heads=3,
                                   intermediate_size=132, tie_word_embeddings=True), 5, 10, ALL),
    "qwen2_qv_r1": ("Qwen2", dict(hidden_size=98, num_attention_heads=7, num_key_value_heads=1,
                                  intermediate_size=150, tie_word_embeddings=False), 1, 2, ["q_proj", "v_proj"]),
    "llama_mlp_r8": ("Llama", dict(hidden_size=90, num_attention_heads=5, num_key_value_heads=5,
                                   intermediate_size=131, tie_word_embeddings=False), 8, 4, ALL[4:]),
    "qwen3_all_r16": ("Qwen3", dict(hidden_size=76, num_attention_heads=6, num_key_value_heads=3, head_dim=22,
                                    intermediate_size=140, tie_word_embeddings=True), 16, 32, ALL),
    "moe_attention_r4": ("Qwen3Moe", dict(hidden_size=68, num_attention_heads=4, num_key_value_heads=2, head_dim=18,
                                          intermediate_size=90, moe_intermediate_size=37, num_experts=4,
                                          num_experts_per_tok=2, norm_topk_prob=True, tie_word_embeddings=False),
                         4, 8, ATTENTION),
}


def make_base(family, shape, folder):
    config = getattr(transformers, family + "Config")(**COMMON, **shape)
    config._attn_implementation = config._experts_implementation = "eager"
    torch.manual_seed(11)
    model = getattr(transformers, family + "ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.copy_(1 + 0.2 * torch.randn_like(tensor) if "norm" in name
                         else torch.randn_like(tensor) * 1.2 * tensor.shape[-1] ** -0.5)
    model.save_pretrained(folder)


def load_base(folder):
    config = transformers.AutoConfig.from_pretrained(folder)
    config._attn_implementation = config._experts_implementation = "eager"
    return transformers.AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).eval()


def train(model, tokens):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    for _ in range(3):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def logits_of(model, tokens):
    with torch.no_grad():
        return model(tokens).logits[0].float().numpy()


def farthest(ours, theirs):
    return float((np.abs(ours - theirs).max(-1) / np.abs(theirs).max(-1)).max())


def run_case(side, name):
    family, shape, rank, alpha, targets = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        base, adapter, out = (os.path.join(folder, part) for part in ("base", "adapter", "out"))
        os.mkdir(out)
        make_base(family, shape, base)
        tokens = torch.randint(0, COMMON["vocab_size"], (1, 41))
        plain = logits_of(load_base(base), tokens)
        model = peft.get_peft_model(load_base(base), peft.LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=alpha,
                                                                      target_modules=targets))
        train(model, tokens)
        model.eval()
        model.save_pretrained(adapter)
        theirs = logits_of(model, tokens)
        np.asarray(tokens[0], "<i4").tofile(os.path.join(folder, "tokens"))
        subprocess.run([side, base, adapter, str(rank), str(alpha), ",".join(targets), os.path.join(folder, "tokens"),
                        out], check=True)
        ours = np.fromfile(os.path.join(out, "logits.bin"), "<f4").reshape(theirs.shape)
        back = logits_of(peft.PeftModel.from_pretrained(load_base(base), os.path.join(out, "adapter")).eval(), tokens)
        merged = logits_of(load_base(os.path.join(out, "merged")), tokens)
        far, bits, far_merged = farthest(ours, theirs), bool((back == theirs).all()), farthest(merged, theirs)
        moved = farthest(theirs, plain)
        good = far < 1e-4 and bits and far_merged < 1e-4 and moved > 1e-2
        print(f"{'ok  ' if good else 'FAIL'} {name:18} logits {far:.1e}  adapter in peft {'same bits' if bits else 'DIFFERS'}"
              f"  merged {far_merged:.1e}  (the adapter moves logits by {moved:.1e})", flush=True)
        return good


def main():
    side = os.path.abspath(sys.argv[1])
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
    names = sys.argv[2:] or list(CASES)
    sys.exit(0 if all([run_case(side, name) for name in names]) else 1)


if __name__ == "__main__":
    main()
