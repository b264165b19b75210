"""Stages and scales: what a stage is for and how large a scale is."""

from collections.abc import Iterator
from dataclasses import dataclass

from superblock.config.budget import Budget
from superblock.config.fields import knob
from superblock.config.growth import CLAIMS, GATES, StatementConfig, check_statements


@dataclass
class StageConfig:
    """One MVP: superblocks, what it must prove, and how long it trains at each scale (stages/*.yaml)."""

    name: str = knob("mvp1", "name of the stage")
    title: str = knob("", "what the stage is")
    purpose: str = knob("", "what the stage must prove")
    superblocks: int = knob(1, "superblocks", minimum=1)
    parent: str | None = knob(None, "stage this one grows from")
    budget: dict[str, str | None] = knob(dict, "training budget by scale")
    gates: dict[str, StatementConfig] = knob(
        dict,
        "properties that must hold before the stage is promoted, each with because, limit and against, as in "
        f"stage.gates.no_dead_experts.limit=1; there are {', '.join(GATES)}",
    )
    claims: dict[str, StatementConfig] = knob(
        dict, f"hypotheses that are measured and never stop anything; there are {', '.join(CLAIMS)}"
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        for scale, text in self.budget.items():
            if text is not None:
                Budget.parse(text, f"stage.budget.{scale}")
        check_statements(self.gates, GATES, "stage.gates")
        check_statements(self.claims, CLAIMS, "stage.claims")
        yield from ()


@dataclass
class ScaleConfig:
    """Sizes that do not change from stage to stage, so that every scale can grow (conf/scale/*.yaml)."""

    name: str = knob("tiny", "name of the scale")
    d_model: int = knob(256, "width of the residual stream", minimum=8)
    vocab_size: int = knob(4096, "vocabulary", minimum=64)
    sequence_length: int = knob(256, "tokens per training sequence", minimum=2)
    batch_size: int = knob(8, "sequences per optimizer step", minimum=1)
    key_heads: int = knob(4, "Gated DeltaNet key heads", minimum=1)
    value_heads: int = knob(4, "Gated DeltaNet value heads", minimum=1)
    delta_head_dim: int = knob(64, "width of a Gated DeltaNet head", minimum=1, maximum=256)
    query_heads: int = knob(4, "attention query heads", minimum=1)
    kv_heads: int = knob(2, "attention key and value heads", minimum=1)
    attention_head_dim: int = knob(64, "width of an attention head", minimum=1, maximum=256)
    experts: int = knob(8, "routed experts per MoE layer", minimum=1)
    top_k: int = knob(2, "experts per token", minimum=1)
    d_expert: int = knob(128, "hidden width of an expert", minimum=8)
    mtp_last: str = knob("mlp", "prediction head of the last superblock: mlp or block", choices=("mlp", "block"))
    mtp_hidden: int = knob(64, "hidden width of an mlp prediction head", minimum=8)
    mtp_block: int = knob(256, "hidden width of a block prediction head", minimum=8)
