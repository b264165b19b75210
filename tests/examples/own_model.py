"""A model of your own in one file: a GRU that predicts the next token, known as `model.family=gru`.

Training asks four things of a model: `config`, `num_moe_layers`, `count_targets` and a `forward` that returns losses for
labels, scores where asked, and logits otherwise. Then every command, metric and checkpoint works for it:

    python -m platform.run model.file=tests/examples/own_model.py model.family=gru

Legend: B sequences, T tokens, D width, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from superblock.config.model import ModelConfig
from superblock.kernels.cross_entropy import linear_cross_entropy, score_tokens
from superblock.kernels.packing import PackInfo
from superblock.models.batch import IGNORE, Batch, LossTerm, ModelOutput, Supervision, TokenScores
from superblock.models.cache import Cache
from superblock.models.registry import register


@dataclass
class GRUState:
    """What decoding keeps between tokens."""

    hidden_BD: Tensor | None = None


class GRUModel(nn.Module):
    """Embedding, one GRU that starts anew with every row, and an unembedding tied to the embedding."""

    num_moe_layers = 0

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.gru = nn.GRU(config.d_model, config.d_model, batch_first=True)
        nn.init.normal_(self.embedding.weight, std=config.d_model**-0.5)

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
        """`next_token` as loss or scores, or logits; there are no heads, so `supervision` has nothing to ask for."""
        state = GRUState() if cache is None else cache.states.setdefault((0, 0), GRUState())
        before_1BD = None if state.hidden_BD is None else state.hidden_BD[None]
        h_BTD, after_1BD = self.gru(self.embedding(input_ids_BT), before_1BD)
        if cache is not None:
            state.hidden_BD, cache.length = after_1BD[0], cache.length + input_ids_BT.shape[1]
        weight_VD, chunk = self.embedding.weight, self.config.cross_entropy_chunk
        if labels_BT is None:
            return ModelOutput(logits_BTV=((h_BTD[:, -1:] if last_only else h_BTD) @ weight_VD.T).float())
        if score:
            nll_N, rank_N = score_tokens(h_BTD.flatten(0, 1), weight_VD, labels_BT.flatten(), chunk=chunk)
            return ModelOutput(scores={"next_token": TokenScores(nll_N.view_as(labels_BT), rank_N.view_as(labels_BT))})
        total = linear_cross_entropy(h_BTD.flatten(0, 1), weight_VD, labels_BT.flatten(), chunk=chunk)
        return ModelOutput(losses={"next_token": LossTerm(total, int((labels_BT != IGNORE).sum()))})

    def count_targets(self, batch: Batch, supervision: Supervision | None) -> dict[str, int]:
        """One loss, hence one count."""
        return {"next_token": batch.num_targets}

    def balance_experts(self, expert_counts_LE: Tensor, rate: float) -> None:
        """There are no experts; never called."""


@register("gru")
def build(config: ModelConfig, *, seed: int, device: str) -> GRUModel:
    """Called by `build_model` for `model.family=gru`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GRUModel(config).to(device)
