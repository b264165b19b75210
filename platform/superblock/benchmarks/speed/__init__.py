"""Speed and memory beside transformers' Qwen3-Next of the same dimensions."""
