"""A report with every section filled, made of invented numbers, and variants of it."""

import math
import random
from dataclasses import replace

from superblock.reporting.content import (
    AblationRow,
    Change,
    Curve,
    ExitPoint,
    ExpertLoad,
    Group,
    HarnessRow,
    History,
    Measure,
    Point,
    Predicted,
    ProbeRow,
    Report,
    SeedValue,
    Sliced,
    Source,
    SpeedRow,
    Statement,
)

SEEDS = (1, 2, 3)
STAGES = {"mvp1": (1, 1.72e6), "mvp2": (3, 3.31e6), "mvp3": (6, 5.69e6), "mvp4": (12, 10.46e6)}
START = 1_795_264_000.0
HOSTILE = (
    "<script>alert(1)</script> \"' | [x](javascript:alert(2)) `rm -rf` $x_{1}^{2}$ \x1b[31m\u202e _a_ **b** ]]> -->"
)
"""What a name must not do to a page: run, close a cell, become a link, colour a terminal, be set as a formula."""


def measure(mean: float, spread: float, runs: tuple[str, ...], seeds: tuple[int, ...] = SEEDS) -> Measure:
    """Values around a mean, the last one making up for the others."""
    values = [mean + spread * (i - (len(seeds) - 1) / 2) for i in range(len(seeds))]
    half = 2.4 * spread
    low, high = (mean - half, mean + half) if len(seeds) > 1 else (None, None)
    return Measure(tuple(SeedValue(s, v, r) for s, v, r in zip(seeds, values, runs, strict=True)), mean, low, high)


def runs_of(stage: str, seeds: tuple[int, ...] = SEEDS) -> tuple[str, ...]:
    return tuple(f"{stage}-mini-s{seed}-20261121-12{10 * int(stage[-1]) + seed:02d}00" for seed in seeds)


def group(stage: str, seeds: tuple[int, ...] = SEEDS) -> Group:
    """One stage."""
    depth, parameters = STAGES[stage]
    runs = runs_of(stage, seeds)
    place = list(STAGES).index(stage)
    bits = 1.6538 - 0.0612 * place + 0.008 * place**2
    tokens = 1.23e6 * (1 + 0.8 * place)
    measures = {
        "test/bits_per_byte": measure(bits, 0.0031, runs, seeds),
        "test/perplexity": measure(2 ** (2.4 * bits), 0.21, runs, seeds),
        "test/accuracy_top1": measure(0.331 + 0.016 * place, 0.0013, runs, seeds),
        "final/tokens_per_second": measure(41_230 / (1 + 0.9 * place), 310, runs, seeds),
        "final/matmul_share": measure(0.441 + 0.021 * place, 0.004, runs, seeds),
        "final/memory_peak_mib": measure(412.0 + 96 * place, 3.1, runs, seeds),
    }
    return Group(
        key=f"mini/{stage}/default", stage=stage, scale="mini", arm="default", superblocks=depth, parameters=int(parameters),
        active_parameters=int(parameters * 0.61), training_tokens=tokens, flops=2.49e12 * (1 + 1.7 * place), data_digest="4fd1c2a9e0b37d55",
        machine="562b73a2", runs=runs, measures=measures, references={"unigram": 2.8611, "trigram": 1.7329, "xz": 1.6912},
        predicted=predicted(stage, bits, len(seeds)), curves=(curve(place, bits),), exits=exits(stage, runs, seeds),
        experts=tuple(load(layer, place) for layer in range(1, 2 * depth + 1)), positions=positions(bits, runs, seeds),
        packages=packages(bits, runs, seeds), statements=statements(stage, runs, seeds),
        sample=f"# Samples after step 600\n\n    def {stage}_read(self, x):\n        if x < 3 & y:\n            return '<b>'\n",
        sample_run=runs[0],
    )  # fmt: skip


def predicted(stage: str, bits: float, seeds: int) -> tuple[Predicted, ...]:
    if stage == "mvp1":
        return ()
    return (
        Predicted("bits_per_byte", bits - 0.013, bits - 0.041, bits + 0.021, bits, seeds, seeds),
        Predicted("minutes", 0.71, 0.64, 0.78, 0.81, 0 if stage == "mvp4" else seeds - 1, seeds),
        Predicted("memory_bytes", 5.1e8, 4.6e8, 5.7e8, 5.34e8, seeds, seeds),
    )


def curve(place: int, bits: float) -> Curve:
    generator = random.Random(place)
    before = 0.0 if place == 0 else 1.23e6 * (1 + 0.8 * (place - 1))
    tokens = [before + (i + 1) * (1.23e6 if place == 0 else 0.984e6) / 60 for i in range(60)]
    start = 4.8 if place == 0 else bits + 0.09
    mean = [
        bits + (start - bits) * math.exp(-i / (9 if place == 0 else 20)) + generator.gauss(0, 0.003) for i in range(60)
    ]
    band = [0.02 + 0.02 * math.exp(-i / 10) for i in range(60)]
    low, high = (tuple(m + sign * b for m, b in zip(mean, band, strict=True)) for sign in (-1, 1))
    return Curve("val/bits_per_byte", tuple(tokens), tuple(mean), low, high, 3)


def exits(stage: str, runs: tuple[str, ...], seeds: tuple[int, ...]) -> tuple[ExitPoint, ...]:
    depth = STAGES[stage][0]
    depths = [d for d in (1, 3, 6, 12) if d <= depth]
    return tuple(
        ExitPoint(d, measure(1.47 + 0.19 / d + 0.002 * depth, 0.003, runs, seeds), measure(57_000 / d, 400, runs, seeds),
                  measure(1.5 + 0.17 / d, 0.004, runs, seeds) if d < depth else None)
        for d in depths
    )  # fmt: skip


def load(layer: int, place: int) -> ExpertLoad:
    return ExpertLoad(
        layer, 0.998 - 0.0021 * ((layer * 7 + place) % 9), 0.31 + 0.017 * (layer % 5), 1.0 if layer == 19 else 0.0
    )


def positions(bits: float, runs: tuple[str, ...], seeds: tuple[int, ...]) -> tuple[Sliced, ...]:
    names = ("1-16", "17-32", "33-64", "65-128")
    return tuple(
        Sliced(
            name,
            measure(bits + 0.5 / 2**i - 0.1, 0.004, runs, seeds),
            measure(0.29 + 0.02 * i, 0.002, runs, seeds),
            None,
        )
        for i, name in enumerate(names)
    )


def packages(bits: float, runs: tuple[str, ...], seeds: tuple[int, ...]) -> tuple[Sliced, ...]:
    names = (
        "asyncio",
        "email",
        "idlelib",
        "encodings",
        "unittest",
        "distutils",
        "tkinter",
        "xml",
        "json",
        "concurrent",
        "ctypes",
        "http",
        "logging",
        "wsgiref",
    )
    return tuple(
        Sliced(
            name,
            measure(bits + 0.07 * math.sin(3 * i), 0.006, runs, seeds),
            measure(0.34 - 0.01 * (i % 4), 0.003, runs, seeds),
            0.19 / (i + 1),
        )
        for i, name in enumerate(names)
    )


def statements(stage: str, runs: tuple[str, ...], seeds: tuple[int, ...]) -> tuple[Statement, ...]:
    found = []
    for seed, run in zip(seeds, runs, strict=True):
        for name in ("finite_loss", "gradients", "no_dead_experts", "bits_per_byte", "resume", "distinct_4grams"):
            bad = stage == "mvp4" and seed == 2 and name == "no_dead_experts"
            found.append(
                Statement(
                    run,
                    seed,
                    name,
                    "gate",
                    "failed" if bad else "passed",
                    "1 of 24 x 8 experts had no token" if bad else "1.6539 bits per byte of the test text",
                    "at most 0 experts without a token" if bad else "below the 1.7329 of a trigram model",
                    "An expert that no token is sent to costs memory and does nothing.",
                )
            )
        found.append(Statement(run, seed, "cost_predicted", "claim", "held" if seed < 3 else "undecided", "within 11 %", "within 20 %",
                               "Whoever plans a longer run needs to know its time and memory beforehand."))  # fmt: skip
    return tuple(found)


def probes() -> tuple[ProbeRow, ...]:
    """Three tasks, five arms, one of which did not run everywhere."""
    scores = {
        ("MQAR", "attention"): 0.998, ("MQAR", "deltanet"): 0.713, ("MQAR", "hybrid"): 0.997,
        ("parity", "attention"): 0.522, ("parity", "deltanet"): 0.996, ("parity", "deltanet-positive"): 0.531, ("parity", "hybrid"): 0.992,
        ("parity", "hybrid-positive"): 0.548, ("selective copy", "attention"): 0.971, ("selective copy", "deltanet"): 0.912,
        ("selective copy", "hybrid"): 0.988,
    }  # fmt: skip
    chances = {"MQAR": 0.0078, "parity": 0.5, "selective copy": 0.0667}
    published = {
        ("MQAR", "attention"): "solved (Zoology, arXiv 2312.04927)",
        ("parity", "deltanet"): "1.00 scaled accuracy with negative eigenvalues (arXiv 2411.12537)",
    }
    rows = []
    for (task, arm), score in scores.items():
        runs = tuple(f"probes/{task}/{arm}/s{seed}" for seed in SEEDS)
        steps = {"MQAR": ("pairs", (4, 8, 16, 32)), "parity": ("length", (40, 64, 128, 256))}.get(task)
        levels = (
            {
                f"{steps[0]}={x}": measure(max(chances[task], score - 0.06 * i * (1.1 - score) * 3), 0.004, runs)
                for i, x in enumerate(steps[1])
            }
            if steps
            else {}
        )
        rows.append(
            ProbeRow(
                task,
                arm,
                measure(score, 0.0013, runs),
                "accuracy of the answers",
                chances[task],
                levels,
                published.get((task, arm)),
                "probes",
            )
        )
    return tuple(rows)


def speed() -> tuple[SpeedRow, ...]:
    cases = {
        "train/s1/b4-t512": (123.1, 16_637.0, 0.54, 2.21, 0.57), "train/s3/b4-t512": (272.4, 7_518.0, 0.53, 2.83, 0.56),
        "train/s1/b8-t1024": (511.0, 16_031.0, 0.55, 2.31, 0.61), "train/s1/b4-t2048": (541.0, 15_142.0, 0.58, 2.42, 0.66),
        "train/s1/b1-t8192": (747.3, 10_962.0, 0.65, 2.71, 0.71), "prefill/s3/t512": (19.1, 26_806.0, 0.61, 2.4, None),
        "prefill/s3/t2048": (92.5, 22_140.0, 0.66, 2.5, None), "prefill/s3/t8192": (519.0, 15_784.0, 0.71, 2.61, None),
        "decode/s3/c512": (0.5376, 1_860.0, None, 14.2, None), "decode/s3/c8192": (1.449, 690.0, None, 6.9, None),
        "part/norm": (0.512, None, None, 7.2, None),
    }  # fmt: skip
    return tuple(
        SpeedRow(case, ms, rate, share, ratio, memory, {"batch": 4, "superblocks": 1, "tokens": 2048}, "speed")
        for case, (ms, rate, share, ratio, memory) in cases.items()
    )


def ablations() -> tuple[AblationRow, ...]:
    rows = (
        ("growth", "1-3: identity less scratch", -0.0418, -0.0492, -0.0345, 0.0004, 5, "better"),
        ("growth", "1-3: stack less scratch", -0.0494, -0.0583, -0.0405, 0.0004, 5, "better"),
        ("growth", "3-6: identity less scratch", -0.0671, -0.0832, -0.0511, 0.0011, 5, "better"),
        ("wiring", "literal less prenorm", 0.0213, -0.0061, 0.0487, 0.1132, 3, "undecided"),
        ("wiring", "ungated less prenorm", 0.0311, 0.0042, 0.0583, 0.0624, 3, "undecided"),
    )
    return tuple(
        AblationRow(e, c, "test/bits_per_byte", m, low, high, p, n, f"{c}: {words}", e, words == "better",
                    "300 steps for each arm, equal steps, not equal FLOPs" if e == "wiring" else "")
        for e, c, m, low, high, p, n, words in rows
    )  # fmt: skip


def harness() -> tuple[HarnessRow, ...]:
    """All examples of a task, and a part of another's."""
    run = runs_of("mvp4")[0]
    return (
        HarnessRow("superblock_brackets", "acc", 0.7412, 0.0219, 1 / 3, 300, None, run, "harness/all"),
        HarnessRow("superblock_text", "bits_per_byte", 1.6147, None, None, 7, 7, run, "harness/part"),
    )


def changes(groups: tuple[Group, ...]) -> tuple[Change, ...]:
    """One improvement, one regression, one undecided, a new and a missing one; the rest is unchanged."""
    planted = {
        ("mvp2", "test/bits_per_byte"): ("improved", -0.0183), ("mvp3", "final/tokens_per_second"): ("regressed", -0.0712),
        ("mvp4", "test/bits_per_byte"): ("undecided", 0.0121), ("mvp4", "final/memory_peak_mib"): ("new", None),
    }  # fmt: skip
    found = []
    for one in groups:
        for metric in ("test/bits_per_byte", "final/tokens_per_second", "final/memory_peak_mib"):
            verdict, relative = planted.get((one.stage, metric), ("unchanged", 0.0017))
            after = one.measures[metric]
            if relative is None:
                found.append(
                    Change(
                        one.key,
                        metric,
                        None,
                        after,
                        None,
                        None,
                        None,
                        None,
                        None,
                        verdict,
                        "The baseline has no such number.",
                    )
                )  # type: ignore[arg-type]
                continue
            before = replace(after, mean=after.mean / (1 + relative))
            sure = 0.004 if verdict in ("improved", "regressed") else 0.021
            words = f"{one.stage} {verdict}: {100 * relative:+.2f} %"
            found.append(
                Change(
                    one.key,
                    metric,
                    before,
                    after,
                    relative,
                    relative - sure,
                    relative + sure,
                    0.0123,
                    0.0456,
                    verdict,
                    words,
                )
            )  # type: ignore[arg-type]
    gone = measure(1.9, 0.003, ("old-s1", "old-s2", "old-s3"))
    found.append(
        Change(
            "mini/mvp9/default",
            "test/bits_per_byte",
            gone,
            None,
            None,
            None,
            None,
            None,
            None,
            "missing",
            "Only the baseline has it.",
        )
    )
    return tuple(found)


def histories() -> tuple[History, ...]:
    generator = random.Random(7)
    made = []
    for metric, level, change, alarm in (
        ("test/bits_per_byte", 1.65, None, False),
        ("final/tokens_per_second", 41_000.0, 9, True),
        ("final/memory_peak_mib", 412.0, 6, False),
    ):
        values = [level * (1 + generator.gauss(0, 0.003) - (0.07 if change and i >= change else 0)) for i in range(12)]
        points = tuple(
            Point(START + 604_800 * i, v, f"{i:02d}c0ffee{i:032d}", (f"scheduled-{metric.rpartition('/')[2]}-{i}",))
            for i, v in enumerate(values)
        )
        words = "7 % lower since the 10th of 12 points." if change else "No change among 12 points."
        made.append(
            History("mini/mvp1/default", metric, "562b73a2", points, change, -0.0701 if change else None, alarm, words)
        )
    return tuple(made)


def source(name: str, kind: str = "run", i: int = 0) -> Source:
    command = (
        f"superblock run stage={name[:4]} scale=mini seed=1" if kind == "run" else f"superblock benchmark suite={name}"
    )
    return Source(name, kind, command, "17d21898ae20339b4a772ea9f837b1fe897cc629", i == 1, "70033d72b4a43dfe", "2 x AMD EPYC, 24 GiB, no GPU", "562b73a2",  # type: ignore[arg-type]
                  "4fd1c2a9e0b37d55", START + 60 * i, f"/#/experiments/1/runs/{i:032x}" if kind == "run" else None)  # fmt: skip


def full() -> Report:
    """Everything."""
    groups = tuple(group(stage) for stage in STAGES)
    names = [run for one in groups for run in one.runs]
    sources = tuple(source(name, "run", i) for i, name in enumerate(names)) + tuple(
        source(name, "record") for name in ("probes", "speed", "growth", "wiring", "harness/all", "harness/part")
    )
    return Report(
        name="mini-20261121-a1b2c3", title="MVP-1 to MVP-4 at scale mini", time=START + 3600, verdict="regressed",
        verdict_words="1 of 12 comparisons is worse than the baseline (mvp3 training speed \u22127.1 %), 1 is better (mvp2 bits per byte \u22121.8 %).",
        source="runs", baseline="mini-20261114-9f8e7d", changes=changes(groups), histories=histories(), groups=groups, probes=probes(),
        speed=speed(), ablations=ablations(), harness=harness(), sources=sources,
        missing=("The tasks of MAD were not run: `superblock benchmark suite=probes probes.tasks=[compress]`.",),
        problems=("mvp1-mini-s9-20261120-101010: status.json could not be read",),
    )  # fmt: skip


def minimal() -> Report:
    """Nothing at all."""
    return Report("empty", "Nothing was measured", START, "missing", "No run.", "runs", None)


def one_seed() -> Report:
    """Two stages, one run each."""
    groups = tuple(group(stage, (1,)) for stage in ("mvp1", "mvp2"))
    return Report(
        "one-seed", "One seed", START, "not enough seeds", "One seed has no interval.", "runs", None, groups=groups,
        sources=tuple(source(run) for one in groups for run in one.runs),
    )  # fmt: skip


def no_baseline() -> Report:
    """One stage, nothing to compare it with."""
    one = group("mvp1")
    return Report(
        "first", "The first report", START, "new", "The first report; nothing is pinned.", "runs", None, groups=(one,),
        sources=tuple(source(run) for run in one.runs),
    )  # fmt: skip


def hostile() -> Report:
    """Every text of a stranger is an attack."""
    report = full()
    first = report.groups[0]
    bad = replace(
        first, key=HOSTILE, stage=HOSTILE, arm=HOSTILE, scale=HOSTILE, sample_run=HOSTILE, sample=HOSTILE + "\n```\n</pre></details>", runs=(HOSTILE, *first.runs[1:]),
        statements=tuple(replace(one, run=HOSTILE, name=HOSTILE, measured=HOSTILE, verdict="failed") for one in first.statements),
        packages=tuple(replace(one, name=f"{HOSTILE}{i}") for i, one in enumerate(first.packages)),
    )  # fmt: skip
    sources = (
        replace(
            report.sources[0],
            name=HOSTILE,
            command=HOSTILE,
            commit=HOSTILE,
            hardware=HOSTILE,
            mlflow="javascript:alert(3)",
        ),
        replace(report.sources[1], mlflow='/#/"><script>alert(4)</script>'),
        *report.sources[2:],
    )
    probes = tuple(
        replace(row, task=HOSTILE + row.task, arm=HOSTILE + row.arm, published=HOSTILE) for row in report.probes
    )
    return replace(
        report, name="hostile", title=HOSTILE, verdict_words=HOSTILE, source=HOSTILE, baseline=HOSTILE, groups=(bad,),
        sources=sources, probes=probes, missing=(HOSTILE,), problems=(HOSTILE,),
        ablations=tuple(replace(row, experiment=HOSTILE, comparison=HOSTILE) for row in report.ablations),
        changes=tuple(replace(one, words=HOSTILE) for one in report.changes), histories=report.histories[:1], speed=(),
    )  # fmt: skip


VARIANTS = {"full": full, "minimal": minimal, "one_seed": one_seed, "no_baseline": no_baseline, "hostile": hostile}
