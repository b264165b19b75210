"""A loaded model that continues texts, token by token through its cache. Legend: B texts, T tokens, V vocabulary."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from superblock.config.fields import restore
from superblock.config.model import ModelConfig
from superblock.data.tokenizer import end_of_text
from superblock.data.tokenizer import load as load_tokenizer
from superblock.generation.find import find_checkpoint
from superblock.generation.sampling import choose, probabilities
from superblock.generation.text import TextStream, TokenBytes
from superblock.models.cache import Cache
from superblock.models.language_model import build_model
from superblock.models.truncation import truncate
from superblock.training.checkpoint import load_config, load_model_weights, tokenizer_path


@dataclass(frozen=True)
class Piece:
    """Text that one of the samples goes on with."""

    sample: int
    """From 0."""
    text: str
    tokens: int
    """Tokens of this sample so far."""
    done: bool = False
    """The sample ends here; every sample has exactly one such piece."""


class Session:
    """Continues texts with a model and its tokenizer.

    Args:
        model: called as `model(ids_BT, cache=..., last_only=True)`; may be in training, its mode is restored.
        tokenizer: the one it was trained with, from `data.tokenizer`.
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.token_bytes = TokenBytes(tokenizer)
        self.end_of_text = end_of_text(tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def trained_length(self) -> int:
        """Tokens that the model saw at once in training."""
        config: Any = self.model.config
        return int(config.max_sequence_length)

    def complete(
        self, prompt: str, max_tokens: int, seed: int, *, temperature: float = 0.8, top_p: float = 0.95, top_k: int = 0
    ) -> str:
        """One continuation as a whole, without the prompt."""
        pieces = self.stream(
            prompt, max_tokens=max_tokens, seed=seed, temperature=temperature, top_p=top_p, top_k=top_k
        )
        return "".join(piece.text for piece in pieces)

    def stream(
        self,
        prompt: str,
        *,
        max_tokens: int,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 0.95,
        samples: int = 1,
        stop: str | Sequence[str] | None = None,
        seed: int = 1,
    ) -> Iterator[Piece]:
        """Continuations of a prompt, decoded together, as they come.

        A sample ends after `max_tokens`, at the end of its document, or before `stop`, whichever of several is first. Sample i of seed s is the text
        of seed s + i alone, up to rounding.
        """
        stops = [stop] if isinstance(stop, str) else list(stop or [])
        streams = [TextStream(self.token_bytes, stops) for _ in range(samples)]
        generators = [torch.Generator().manual_seed(seed + i) for i in range(samples)]
        ids, begun = self._encode(prompt)
        cache, running, known_V = Cache(), set(range(samples)), self._allowed()
        logits_BV = (self._logits(torch.tensor([ids]), cache) + self._allowed(begun)).expand(samples, -1)
        _repeat(cache, samples)
        for count in range(1, max_tokens + 1):
            p_BV = probabilities(logits_BV, temperature=temperature, top_k=top_k, top_p=top_p)
            uniform_B = torch.stack([torch.rand((), dtype=torch.float64, generator=g) for g in generators])
            tokens_B = choose(p_BV, uniform_B)
            for i, token in enumerate(tokens_B.tolist()):
                if i not in running:
                    continue
                text = "" if token == self.end_of_text else streams[i].add(token, begun if count == 1 else b"")
                done = token == self.end_of_text or streams[i].stopped or count == max_tokens
                if done:
                    running.remove(i)
                    text += streams[i].end()
                yield Piece(i, text, count, done)
            if not running:
                return
            logits_BV = self._logits(tokens_B[:, None], cache) + known_V

    def _encode(self, prompt: str) -> tuple[list[int], bytes]:
        """Tokens of a document's beginning, and the bytes of the prompt's last token, which is chosen anew.

        A prompt rarely ends where a token does: after "def " the model has learnt to expect no token, because the space
        belongs to the name that follows. So the last token is left open, and the first one generated begins with it.
        """
        ids = [self.end_of_text, *self.tokenizer.encode(prompt).ids]
        return (ids[:-1], self.token_bytes[ids[-1]]) if len(ids) > 1 else (ids, b"")

    def _logits(self, ids_BT: Tensor, cache: Cache) -> Tensor:
        """Of the token after the last of `ids_BT`: [B, V] on the CPU."""
        training = self.model.training
        if training:
            self.model.eval()
        try:
            with torch.no_grad():
                logits_BTV: Tensor = self.model(ids_BT.to(self.device), cache=cache, last_only=True).logits_BTV
        finally:
            if training:
                self.model.train()
        return logits_BTV[:, -1].cpu()

    def _allowed(self, begun: bytes = b"") -> Tensor:
        """[V]: 0 for tokens that may follow, else -inf. Rows of the table beyond the tokenizer's are never tokens."""
        config: Any = self.model.config
        known = self.tokenizer.get_vocab_size()
        allowed_V = torch.full((config.vocab_size,), -torch.inf)
        if begun:
            tokens = (i for i in range(known) if i != self.end_of_text and self.token_bytes[i].startswith(begun))
            allowed_V[torch.tensor(list(tokens), dtype=torch.long)] = 0
        else:
            allowed_V[:known] = 0
        return allowed_V


def load(run: str = "newest", *, root: Path | None = None) -> Session:
    """A session with the newest whole checkpoint of a run (see `find_checkpoint`), on a GPU if there is one.

    Raises:
        ConfigError: if there is no such run, or its checkpoint cannot be used.
    """
    return load_checkpoint(find_checkpoint(run, root).checkpoint)


def load_checkpoint(path: Path, exit_at: int | None = None) -> Session:
    """A session with one checkpoint, which needs nothing but its own folder.

    Args:
        exit_at: superblocks of the model inside it that ends at this one's exit; None uses all.

    Raises:
        ConfigError: if it cannot be used, or has no such exit.
    """
    tokenizer = load_tokenizer(tokenizer_path(path))
    config = restore(ModelConfig, load_config(path).get("model", {}), "model")
    config.gdn.backend = config.gqa.backend = config.moe.backend = (
        "auto"  # those of the training machine may not run here
    )
    model = build_model(config, seed=0)
    load_model_weights(path, model)
    if exit_at is not None:
        model = truncate(model, exit_at)
    return Session(model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer)


def _repeat(cache: Cache, samples: int) -> None:
    """Turns the state of one text into that of equal texts."""
    for state in cache.states.values():
        for name, value in vars(state).items():
            if isinstance(value, Tensor):
                setattr(state, name, value.repeat(samples, *[1] * (value.ndim - 1)))
