"""The superblock language model: embedding, superblocks with their heads beside them, final norm, unembedding.

Legend: B sequences, T tokens, D width, V vocabulary, S superblocks, L MoE layers, E experts.
"""

from collections.abc import Collection, Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from superblock.config.fields import ConfigError
from superblock.config.model import ModelConfig
from superblock.kernels.cross_entropy import linear_cross_entropy, score_tokens
from superblock.kernels.packing import PackInfo
from superblock.kernels.precision import accumulation_dtype
from superblock.models import targets
from superblock.models.batch import Batch, LossTerm, ModelOutput, Supervision, TokenScores
from superblock.models.cache import Cache
from superblock.models.init import init_weights
from superblock.models.moe import STATS, MoE, Routing
from superblock.models.mtp import MTPHead
from superblock.models.native_decoder import decode_natively
from superblock.models.norm import RMSNorm
from superblock.models.registry import builder_of, import_families, register
from superblock.models.superblock import Superblock
from superblock.models.targets import HeadTerm


class SuperblockModel(nn.Module):
    """See `forward`. Heads live beside the superblocks and are called as modules, so that each can be sharded alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        S, D, V = config.num_superblocks, config.d_model, config.vocab_size
        self.embedding = nn.Embedding(V, D)
        self.superblocks = nn.ModuleList(Superblock(config) for _ in range(S))
        self.heads = nn.ModuleList(MTPHead(config, last=s == S - 1) for s in range(S))
        self.norm = RMSNorm(D, config.norm_eps)
        self.unembedding = None if config.tie_embeddings else nn.Linear(D, V, bias=False)

    @property
    def num_moe_layers(self) -> int:
        """L: rows of `expert_counts_LE`."""
        return self.config.num_superblocks * len(self.config.pattern)

    @property
    def output_weight(self) -> Tensor:
        """The table [V, D] that turns hidden states into logits, of the model and of all heads."""
        return self.embedding.weight if self.unembedding is None else self.unembedding.weight

    def forward(
        self,
        input_ids_BT: Tensor,
        pack: PackInfo | None = None,
        labels_BT: Tensor | None = None,
        *,
        supervision: Supervision | None = None,
        score: bool = False,
        cache: Cache | None = None,
        last_only: bool = False,
    ) -> ModelOutput:
        """Losses, scores or logits.

        Args:
            input_ids_BT: token ids.
            pack: document boundaries; None is one document per row.
            labels_BT: the token after each, or `IGNORE`. Gives `losses`: `next_token` (final z-loss included), `router`
                (weights applied, summed over layers), and the head terms that `supervision` asks for. Heads see only
                its columns of the residual stream; a depth's targets may lie behind them, and the attention of a block
                depth begins at the first of them.
            supervision: what the heads learn; None leaves them out.
            score: with labels, gives `scores` of `next_token`, every `exit/<s>` (s from 1, the last superblock has none)
                and `mtp/<k>` for all tokens instead, without gradient.
            cache: tokens before these, which it then also holds; for logits. A single token on the CPU is one call of
                C++ where that can serve, and then there are no router statistics.
            last_only: logits [B, 1, V] of the last token.

        Returns:
            The asked fields, with expert counts and router statistics.
        """
        B, T = input_ids_BT.shape
        assert cache is None or (pack is None and labels_BT is None), "a cache continues rows, for logits only"
        if cache is not None and (output := decode_natively(self, input_ids_BT, cache)) is not None:
            return output
        if pack is None:
            pack = PackInfo.dense(B, T, start=cache.length if cache else 0, device=input_ids_BT.device)
        if labels_BT is None:
            return self._logits(input_ids_BT, pack, cache, last_only)
        if score:
            with torch.no_grad():
                return self._scores(input_ids_BT, pack, labels_BT)
        return self._losses(input_ids_BT, pack, labels_BT, supervision)

    def count_targets(self, batch: Batch, supervision: Supervision | None) -> dict[str, int]:
        """The `count` of every loss that `forward` returns for this batch, without a forward pass."""
        return targets.count_targets(batch, self.config, supervision)

    def balance_experts(self, expert_counts_LE: Tensor, rate: float) -> None:
        """Moves every router's selection bias by one step, given the counts of an optimizer step over all processes."""
        layers = [module for module in self.superblocks.modules() if isinstance(module, MoE)]
        for moe, counts_E in zip(layers, expert_counts_LE, strict=True):
            moe.balance(counts_E, rate)

    # -- what forward consists of -----------------------------------------------------------------------------------

    def _trunk(
        self, ids_BT: Tensor, pack: PackInfo, cache: Cache | None = None, taps: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor], ModelOutput]:
        """The residual stream at the end and after the superblocks `taps`, and an output with the routers' report."""
        x_BTD = F.dropout(self.embedding(ids_BT), self.config.embedding_dropout, self.training)
        tapped, routings = {}, []
        for s, superblock in enumerate(self.superblocks):
            x_BTD, routing = superblock(x_BTD, pack, cache, s)
            routings.append(routing)
            if s in taps:
                tapped[s] = x_BTD
        if cache is not None:
            cache.length += ids_BT.shape[1]
        return x_BTD, tapped, self._report(routings)

    def _report(self, routings: Sequence[Routing]) -> ModelOutput:
        losses, counts, stats = zip(*routings, strict=True)
        output = ModelOutput(expert_counts_LE=torch.cat(counts))
        output.router_stats = dict(zip(STATS, torch.cat(stats).unbind(-1), strict=True))
        if self.config.moe.aux_loss or self.config.moe.z_loss:
            total = torch.stack(losses).sum()
            output.losses["router"] = LossTerm(total, torch.ones_like(total, dtype=torch.int64))
        return output

    def _logits(self, ids_BT: Tensor, pack: PackInfo, cache: Cache | None, last_only: bool) -> ModelOutput:
        x_BTD, _, output = self._trunk(ids_BT, pack, cache)
        h_BTD = self.norm.for_products(x_BTD[:, -1:] if last_only else x_BTD)
        output.losses.clear()
        output.logits_BTV = F.linear(h_BTD, self.output_weight).to(accumulation_dtype(h_BTD))
        return output

    def _losses(
        self, ids_BT: Tensor, pack: PackInfo, labels_BT: Tensor, supervision: Supervision | None
    ) -> ModelOutput:
        terms = targets.trained_terms(self.config, supervision)
        x_BTD, tapped, output = self._trunk(ids_BT, pack, taps={term.superblock for term in terms})
        total = self._cross_entropy(
            self.norm.for_products(x_BTD), labels_BT, self.output_weight, self.config.final_z_loss
        )
        output.losses["next_token"] = LossTerm(total, targets.count(labels_BT))
        if supervision is None or not terms:
            return output
        columns, detach = slice(supervision.begin, supervision.end), self.config.mtp.detach_trunk
        weight_VD = self.output_weight.detach() if detach else self.output_weight
        labels = targets.head_labels(labels_BT, pack, terms)
        for term, h_BTD in self._heads(ids_BT, pack, tapped, terms, columns, detach=detach):
            asked_BT = labels[term.depth][:, columns]
            total = self._cross_entropy(h_BTD, asked_BT, weight_VD)
            output.losses[term.name] = LossTerm(total, targets.count(asked_BT), term.weight)
        return output

    def _cross_entropy(self, h_BTD: Tensor, labels_BT: Tensor, weight_VD: Tensor, z_loss: float = 0.0) -> Tensor:
        chunk = self.config.cross_entropy_chunk
        return linear_cross_entropy(h_BTD.flatten(0, 1), weight_VD, labels_BT.flatten(), chunk=chunk, z_loss=z_loss)

    def _scores(self, ids_BT: Tensor, pack: PackInfo, labels_BT: Tensor) -> ModelOutput:
        terms = targets.scored_terms(self.config)
        x_BTD, tapped, output = self._trunk(ids_BT, pack, taps={term.superblock for term in terms})
        output.losses.clear()
        output.scores["next_token"] = self._token_scores(self.norm.for_products(x_BTD), labels_BT)
        labels = targets.head_labels(labels_BT, pack, terms)
        for term, h_BTD in self._heads(ids_BT, pack, tapped, terms, slice(None)):
            output.scores[term.name] = self._token_scores(h_BTD, labels[term.depth])
        return output

    def _token_scores(self, h_BTD: Tensor, labels_BT: Tensor) -> TokenScores:
        chunk = self.config.cross_entropy_chunk
        nll_N, rank_N = score_tokens(h_BTD.flatten(0, 1), self.output_weight, labels_BT.flatten(), chunk=chunk)
        return TokenScores(nll_N.view_as(labels_BT), rank_N.view_as(labels_BT))

    def _heads(
        self,
        ids_BT: Tensor,
        pack: PackInfo,
        tapped: dict[int, Tensor],
        terms: Sequence[HeadTerm],
        columns: slice,
        *,
        detach: bool = False,
    ) -> list[tuple[HeadTerm, Tensor]]:
        """The hidden state [B, columns, D] of each term; with `detach` the heads' gradient stays in the heads."""
        depths = range(1, max(term.depth for term in terms) + 1) if terms else range(0)
        embedded = [self.embedding(targets.ahead(ids_BT, pack, k, 0)[:, columns]) for k in depths]
        if detach:
            embedded = [e_BTD.detach() for e_BTD in embedded]
        inside = pack if columns == slice(None) else pack.slice(columns.start, columns.stop)
        found = []
        for s, group in groupby(terms, key=lambda term: term.superblock):
            wanted = list(group)
            x_BTD = tapped[s][:, columns]
            deepest = max(term.depth for term in wanted)
            hidden = self.heads[s](x_BTD.detach() if detach else x_BTD, embedded[:deepest], inside)
            found += [(term, hidden[term.depth]) for term in wanted]
        return found


def build_model(config: ModelConfig, *, seed: int, device: str = "cpu") -> SuperblockModel:
    """A model of `config.family` with weights that depend only on the seed and each parameter's name.

    Args:
        config: the architecture; `validate` has accepted it.
        seed: of the initial weights.
        device: where the model lives; "meta" builds shapes without storage, to be filled by `init_weights` later.

    Raises:
        ConfigError: for an unknown family, a `config.file` that cannot be imported, or a size that is not `model.expect_params`.
    """
    if config.file is not None:
        import_families(config.file)
    return builder_of(config.family)(config, seed=seed, device=device)


@register("superblock")
def build_superblock(config: ModelConfig, *, seed: int, device: str) -> SuperblockModel:
    """See `build_model`."""
    with torch.device("meta"):
        model = SuperblockModel(config)
    size = sum(parameter.numel() for parameter in model.parameters())
    if config.expect_params is not None and abs(size / config.expect_params - 1) > 0.005:
        raise ConfigError(f"model.expect_params={config.expect_params:g}: this architecture has {size:,} parameters")
    if device != "meta":
        model.to_empty(device=device)
        init_weights(model, seed)
    return model
