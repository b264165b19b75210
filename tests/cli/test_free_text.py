"""Free text reaches a command as it was typed, whatever Hydra's grammar would make of it."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize(
    "text",
    [
        "def ",
        " x",
        "a, b",
        "[1, 2]",
        "it's",
        "a=b",
        "{x: 1}",
        "${oc.env:HOME}",
        "end\\",
        "\\'",
        "null",
        "5",
        "def f(x):\n    ",
        "'",
    ],
)
def test_prompt_is_literal(compose: Callable[..., Any], text: str) -> None:
    assert compose("generate", f"prompt={text}").prompt == text
    assert compose("generate", f"stop={text}").stop == text


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12))
def test_any_prompt_is_literal(compose: Callable[..., Any], text: str) -> None:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if not quoted:
        assert compose("generate", f"prompt={text}").prompt == text


def test_quotes_of_hydra_still_work(compose: Callable[..., Any]) -> None:
    assert compose("generate", "prompt='def '").prompt == "def "


@pytest.mark.parametrize("path", ["~/notes", "a b/*.txt", "texts[1]/x", "C:\\texts"])
def test_path_is_literal(compose: Callable[..., Any], path: str) -> None:
    assert compose("run", "data=text", f"data.path={path}").data.path == path
