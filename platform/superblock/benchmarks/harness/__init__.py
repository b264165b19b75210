"""Suite `harness`: lm-evaluation-harness on a finished run's model; needs the extra `harness`."""
