#!/usr/bin/env python3
"""Golden of engine/checkpoint/adapter: a LoRA adapter as PEFT makes, trains through and saves it.

    python tests/golden/make_adapter_golden.py engine/checkpoint/testdata/peft_qwen2
                                                      (torch 2.15.0, transformers 5.24.0, peft 0.21.2)

base/      a random Qwen2 model in FP32
adapter/   save_pretrained of a PeftModel on it: rank 3, alpha 6, all linear layers, neither A nor B 0
expected.safetensors, all F32: tokens [T]; logits [T, V] of the PeftModel, which does not merge; gradient of the sum of
           the log-probs of each token's successor for every tensor of the adapter, under the tensor's name
"""
import pathlib
import shutil
import sys

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main():
    folder = pathlib.Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(3)
    config = Qwen2Config(vocab_size=24, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, intermediate_size=20, max_position_embeddings=64, rms_norm_eps=1e-5,
                         eos_token_id=23, tie_word_embeddings=True, rope_theta=10000.0)
    config._attn_implementation = "eager"
    base = Qwen2ForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, tensor in base.named_parameters():
            tensor.copy_(1 + 0.2 * torch.randn_like(tensor) if "norm" in name else 0.4 * torch.randn_like(tensor))
    base.save_pretrained(folder / "base")
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=6, target_modules=TARGETS))
    model.eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                tensor.copy_(0.2 * torch.randn_like(tensor))
    model.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink(missing_ok=True)

    tokens = torch.randint(0, config.vocab_size, (11,))
    logits = model(tokens[None]).logits[0]
    log_probs = torch.log_softmax(logits, -1)
    log_probs[:-1].gather(1, tokens[1:, None]).sum().backward()
    expected = {"tokens": tokens.float(), "logits": logits.detach().contiguous()}
    for name, tensor in model.named_parameters():
        if tensor.grad is not None:
            expected[name.replace(".default.", ".")] = tensor.grad.contiguous()
    save_file(expected, folder / "expected.safetensors")


if __name__ == "__main__":
    main()
