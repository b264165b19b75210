"""Counts of models too large to build here."""
