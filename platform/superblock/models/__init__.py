"""Torch modules: mathematics on one device."""
