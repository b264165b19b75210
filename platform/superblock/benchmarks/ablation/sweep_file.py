"""Reads a sweep: the arms of an ablation, what they are compared with, and what each may cost.

    # literal seed wiring against pre-norm                 first line: what it is
    reference: prenorm                                     the arm that the others are compared with; the first by default
    stages: [mvp1]                                         depths, each trained from scratch; [mvp1] by default
    scale: mini                                            optional; else that of the command
    seeds: [1, 2, 3]
    budget: 120 steps of the reference                     or '20 TFLOP'; '300 steps' or '1M tokens' are not equal FLOPs
    overrides: optim.weight_decay=0                        optional: of every arm
    parent_share: 0.4                                      optional: of the budget, for arms with parent=<stage>
    arms:
      prenorm: {overrides: model.wiring=prenorm}
      literal: {overrides: model.wiring=literal, why: "three norms are enough at one superblock"}

Overrides stand as they would be typed behind `python -m platform.run`, or as a list with one per entry. An arm with
`parent=mvp1` begins from a model of that stage, which is trained for it within the arm's budget.
"""

import re
import shlex
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from superblock.config.fields import ConfigError, closest

KEYS = ("reference", "stages", "scale", "seeds", "budget", "overrides", "parent_share", "arms")
ARM_KEYS = ("overrides", "why")
ARM_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,13}"
"""Run folders hold the name of the experiment and that of the arm."""
STAGES = ("mvp1", "mvp2", "mvp3", "mvp4")
_EXPERIMENTS = "is the experiment's own"
OF_THE_SWEEP = {
    "seed": "seeds are the sweep's: write seeds: [1, 2, 3]",
    "trainer.budget": "the budget is the sweep's: write budget: 120 steps of the reference",
    "stage": "stages are the sweep's: write stages: [mvp1]; another depth of an arm is model.num_superblocks=3",
    "scale": "the scale is the sweep's: write scale: mini",
    "name": _EXPERIMENTS, "resume": _EXPERIMENTS, "promote": _EXPERIMENTS, "exit_at": _EXPERIMENTS,
    "tracking": "where results go is the command's: tracking=...",
    "hydra": _EXPERIMENTS,
}  # fmt: skip
_OF_EVERY_ARM = {
    "data": "arms must share the text; write it for all of them: overrides: data=text data.path=notes",
    "evaluation": "arms must be measured alike; write it for all of them, as overrides of the sweep",
}
_OWN_DATA = ("data.vocab_size", "data.sequence_length", "data.workers")
"""What an arm may change of the data: bits per byte of the same text stay comparable."""


@dataclass(frozen=True)
class Arm:
    """One of the models that are compared."""

    name: str
    words: tuple[str, ...]
    """Overrides of `run`."""
    why: str = ""


class _NoTwins(yaml.SafeLoader):
    """YAML keeps the last of two equal keys and forgets the first, which here would be an arm."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if isinstance(name, Hashable) and name in seen:
                raise ConfigError(f"line {key.start_mark.line + 1}: {name}: stands twice; give each arm its own name")
            seen.add(name)
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class Reader:
    """Turns plain YAML into checked values; every error begins with the source."""

    source: str

    def sweep(self, text: str) -> dict[str, Any]:
        """The keys that the file gives."""
        content = self._load(text)
        known = {key: content[key] for key in self._keys(content, KEYS, "")}
        for key in ("reference", "scale", "budget"):
            if key in known and not isinstance(known[key], str):
                self.refuse(key, known[key], "must be a text")
        lists: dict[str, tuple[type, str]] = {"stages": (str, "[mvp1]"), "seeds": (int, "[1, 2, 3]")}
        for key, (kind, example) in lists.items():
            if key in known and not self._list_of(known[key], kind):
                self.refuse(key, known[key], f"must be a list such as {example}, with nothing twice")
        share = known.get("parent_share", 0.4)
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 0.95:
            self.refuse("parent_share", share, "must be a number above 0 and at most 0.95")
        if "overrides" in known:
            known["overrides"] = self.words(known["overrides"], "overrides", OF_THE_SWEEP | {"parent": _EXPERIMENTS})
        arms = known.get("arms", {})
        if not isinstance(arms, Mapping):
            self.refuse("arms", arms, "must be a table, as in literal: {overrides: model.wiring=literal}")
        known["arms"] = [self.arm(str(name), content) for name, content in arms.items()]
        return known

    def arm(self, name: str, content: Any) -> Arm:
        """One arm: a table, or its overrides alone."""
        where = f"arms.{name}"
        if not re.fullmatch(ARM_NAME, name):
            raise ConfigError(
                f"{self.source}: {where}: the name must be at most 14 letters, digits, '.', '_' and '-', not starting with a sign"
            )
        table = content if isinstance(content, Mapping) else {"overrides": content}
        known = {key: table[key] for key in self._keys(table, ARM_KEYS, f"{where}.")}
        why = known.get("why", "")
        if not isinstance(why, str):
            self.refuse(f"{where}.why", why, "must be a text")
        words = self.words(known.get("overrides"), f"{where}.overrides", OF_THE_SWEEP | _OF_EVERY_ARM)
        parents = [word for word in words if key_of(word) == "parent"]
        for word in parents:
            if word.partition("=")[2] not in STAGES:
                self.refuse(
                    f"{where}.overrides", word, "must be parent=<stage>, one that is trained first, as in parent=mvp1"
                )
        if not parents and (growth := next((word for word in words if key_of(word).startswith("growth")), None)):
            self.refuse(f"{where}.overrides", growth, "has no effect on an arm from scratch; add parent=mvp1")
        return Arm(name, words, why)

    def words(self, content: Any, where: str, refused: Mapping[str, str]) -> tuple[str, ...]:
        """Overrides, split as a shell would."""
        if isinstance(content, str) or content is None:
            try:
                words = shlex.split(content or "")
            except ValueError as error:
                self.refuse(where, content, f"cannot be read: {error}")
        elif self._list_of(content, str):
            words = list(content)
        else:
            self.refuse(where, content, "must be what would be typed, as in model.wiring=literal optim=muon")
        keys = [key_of(word) for word in words]
        for word, key in zip(words, keys, strict=True):
            if "=" not in word:
                self.refuse(where, word, "settings are written key=value")
            if keys.count(key) > 1:
                self.refuse(where, word, f"{key} stands twice")
            for name in (key, key.partition(".")[0]):
                if name in refused and key not in _OWN_DATA:
                    self.refuse(where, word, refused[name])
        return tuple(words)

    def _load(self, text: str) -> Mapping[str, Any]:
        try:
            content = yaml.load(text, Loader=_NoTwins)
        except ConfigError as error:
            raise ConfigError(f"{self.source}: {error}") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = f"line {mark.line + 1}: " if mark else ""
            raise ConfigError(f"{self.source}: {place}is no YAML: {getattr(error, 'problem', error)}") from None
        if content is not None and not isinstance(content, Mapping):
            raise ConfigError(f"{self.source}: must be a table with {', '.join(KEYS)}")
        return content or {}

    def _keys(self, content: Mapping[Any, Any], known: Sequence[str], where: str) -> Iterator[str]:
        for key in content:
            if key not in known:
                hint = f"; did you mean {close[0]}?" if (close := closest(key, known)) else ""
                raise ConfigError(
                    f"{self.source}: {where}{key}: there is no such key{hint} There are {', '.join(known)}"
                )
            yield str(key)

    def _list_of(self, value: Any, kind: type) -> bool:
        fits = isinstance(value, list) and all(isinstance(one, kind) and not isinstance(one, bool) for one in value)
        return fits and len(set(value)) == len(value)

    def refuse(self, where: str, value: Any, problem: str) -> Any:
        raise ConfigError(f"{self.source}: {where}: {value}: {problem}")


def key_of(word: str) -> str:
    """The key or group that an override sets."""
    return word.partition("=")[0].lstrip("+~")
