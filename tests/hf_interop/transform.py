"""Loads configuration and tokenizer from the cache as programs do."""

from transformers import AutoConfig, AutoTokenizer

config = AutoConfig.from_pretrained("acme/hand")
assert config.model_type == "bert" and config.hidden_size == 32, config
tokens = AutoTokenizer.from_pretrained("acme/hand")("hello world")["input_ids"]
assert tokens == [2, 5, 6, 3], tokens
print("tokens", tokens)
