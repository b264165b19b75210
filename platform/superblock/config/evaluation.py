"""What is measured during and after training."""

from dataclasses import dataclass

from superblock.config.fields import knob


@dataclass
class EvaluationConfig:
    """Validation during training and the test after it."""

    every: float = knob(
        0.1, "distance between validations: below 1 a share of all steps, from 1 a number of steps", above=0
    )
    val_sequences: int | None = knob(
        128, "validation sequences used during training, the same each time; null is all", minimum=1
    )
    batch_size: int = knob(16, "sequences per evaluation batch", minimum=1)
    test: bool = knob(True, "evaluate the whole validation and test split at the end")
    language: bool = knob(
        True, "with the test: quality by context length and by package (language.json), from the same pass"
    )
    samples: int = knob(2, "texts generated at the end and recorded", minimum=0, maximum=64)
    sample_tokens: int = knob(120, "tokens per recorded text", minimum=1)
    reference_points: bool = knob(True, "compute the unigram, trigram and xz reference points of the split")
