"""What ``hermes train`` shows: what it will see, and how well it learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from rich.table import Table
from rich.text import Text

from hermes.training.preflight import PreflightReport


def preflight_table(report: PreflightReport) -> Table:
    """Voxels and cases per task; what is drawn nowhere is red."""
    table = Table("task", "cases", "absent in", "voxels at the model's spacing", title="Pre-flight")
    for column in table.columns[1:]:
        column.justify = "right"
    for count in report.structures:
        style = "red" if count.cases == 0 else None
        numbers = (count.cases, count.absent, count.voxels)
        table.add_row(Text(count.name), *(f"{n:,}" for n in numbers), style=style)
    return table


def preflight_lines(report: PreflightReport, holdout: PreflightReport) -> str:
    """How many cases there are to train and to measure on, and each that is left out with its reason."""
    left_out = [f"left out: {one.case_id}: {one.reason}" for one in report.skipped]
    left_out += [f"left out of the hold-out: {one.case_id}: {one.reason}" for one in holdout.skipped]
    first = f"{len(report.used)} cases to train on, {len(holdout.used)} held out, {len(left_out)} left out"
    return "\n".join([first, *left_out])


def metrics_table(scores: Mapping[str, Sequence[float]]) -> Table:
    """Mean and lowest Dice per task on the held-out cases."""
    table = Table("task", "cases", "mean Dice", "lowest", title="Held-out cases")
    for name, found in scores.items():
        table.add_row(Text(name), str(len(found)), f"{fmean(found):.3f}", f"{min(found):.3f}")
    return table
