"""What is played, and with which images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hermes.campaign.holdout import patient_from_name
from hermes.errors import BadRequestError
from hermes.labelled import Pair, finest_spacing, folders_of, pairs_of, value_names, values_in
from hermes.strategies import get_strategy
from hermes.strategies.base import lot
from hermes.types import StructureName

TEST_LOT = 7_919
"""Seed of the lot that decides which patients are measured on: the same for every strategy and every seed."""
LARGEST_TEST = 64


@dataclass(frozen=True)
class Plan:
    """A simulation.

    Attributes:
        strategies: that are compared.
        seeds: of each how many campaigns; seeds count from ``first_seed``.
        budget: labels that a campaign gives.
        per_round: labels between two trainings.
        test_share: part of the patients that is measured on and never labelled.
        first_seed: the seed of the first campaign.
        conf: further settings of the campaigns, as a server takes them.
        keep: whether the campaigns' directories stay when they have ended.
    """

    strategies: tuple[str, ...]
    seeds: int
    budget: int
    per_round: int
    test_share: float = 0.25
    first_seed: int = 0
    conf: Mapping[str, str] = field(default_factory=dict)
    keep: bool = False

    def check(self, pool: int) -> None:
        """Nothing, if it can be played with this many images to label.

        Raises:
            BadRequestError: an unknown or repeated strategy, or numbers that do not go together.
        """
        for name in self.strategies:
            get_strategy(name)
        if not self.strategies or len(set(self.strategies)) < len(self.strategies):
            msg = f"Expected strategies, each once, got {list(self.strategies)}."
            raise BadRequestError(msg)
        if not 1 <= self.per_round <= self.budget <= pool or self.seeds < 1:
            msg = (
                f"Expected at least 1 seed and a budget from the labels of one round ({self.per_round}) to the "
                f"{pool} images to label, got {self.seeds} seeds and {self.budget}."
            )
            raise BadRequestError(msg)

    def to_json(self) -> dict[str, Any]:
        """What makes two simulations the same, however many strategies and seeds they have."""
        return {
            "budget": self.budget,
            "per_round": self.per_round,
            "test_share": self.test_share,
            "conf": dict(sorted(self.conf.items())),
        }


@dataclass(frozen=True)
class Split:
    """The images of a dataset: those to label, and those to measure on."""

    pool: tuple[Pair, ...]
    test: tuple[Pair, ...]
    structures: tuple[StructureName, ...]
    spacing_mm: float


def split_cases(folder: Path, test_share: float, structures: Sequence[str] = ()) -> Split:
    """A fixed share of the patients of a labelled folder to measure on, the rest to label.

    Args:
        folder: with ``images/`` and ``labels/``.
        test_share: above 0 and below 1.
        structures: names of the label values in their order; what `value_names` finds where empty.

    Raises:
        BadRequestError: no pairs, or too few for two parts.
    """
    if not 0 < test_share < 1:
        msg = f"Expected a test share above 0 and below 1, got {test_share}."
        raise BadRequestError(msg)
    images, labels = folders_of(folder)
    found = pairs_of(images, labels, {})
    names = value_names(folder, values_in(pair.label for pair in found), structures)
    pairs = pairs_of(images, labels, names)
    patients = sorted({patient_from_name(p.case_id) for p in pairs}, key=lambda who: lot(TEST_LOT, who))
    count = min(LARGEST_TEST, max(1, round(test_share * len(patients))))
    if count >= len(patients):
        msg = f"Expected images of at least 2 patients, got {len(patients)}."
        raise BadRequestError(msg)
    measured = set(patients[:count])
    test = tuple(p for p in pairs if patient_from_name(p.case_id) in measured)
    pool = tuple(p for p in pairs if patient_from_name(p.case_id) not in measured)
    return Split(pool, test, tuple(names.values()), finest_spacing(pairs))
