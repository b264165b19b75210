"""Growing by every method against training from scratch at equal FLOPs of the whole lineage."""
