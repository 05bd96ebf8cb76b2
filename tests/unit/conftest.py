from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.clocks import Clock
from tests.playing import Play


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
