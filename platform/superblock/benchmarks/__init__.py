"""What the benchmark command runs: cases, fair timing, records, and what is shown of them."""
