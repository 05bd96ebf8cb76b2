from __future__ import annotations

import numpy as np
import pytest

from hermes.scoring.agreement import dice


def test_dice_is_arithmetic() -> None:
    ours = np.zeros((2, 2, 2), bool)
    theirs = np.zeros((2, 2, 2), bool)
    assert dice(ours, theirs) == 1.0
    ours.flat[:3] = True
    assert dice(ours, theirs) == 0.0
    theirs.flat[1:3] = True
    assert dice(ours, theirs) == pytest.approx(2 * 2 / 5)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="one shape"):
        dice(np.zeros((2, 2, 2), bool), np.zeros((2, 2, 3), bool))
