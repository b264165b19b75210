"""The spool, the MLflow mirror, provenance and run queries."""
