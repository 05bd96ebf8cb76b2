"""What the played campaigns came to: rows of a CSV file, and areas under curves."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from hermes.publish import write_atomically
from hermes.types import StructureName

BASELINE = "random"


@dataclass(frozen=True)
class Row:
    """Mean Dice of a structure over the test images that have it, after so many labels."""

    strategy: str
    seed: int
    labels: int
    structure: StructureName
    dice: float


@dataclass(frozen=True)
class Area:
    """A strategy over all its seeds.

    Attributes:
        strategy: its name.
        seeds: that all numbers are over.
        areas: per seed, the area under mean Dice against labels, divided by the range of labels: a mean Dice.
        finals: per seed, mean Dice with the whole budget.
        gains: per seed, how much larger the area is than that of ``random`` with the same seed; empty where that was
            not played.
    """

    strategy: str
    seeds: tuple[int, ...]
    areas: tuple[float, ...]
    finals: tuple[float, ...]
    gains: tuple[float, ...]


def curve(rows: Iterable[Row], strategy: str, seed: int) -> tuple[list[int], list[float]]:
    """Numbers of labels, and mean Dice over the structures with each."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if row.strategy == strategy and row.seed == seed:
            found.setdefault(row.labels, []).append(row.dice)
    return sorted(found), [float(np.mean(found[labels])) for labels in sorted(found)]


def area_under(labels: Sequence[int], dice: Sequence[float]) -> float:
    """Area by trapezoids, divided by the range; of one point its height."""
    if len(labels) < 2:
        return dice[0]
    steps = np.diff(labels)
    heights = (np.asarray(dice[1:]) + np.asarray(dice[:-1])) / 2
    return float((steps * heights).sum() / steps.sum())


def areas_of(rows: Sequence[Row]) -> list[Area]:
    """Every strategy in the order of its first row, over the seeds that it was played with."""
    played = list(dict.fromkeys((row.strategy, row.seed) for row in rows))
    curves = {(name, seed): curve(rows, name, seed) for name, seed in played}
    found = []
    for strategy in dict.fromkeys(name for name, _ in played):
        seeds = tuple(sorted(seed for name, seed in played if name == strategy))
        areas = tuple(area_under(*curves[strategy, seed]) for seed in seeds)
        finals = tuple(curves[strategy, seed][1][-1] for seed in seeds)
        gains = tuple(
            area - area_under(*curves[BASELINE, seed])
            for seed, area in zip(seeds, areas, strict=True)
            if (BASELINE, seed) in curves
        )
        found.append(Area(strategy, seeds, areas, finals, gains))
    return found


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Replace a CSV file."""
    lines = [",".join(field.name for field in fields(Row))]
    lines += [f"{r.strategy},{r.seed},{r.labels},{_quoted(r.structure)},{r.dice:.5f}" for r in rows]
    write_atomically(path, "\n".join(lines) + "\n")


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file that `write_rows` has written."""
    with path.open(encoding="utf-8", newline="") as stream:
        return [
            Row(r["strategy"], int(r["seed"]), int(r["labels"]), r["structure"], float(r["dice"]))
            for r in csv.DictReader(stream)
        ]


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if {",", '"', "\n"} & set(text) else text
