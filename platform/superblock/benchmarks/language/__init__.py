"""Suite `language`: what finished models know of held-out text, by context length and by package."""
