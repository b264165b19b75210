"""Which form of the delta rule runs."""

BACKENDS = ("auto", "chunked", "recurrent")


def choose(name: str, *, num_tokens: int, training: bool) -> str:
    """Resolve "auto": the recurrence for a single token without gradient (decoding), the chunked form otherwise."""
    if name not in BACKENDS:
        raise ValueError(f"delta rule backend {name!r} is unknown; choose one of {', '.join(BACKENDS)}")
    if name != "auto":
        return name
    return "recurrent" if num_tokens == 1 and not training else "chunked"
