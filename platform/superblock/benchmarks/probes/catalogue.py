"""Every probe by name, the required ones first."""

from collections.abc import Callable

from superblock.benchmarks.probes import copying, needle, recall, states
from superblock.benchmarks.probes.task import Task

TASKS: dict[str, Callable[[], Task]] = {
    "mqar": recall.mqar_task,
    "parity": states.parity_task,
    "selective_copy": copying.selective_copy_task,
    "induction_heads": copying.induction_heads_task,
    "in_context_recall": recall.in_context_recall_task,
    "fuzzy_recall": recall.fuzzy_recall_task,
    "noisy_recall": recall.noisy_recall_task,
    "mad_selective_copy": copying.mad_selective_copy_task,
    "compression": copying.compression_task,
    "memorization": copying.memorization_task,
    "modular_arithmetic": states.modular_arithmetic_task,
    "modular_arithmetic_brackets": states.modular_arithmetic_brackets_task,
    "s5": states.s5_task,
    "needle": needle.needle_task,
}
