"""Small generated tasks, each of which asks for one ability of an architecture: recall, copying, state tracking, retrieval."""
