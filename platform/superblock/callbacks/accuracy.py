"""How often the right token is the most likely one, or among the five most likely."""

from collections.abc import Mapping
from typing import Any

from superblock.callbacks.base import EvaluationCallback, metric_prefix
from superblock.evaluation.metrics import TopKAccuracy
from superblock.models.batch import TokenScores


class Accuracy(EvaluationCallback):
    """Records `accuracy_top1` and `accuracy_top5` of the next token, of each later offset (`mtp_1/`) and of each
    superblock's exit (`exit_1/`). The share of `mtp_1` is what self-speculative decoding can accept."""

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        self._heads: dict[str, TopKAccuracy] = {}

    def add(self, scores: Mapping[str, TokenScores]) -> None:
        for name, score in scores.items():
            if name not in self._heads:
                self._heads[name] = TopKAccuracy().to(score.rank_BT.device)
            self._heads[name].update(score)

    def values(self, module: Any, split: str, *, whole: bool) -> dict[str, float]:
        return {
            f"{metric_prefix(name)}accuracy_top{k}": value
            for name, metric in self._heads.items()
            for k, value in metric.compute().items()
        }
