"""Tokens: the tokenizer, the store of token shards, the order of samples, and the loader that pretraining reads."""
