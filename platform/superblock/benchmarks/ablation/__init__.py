"""What experiments that train models share: runs and their order, sharing them among processes, records, comparisons."""
