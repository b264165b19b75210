"""What `superblock generate` does: says which run it loads, then writes text as it comes."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TextIO

from superblock.config.fields import ConfigError
from superblock.config.run import GenerateConfig
from superblock.generation.find import find_checkpoint

if TYPE_CHECKING:
    from superblock.generation.session import Piece


def generate(config: GenerateConfig) -> None:
    """Writes the prompt and its continuations to stdout; everything else goes to stderr.

    Raises:
        ConfigError: if there is no such run, or its checkpoint cannot be used.
    """
    found = find_checkpoint(config.run, tracking=config.tracking)
    for line in found.skipped:
        _note(f"passed over {line}")
    at = (
        "" if config.exit_at is None else f", exit {config.exit_at}: the model that ends after {_count(config.exit_at)}"
    )
    _note(f"generate: {found.describe()}{at}")
    from superblock.generation.session import load_checkpoint  # imports torch: the line above is there at once

    session = load_checkpoint(found.checkpoint, config.exit_at)
    if len(session.tokenizer.encode(config.prompt).ids) + config.max_tokens > session.trained_length:
        _note(f"note: the model was trained on {session.trained_length} tokens at once; beyond, it extrapolates")
    start = time.perf_counter()
    pieces = session.stream(
        config.prompt,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        samples=config.samples,
        stop=config.stop,
        seed=config.seed,
    )
    try:
        tokens = write(pieces, config.prompt, config.samples, sys.stdout)
    except FloatingPointError as error:
        raise ConfigError(f"run={config.run}: {error}") from None
    except BrokenPipeError:  # `generate | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    seconds = time.perf_counter() - start
    _note(f"{tokens:,} tokens in {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s")


def write(pieces: Iterable["Piece"], prompt: str, samples: int, out: TextIO) -> int:
    """Writes every sample as a whole, the first unfinished one live; returns the number of tokens."""
    tokens = 0
    for text, ended in in_order(pieces, prompt, samples):
        out.write(_printable(text, out))
        out.flush()
        tokens += ended
    return tokens


def in_order(pieces: Iterable["Piece"], prompt: str, samples: int) -> Iterator[tuple[str, int]]:
    """Text to write, and the tokens of a sample where it ends. Samples are generated together but read one by one."""
    waiting = [""] * samples
    ended: dict[int, int] = {}
    current = 0
    yield _heading(0, samples) + prompt, 0
    for piece in pieces:
        if piece.done:
            ended[piece.sample] = piece.tokens
        if piece.sample != current:
            waiting[piece.sample] += piece.text
            continue
        yield piece.text, 0
        while current in ended:
            yield "\n", ended[current]
            current += 1
            if current < samples:
                yield _heading(current, samples) + prompt + waiting[current], 0


def _count(superblocks: int) -> str:
    return f"{superblocks} superblock{'s' if superblocks > 1 else ''}"


def _heading(sample: int, samples: int) -> str:
    return f"{'' if sample == 0 else chr(10)}--- {sample + 1} of {samples} ---\n" if samples > 1 else ""


def _printable(text: str, out: TextIO) -> str:
    """The text with `?` for what the terminal's encoding lacks."""
    encoding = out.encoding or "utf-8"
    return text.encode(encoding, errors="replace").decode(encoding)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
