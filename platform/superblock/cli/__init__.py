"""The commands: one file each, the only place that knows Hydra."""
