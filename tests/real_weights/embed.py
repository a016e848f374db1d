"""Embeds three sentences with all-MiniLM-L6-v2 from the cache, offline, in plain numpy: argv is the repository.

Prints the number of tensors and the cosines of each pair.
"""

import sys
from math import erf
from pathlib import Path

import numpy as np
from huggingface_hub import snapshot_download
from safetensors.numpy import load_file
from transformers import AutoTokenizer

repository = sys.argv[1]
weights = load_file(Path(snapshot_download(repository, local_files_only=True)) / "model.safetensors")
tokenizer = AutoTokenizer.from_pretrained(repository)


def linear(x, name):
    return x @ weights[name + ".weight"].T + weights[name + ".bias"]


def norm(x, name):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    return scaled * weights[name + ".weight"] + weights[name + ".bias"]


def attention(x, name):
    heads = [linear(x, f"{name}.self.{part}").reshape(len(x), 12, 32).transpose(1, 0, 2) for part in ("query", "key", "value")]
    query, key, value = heads
    scores = np.exp(query @ key.transpose(0, 2, 1) / np.sqrt(32))
    mixed = scores / scores.sum(-1, keepdims=True) @ value
    return linear(mixed.transpose(1, 0, 2).reshape(len(x), 384), f"{name}.output.dense")


def embed(sentence):
    ids = tokenizer(sentence)["input_ids"]
    words, places, kinds = (weights[f"embeddings.{part}_embeddings.weight"] for part in ("word", "position", "token_type"))
    x = norm(words[ids] + places[: len(ids)] + kinds[0], "embeddings.LayerNorm")
    for layer in range(6):
        name = f"encoder.layer.{layer}"
        x = norm(x + attention(x, f"{name}.attention"), f"{name}.attention.output.LayerNorm")
        hidden = linear(x, f"{name}.intermediate.dense")
        hidden = hidden * 0.5 * (1 + np.vectorize(erf)(hidden / np.sqrt(2)))
        x = norm(x + linear(hidden, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


sentences = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
first, second, third = map(embed, sentences)
print(f"{len(weights)} tensors, {first @ second:.4f} {first @ third:.4f} {second @ third:.4f}")
