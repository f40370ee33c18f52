#!/usr/bin/env python3
"""Goldens of engine/checkpoint: model folders as transformers' save_pretrained writes them.

    python tests/golden/make_hf_folder_golden.py engine/checkpoint/testdata      (torch 2.15.0, transformers 5.24.0)

Element i of the tensor called NAME is ((7 * i + len(NAME)) % 64 - 32) / 16: exact in fp16, bf16 and fp32, so that the
test computes what it must find. transformers 5 holds the experts of a layer in one tensor (NAME is that one's) and
writes them one by one, or with save_original_format=False as it holds them.
"""
import pathlib
import shutil
import sys

import torch
from transformers import (LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3MoeConfig,
                          Qwen3MoeForCausalLM)

SHAPE = dict(vocab_size=24, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             intermediate_size=20, max_position_embeddings=64, rms_norm_eps=1e-5, bos_token_id=1)


def fill(model):
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            i = torch.arange(tensor.numel(), dtype=torch.int64)
            tensor.copy_((((7 * i + len(name)) % 64 - 32).to(torch.float32) / 16).reshape(tensor.shape))


def save(folder, name, model, dtype, **kwargs):
    fill(model)
    target = folder / name
    shutil.rmtree(target, ignore_errors=True)
    model.to(dtype).save_pretrained(target, **kwargs)


def main():
    folder = pathlib.Path(sys.argv[1])
    qwen2 = Qwen2Config(**SHAPE, eos_token_id=23, tie_word_embeddings=True, rope_theta=1000000.0)
    save(folder, "qwen2_fp16", Qwen2ForCausalLM(qwen2), torch.float16)
    llama = LlamaConfig(**SHAPE, eos_token_id=[22, 23], tie_word_embeddings=False, rope_theta=500000.0)
    save(folder, "llama_bf16_sharded", LlamaForCausalLM(llama), torch.bfloat16, max_shard_size="4KB")
    llama31 = LlamaConfig(**SHAPE, eos_token_id=23, head_dim=6, tie_word_embeddings=True,
                          rope_parameters=dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0,
                                               high_freq_factor=4.0, original_max_position_embeddings=32))
    save(folder, "llama31_fp32", LlamaForCausalLM(llama31), torch.float32)
    moe = Qwen3MoeConfig(**SHAPE, eos_token_id=23, head_dim=6, tie_word_embeddings=False, num_experts=3,
                         num_experts_per_tok=2, moe_intermediate_size=10, norm_topk_prob=True, mlp_only_layers=[1])
    save(folder, "qwen3_moe_bf16", Qwen3MoeForCausalLM(moe), torch.bfloat16)
    save(folder, "qwen3_moe_stacked_bf16", Qwen3MoeForCausalLM(moe), torch.bfloat16, save_original_format=False)


if __name__ == "__main__":
    main()
