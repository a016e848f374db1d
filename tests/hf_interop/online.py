"""Loads configuration and tokenizer from the hub that the environment names. Arguments: a revision, and its commit."""

import sys

from transformers import AutoConfig, AutoTokenizer

revision, _commit = sys.argv[1:]
config = AutoConfig.from_pretrained("acme/hand", revision=revision)
assert config.model_type == "bert" and config.hidden_size == 32, config
tokens = AutoTokenizer.from_pretrained("acme/hand", revision=revision)("hello world")["input_ids"]
assert tokens == [2, 5, 6, 3], tokens
print("loaded", tokens)
