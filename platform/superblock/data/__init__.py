"""Corpora, tokenizer, packing and the resumable loader."""
