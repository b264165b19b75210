"""The stages of the pipeline, one YAML file each; Hydra sees them as the group `stage`."""
