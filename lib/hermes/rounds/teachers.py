"""Which version answers for a structure while others are learned.

The one that learned it last from labels, not the one before: every round that only keeps a structure would drift a
little from its teacher, and after five rounds all these drifts would have added up.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from hermes.checkpoint import LearnedIn, Manifest, load_checkpoint
from hermes.errors import HermesError
from hermes.model import UniversalNetwork
from hermes.publish import Serving, VersionStore
from hermes.training.cases import TrainingCase
from hermes.training.recipe import Recipe

logger = logging.getLogger(__name__)

_MOST = 4  # networks in memory at once, the serving one among them


@dataclass(frozen=True)
class Teaching:
    """A version, its network and the rows of the label space that it answers."""

    version: str
    net: UniversalNetwork
    rows: tuple[int, ...]


def trained_rows(cases: Sequence[TrainingCase], recipe: Recipe) -> frozenset[int]:
    """Rows that labels change in a training."""
    annotated = frozenset(row for case in cases for row in case.annotated)
    return annotated & frozenset(recipe.new_rows) if recipe.trainable == "priors" else annotated


def teaching_cases(cases: Sequence[TrainingCase], recipe: Recipe) -> list[TrainingCase]:
    """The cases that have a label of a row that labels change."""
    trained = trained_rows(cases, recipe)
    return [case for case in cases if case.annotated.keys() & trained]


def taught_rows(cases: Sequence[TrainingCase], recipe: Recipe) -> frozenset[int]:
    """Rows that labels alone change in a training: those that are rehearsed are held where they were."""
    held = recipe.rehearsed_rows if recipe.distil_weight > 0 else ()
    return trained_rows(cases, recipe).difference(held)


def learned_in(serving: Serving, manifest: Manifest, taught: Collection[int]) -> tuple[LearnedIn, ...]:
    """For the manifest of what was trained from ``serving``: which version learned the rows that labels did not change."""
    kept = sorted(manifest.learned_rows.difference(taught))
    return tuple(
        LearnedIn(version, sha256, tuple(rows))
        for (version, sha256), rows in _by_version(serving, manifest, kept).items()
    )


def choose_teachers(
    versions: VersionStore,
    serving: Serving,
    manifest: Manifest,
    rows: Sequence[int],
    taught: Collection[int],
) -> list[Teaching]:
    """Who answers each of ``rows``.

    A version that is gone, damaged, or prepares images in another way has no say: the serving one answers for it. So it
    does for what ``taught`` has, and for what would take more than four networks in memory.

    Args:
        versions: of the campaign.
        serving: the version that the round begins with.
        manifest: its manifest.
        rows: learned rows of the label space that are asked.
        taught: rows that labels change in this round.

    Raises:
        CheckpointError: the serving version is damaged.
    """
    found = _by_version(serving, manifest, [row for row in rows if row not in taught])
    ours = (serving.name, manifest.sha256)
    here = {*found.pop(ours, ()), *(row for row in rows if row in taught)}
    elsewhere: list[Teaching] = []
    for (version, sha256), its in sorted(found.items(), key=lambda item: -len(item[1])):
        net = _load(versions, version, sha256, manifest, its) if len(elsewhere) < _MOST - 1 else None
        if net is None:
            here.update(its)
        else:
            elsewhere.append(Teaching(version, net, tuple(its)))
    if not here:
        return elsewhere
    return [Teaching(serving.name, load_checkpoint(serving.directory)[0], tuple(sorted(here))), *elsewhere]


def _by_version(
    serving: Serving, manifest: Manifest, rows: Sequence[int]
) -> dict[tuple[str, str], list[int]]:
    """(name, SHA-256 of the weights) of a version -> those of ``rows`` that it was the last to learn."""
    last = {row: (one.version, one.sha256) for one in manifest.learned_in for row in one.rows}
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row in rows:
        found[last.get(row, (serving.name, manifest.sha256))].append(row)
    return found


def _load(
    versions: VersionStore, version: str, sha256: str, manifest: Manifest, rows: Sequence[int]
) -> UniversalNetwork | None:
    """The network of a version; None, and a line in the log, when it cannot stand in."""
    try:
        net, its = load_checkpoint(versions.directory_of(version))
    except (HermesError, OSError) as error:
        logger.warning("The serving version answers for %s: %s", version, error)
        return None
    if its.sha256 != sha256 or its.preparation != manifest.preparation:
        logger.warning(
            "The serving version answers for %s, whose weights or preparation are others now.", version
        )
        return None
    if not its.learned_rows.issuperset(rows):
        logger.warning("The serving version answers for %s, which has not learned all of %s.", version, rows)
        return None
    return net
