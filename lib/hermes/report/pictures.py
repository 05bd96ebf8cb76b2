"""Curves and bars of a report, as SVG that stands in a page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hermes.report.summary import Coverage, VersionRow

WIDTH_IN, HEIGHT_IN = 7.5, 2.6
MOST_BARS = 40
"""Structures in the picture; the table has all."""
LONGEST_NAME = 32
_BLUE, _GREY, _GREEN, _RED = "#2a6f97", "#9aa7b4", "#2b7a4b", "#b3541e"


def holdout_curve(versions: Sequence[VersionRow]) -> str:
    """Mean Dice on the hold-out after each round; refused versions are marked. "" where nothing was measured."""
    measured = [(place, v) for place, v in enumerate(versions, start=1) if v.mean is not None]
    if not measured:
        return ""
    figure, axes = _figure()
    kept = [(p, v.mean) for p, v in measured if v.state != "refused"]
    refused = [(p, v.mean) for p, v in measured if v.state == "refused"]
    axes.plot(*zip(*kept, strict=True) if kept else ([], []), "o-", color=_BLUE, label="published")
    if refused:
        axes.plot(*zip(*refused, strict=True), "x", color=_RED, label="refused")
    axes.set_xlabel("round")
    axes.set_ylabel("mean Dice, hold-out")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return _svg(figure)


def coverage(rows: Sequence[Coverage]) -> str:
    """In how many images each structure is drawn, or absent, with quotas; "" where nothing is annotated."""
    shown = sorted((r for r in rows if r.drawn + r.absent or r.quota), key=lambda r: -r.drawn)[:MOST_BARS]
    if not shown:
        return ""
    figure, axes = _figure(0.6 + 0.24 * len(shown))
    places = range(len(shown))
    axes.barh(places, [r.drawn for r in shown], color=_BLUE, label="drawn")
    axes.barh(places, [r.absent for r in shown], left=[r.drawn for r in shown], color=_GREY, label="absent")
    for place, row in enumerate(shown):
        if row.quota is not None:
            axes.plot([row.quota, row.quota], [place - 0.4, place + 0.4], color=_RED)
    axes.set_yticks(list(places), [_plain(r.structure) for r in shown])
    axes.invert_yaxis()
    axes.set_xlabel("images")
    axes.legend(frameon=False)
    return _svg(figure)


def labels_over_time(times: Sequence[float]) -> str:
    """How many label versions there were at each time; "" for none."""
    if not times:
        return ""
    figure, axes = _figure()
    days = [(at - times[0]) / 86_400 for at in times]
    axes.step(days, list(range(1, len(times) + 1)), where="post", color=_BLUE)
    axes.set_xlabel("days since the first label")
    axes.set_ylabel("label versions")
    return _svg(figure)


def offered(per_label: Sequence[tuple[float, float]]) -> str:
    """Dice between offer and submission, one point per submission; "" for none."""
    if not per_label:
        return ""
    figure, axes = _figure()
    axes.plot(range(1, len(per_label) + 1), [dice for _, dice in per_label], ".", color=_GREEN)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("submission")
    axes.set_ylabel("Dice with the offer")
    return _svg(figure)


def _figure(height_in: float = HEIGHT_IN) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="tight")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    """The figure as an SVG element, the same for the same figure."""
    text = io.StringIO()
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "hermes"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    found = text.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", found[found.index("<svg") :], flags=re.DOTALL)


def _plain(name: str) -> str:
    """A name as a tick: short, and without what matplotlib takes for formulas."""
    short = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
    return short.replace("\\", "\\\\").replace("$", r"\$")
