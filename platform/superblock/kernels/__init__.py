"""The few operations that cost, a folder each: a readable reference, fast forms, and one switch."""
