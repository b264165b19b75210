"""Reading a prompt into an empty cache, and decoding token by token from a full one."""

from typing import Any

import torch

from superblock.benchmarks.speed.cases import Case
from superblock.benchmarks.speed.work import PEER, Pair, Variant, Work, autocast, difference, has_peer, variants_of
from superblock.benchmarks.timing import Call
from superblock.config.benchmark import BenchmarkConfig
from superblock.models.cache import Cache

CHECKED = 40
"""Tokens whose logits are compared, the last of them decoded one by one."""


class Inference:
    """Both models with the same weights, each with a cache of its own kind."""

    def __init__(self, config: BenchmarkConfig, case: Case) -> None:
        self.pair, self.case = Pair(config, case), case
        self.ids_BT = self.pair.tokens(case.batch, max(case.context, case.tokens))
        self._half: Any = None

    def check(self) -> float:
        """Logits of a short prompt and of tokens decoded after it."""
        self.pair.share_weights()
        ours, theirs = self.pair.ours.eval(), self.pair.theirs.eval()
        ids_BT = self.ids_BT[:, :CHECKED]
        our_cache, their_cache = Cache(), self.their_cache()
        last, error = ids_BT.shape[1], 0.0
        with torch.inference_mode():
            for begin, end in ((0, last - 2), (last - 2, last - 1), (last - 1, last)):
                part = ids_BT[:, begin:end]
                expected = theirs(part, past_key_values=their_cache, use_cache=True).logits
                error = max(error, difference(ours(part, cache=our_cache).logits_BTV, expected, "a logit"))
        return error

    def their_cache(self) -> Any:
        from transformers.cache_utils import DynamicCache

        return DynamicCache(config=self.pair.theirs.config)

    # -- prefill ------------------------------------------------------------------------------------------------------

    def our_prefill(self, bf16: bool) -> Call:
        model = self.pair.ours.eval()

        def call() -> None:
            with torch.inference_mode(), autocast(bf16):
                model(self.ids_BT, cache=Cache(), last_only=True)

        return call

    def their_prefill(self, bf16: bool, style: str) -> Call:
        model = self.pair.styled(style).eval()

        def call() -> None:
            with torch.inference_mode(), autocast(bf16):
                model(self.ids_BT, past_key_values=self.their_cache(), use_cache=True, logits_to_keep=1)

        return call

    # -- decoding -----------------------------------------------------------------------------------------------------

    def our_decoding(self, bf16: bool) -> Call:
        model, cache = self.pair.ours.eval(), Cache()
        ids_BT, token_B1 = self.ids_BT[:, : self.case.context], self.ids_BT[:, :1]
        with torch.inference_mode(), autocast(bf16):
            model(ids_BT, cache=cache, last_only=True)

        def call() -> None:
            with torch.inference_mode(), autocast(bf16):
                following_B1 = token_B1
                for _ in range(self.case.tokens):
                    following_B1 = model(following_B1, cache=cache, last_only=True).logits_BTV.argmax(-1)

        return call

    def their_decoding(self, bf16: bool, style: str) -> Call:
        return self._decoding(self.pair.styled(style).eval(), bf16)

    def their_half_decoding(self) -> Call:
        """With weights in bf16, as a user of transformers would load them to decode."""
        import copy

        if self._half is None:
            self._half = copy.deepcopy(self.pair.theirs).eval().bfloat16()
        return self._decoding(self._half, False)

    def _decoding(self, model: Any, bf16: bool) -> Call:
        cache = self.their_cache()
        ids_BT, token_B1 = self.ids_BT[:, : self.case.context], self.ids_BT[:, :1]
        with torch.inference_mode(), autocast(bf16):
            model(ids_BT, past_key_values=cache, use_cache=True, logits_to_keep=1)

        def call() -> None:
            with torch.inference_mode(), autocast(bf16):
                following_B1 = token_B1
                for _ in range(self.case.tokens):
                    logits_BTV = model(following_B1, past_key_values=cache, use_cache=True).logits
                    following_B1 = logits_BTV.argmax(-1)

        return call


def prefill(config: BenchmarkConfig, case: Case) -> Work:
    """`prefill/...`."""
    both = Inference(config, case)
    variants = variants_of(config, both.our_prefill, both.their_prefill, styles=True)
    return Work(variants, both.check if has_peer() else None)


def decode(config: BenchmarkConfig, case: Case) -> Work:
    """`decode/...`: the cache grows with every token, by the same number on both sides.

    Under bf16 the peer may also run with bf16 weights, which saves it the casts of autocast.
    """
    both = Inference(config, case)
    variants = variants_of(config, both.our_decoding, both.their_decoding, styles=True)
    if has_peer() and "bf16" in config.speed.peers:
        variants += (Variant(f"{PEER}-bf16-weights", both.their_half_decoding, "bf16", baseline=True),)
    return Work(variants, both.check if has_peer() else None)
