from __future__ import annotations

import pytest
from tests.clocks import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()
