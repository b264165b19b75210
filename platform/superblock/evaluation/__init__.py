"""Metrics and reference points."""
