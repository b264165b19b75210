"""What a stage must show before the next grows from it: gates, claims, promotion, and the pipeline of stages."""
