from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.clocks import Clock
from tests.playing import Play, untrained

from hermes.rounds import round as rounds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Callable[..., Play]]:
    opened: list[Play] = []

    def start(**conf: str) -> Play:
        opened.append(Play(tmp_path, **conf))
        return opened[-1]

    yield start
    for one in opened:
        one.workspace.campaign.close()


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Rounds that train nothing; of each the rehearsed rows and the datasets of its cases."""
    seen: list[Any] = []
    untrained(monkeypatch)
    fake = rounds.train

    def train(net: Any, cases: Any, recipe: Any, **more: Any) -> Any:
        seen.append((recipe.rehearsed_rows, {case.case_id: case.dataset for case in cases}))
        return fake(net, cases, recipe, **more)

    monkeypatch.setattr(rounds, "train", train)
    return seen
