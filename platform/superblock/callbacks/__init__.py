"""Lightning callbacks: one file, one job."""
