"""Reports: collect what was run, compare it, and write it down for people; reads runs and never changes them."""
