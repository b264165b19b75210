"""Our model as the harness wants one: log-likelihoods of continuations and whole texts, and greedy texts.

Every text begins with the mark that documents begin with in training. Legend: B texts, T tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from superblock.benchmarks.harness.tokens import boundary
from superblock.data.tokenizer import slices, token_bytes
from superblock.evaluation.scoring import precision
from superblock.generation.session import Session
from superblock.kernels.packing import PackInfo
from superblock.models.batch import IGNORE

MAX_TOKENS = 128
"""Of a generated text, where the task does not say."""
Scored = tuple[list[int], list[int]]
"""Tokens that are read, and the last ones' successors, which are scored."""


class HarnessModel(TemplateLM):
    """A session in the harness.

    Args:
        session: the trained model with its tokenizer.
        batch_size: texts scored together.
        precision: `trainer.precision` of the run, with which its own test scored too.
    """

    def __init__(self, session: Session, *, batch_size: int, precision: str) -> None:
        super().__init__()
        self.session, self.batch_size, self.precision = session, batch_size, precision
        self._sizes = token_bytes(session.tokenizer).tolist()

    @property
    def eot_token_id(self) -> int:
        """The mark that begins every document."""
        return self.session.end_of_text

    @property
    def max_length(self) -> int:
        """Tokens that the model saw at once in training; more context is cut off on the left."""
        return self.session.trained_length

    @property
    def max_gen_toks(self) -> int:
        """Tokens of a generated text, where the task does not say."""
        return MAX_TOKENS

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokens of a text, as for training; special tokens are never read in it, nor added."""
        return [token for piece in slices(string) for token in self.session.tokenizer.encode(piece).ids]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of both together, cut at the last border between tokens that lies within the context.

        A token that reaches over the end of the context belongs to the continuation: so both together are always the
        tokens of the whole text, and nothing that is scored was read before.
        """
        ids = self.tok_encode(context + continuation)
        cut = boundary(ids, self._sizes, len(context.encode()))
        return ids[:cut], ids[cut:]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each continuation, and whether it is what greedy decoding would write."""
        pairs = []
        for _, context, continuation in requests:
            known = context if context[:1] == [self.eot_token_id] else [self.eot_token_id, *context]
            tokens = known + continuation
            length = max(self.max_length, len(continuation))  # a long continuation is still scored whole
            pairs.append((tokens[:-1][-length:], continuation))
        return self._score(pairs)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood in nats of whole texts, each token scored once, in windows as a run's test reads.

        Only the last window differs: as for every model in the harness it begins earlier, so that it is full.
        """
        windows: list[Scored] = []
        counts = []
        for request in requests:
            (text,) = request.args
            found = get_rolling_token_windows(self.tok_encode(text), self.eot_token_id, self.max_length, 1)
            pairs = [make_disjoint_window(pair) for pair in found]
            windows += [(context + targets[:-1], targets) for context, targets in pairs]
            counts.append(len(pairs))
        scores = iter(self._score(windows))
        return [sum(next(scores)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continues each text until one of its stops, greedily unless the task samples, as `generate` does."""
        return [self._generate(*request.args) for request in requests]

    # -- parts --------------------------------------------------------------------------------------------------------

    def _generate(self, context: str, asked: dict[str, Any]) -> str:
        until = asked.get("until") or []
        most = int(asked.get("max_gen_toks", MAX_TOKENS))
        pieces = self.session.stream(
            self._shortened(context, most),
            max_tokens=most,
            temperature=float(asked.get("temperature", 0.0)) if asked.get("do_sample") else 0.0,
            top_p=float(asked.get("top_p", 1.0)),
            stop=[until] if isinstance(until, str) else list(until),
        )
        return "".join(piece.text for piece in pieces)

    def _shortened(self, context: str, most: int) -> str:
        """The end of a context, so that it and the text after it are no longer than in training, if that can be."""
        ids, room = self.tok_encode(context), max(self.max_length - 1 - most, self.max_length // 2)
        if len(ids) <= room:
            return context
        begin = sum(self._sizes[token] for token in ids[:-room])
        return context.encode()[begin:].decode("utf-8", "ignore")

    @torch.no_grad()
    def _score(self, pairs: Sequence[Scored]) -> list[tuple[float, bool]]:
        """In batches of similar lengths; rows are filled up on the right, where no token before can see it."""
        order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]))
        results: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        for begin in range(0, len(order), self.batch_size):
            chosen = order[begin : begin + self.batch_size]
            for i, result in zip(chosen, self._batch([pairs[i] for i in chosen]), strict=True):
                results[i] = result
        return results

    def _batch(self, pairs: Sequence[Scored]) -> list[tuple[float, bool]]:
        B, T = len(pairs), max(1, *(len(inputs) for inputs, _ in pairs))
        ids_BT = torch.full((B, T), self.eot_token_id)
        labels_BT = torch.full((B, T), IGNORE)
        for row, (inputs, targets) in enumerate(pairs):
            ids_BT[row, : len(inputs)] = torch.tensor(inputs, dtype=torch.long)
            labels_BT[row, len(inputs) - len(targets) : len(inputs)] = torch.tensor(targets, dtype=torch.long)
        device, model = self.session.device, self.session.model
        with precision(self.precision, device):
            output = model(ids_BT.to(device), PackInfo.dense(B, T, device=device), labels_BT.to(device), score=True)
        scores = output.scores["next_token"]
        nll_B = scores.nll_BT.double().sum(dim=1)
        greedy_B = (scores.rank_BT <= 0).all(dim=1)
        return [(-nll, greedy) for nll, greedy in zip(nll_B.tolist(), greedy_B.tolist(), strict=True)]
