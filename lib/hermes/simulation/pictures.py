"""Curves of played campaigns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hermes.simulation.results import Row, areas_of, curve


def draw_curves(rows: Sequence[Row], path: Path, *, title: str = "") -> None:
    """Mean Dice against labels, a line per strategy with the spread of its seeds, and the areas under them, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = areas_of(rows)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 5), width_ratios=(3, 2), layout="constrained")
    colours = pyplot.get_cmap("tab10")(np.arange(len(found)) % 10)
    for area, colour in zip(found, colours, strict=True):
        curves = [curve(rows, area.strategy, seed) for seed in area.seeds]
        labels = curves[0][0]
        values = np.array([dice for where, dice in curves if where == labels])
        middle = values.mean(axis=0)
        left.plot(labels, middle, marker="o", markersize=3, color=colour, label=area.strategy)
        left.fill_between(labels, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.10)
    left.set(xlabel="submitted labels", ylabel="mean Dice on the test images")
    left.grid(alpha=0.3)
    left.legend(fontsize=8)
    _draw_areas(right, found, colours)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def _draw_areas(axis: Any, found: Sequence[Any], colours: Any) -> None:
    """A bar per strategy: mean area, with a dot per seed."""
    for place, (area, colour) in enumerate(zip(found, colours, strict=True)):
        axis.barh(place, np.mean(area.areas), color=colour, alpha=0.5)
        axis.plot(area.areas, [place] * len(area.areas), "k.", markersize=4)
    lowest = min(value for area in found for value in area.areas)
    highest = max(value for area in found for value in area.areas)
    margin = 0.1 * (highest - lowest) + 1e-3
    axis.set(
        xlabel="area under the curve (bar: mean, dots: seeds)",
        yticks=range(len(found)),
        yticklabels=[area.strategy for area in found],
        xlim=(max(0.0, lowest - 3 * margin), highest + margin),
    )
    axis.invert_yaxis()
    axis.grid(alpha=0.3, axis="x")
