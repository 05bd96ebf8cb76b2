"""Tables and a picture of what ``continual.py`` and ``continual_real.py`` have measured, over all seeds in a file.

Example::

    python benchmarks/continual_report.py continual.jsonl --picture docs/images/continual.png > tables.md
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

KEYS = ("benchmark", "model", "dataset", "labels", "start", "draws", "mode", "round", "cases")
Key = tuple[Any, ...]
Groups = Mapping[Key, Mapping[str, Sequence[float]]]


def grouped(lines: Iterable[str]) -> Groups:
    """What was measured under the same conditions, one number per seed; of a seed run twice the last counts."""
    found: dict[Key, dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for text in lines:
        line = json.loads(text)
        key = tuple(line.get(key) if key != "cases" or line["benchmark"] != "real" else None for key in KEYS)
        found[key][line["seed"]] = line
    groups: dict[Key, dict[str, list[float]]] = {}
    for key, by_seed in found.items():
        groups[key] = defaultdict(list)
        for line in by_seed.values():
            for name, value in line.items():
                if (
                    name != "seed"
                    and isinstance(value, (int, float))
                    and (name not in KEYS or name == "cases")
                ):
                    groups[key][name].append(float(value))
    return groups


def select(groups: Groups, benchmark: str) -> dict[Key, Mapping[str, Sequence[float]]]:
    """The groups of one benchmark, by what else is in their keys."""
    return {
        tuple(k for k in key[1:] if k is not None): values
        for key, values in groups.items()
        if key[0] == benchmark
    }


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds, of the sample; 0 of a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def cell(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    if np.ptp(values) == 0 and float(values[0]).is_integer():
        return f"{values[0]:.0f}"
    return f"{np.mean(values):.3f} ± {spread(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def table(groups: Groups, benchmark: str) -> str:
    """One benchmark as Markdown: a line per condition."""
    chosen = select(groups, benchmark)
    columns = [
        name for name in dict.fromkeys(n for values in chosen.values() for n in values) if name != "cases"
    ]
    lines = [f"| {benchmark} | seeds | {' | '.join(columns)} |", f"|---|---|{'---|' * len(columns)}"]
    for key, values in chosen.items():
        named = ", ".join(str(part) for part in key)
        cells = [cell(values[name]) if values.get(name) else "" for name in columns]
        lines.append(f"| {named} | {len(next(iter(values.values())))} | {' | '.join(cells)} |")
    return "\n".join(lines)


def bars(axes: Axes, groups: Groups, benchmark: str, title: str) -> None:
    """Dice per dataset, one bar per model."""
    chosen = select(groups, benchmark)
    models = list(dict.fromkeys(key[0] for key in chosen))
    datasets = list(dict.fromkeys(key[-1] for key in chosen)) if len(next(iter(chosen))) > 1 else [""]
    for number, model in enumerate(models):
        found = [chosen[(model, d) if d else (model,)]["dice"] for d in datasets]
        places = np.arange(len(datasets)) + 0.8 * (number / len(models) - 0.4)
        axes.bar(
            places,
            [np.mean(f) for f in found],
            0.8 / len(models),
            yerr=[spread(f) for f in found],
            label=model,
        )
    axes.set_xticks(
        range(len(datasets)), [d.removeprefix("Phantom").replace(" ", "\n") for d in datasets], fontsize=7
    )
    axes.set_title(title)
    axes.legend(fontsize=7)


def lines_of(
    axes: Axes, curves: Mapping[str, Mapping[float, Sequence[float]]], title: str, below: str
) -> None:
    """Mean and spread over seeds along x."""
    for name, points in curves.items():
        xs = sorted(points)
        means = [np.mean(points[x]) for x in xs]
        axes.errorbar(xs, means, [spread(points[x]) for x in xs], marker="o", capsize=3, label=name)
    axes.set_title(title)
    axes.set_xlabel(below)
    axes.legend(fontsize=7)


def panels_of(groups: Groups) -> Iterator[Callable[[Axes], None]]:
    """What draws each panel, of those that were measured."""
    for benchmark, title in (("synergy", "One model for all, or one each"), ("real", "The same on real images"),
                             ("partial", "One of three structures labelled")):  # fmt: skip
        if select(groups, benchmark):
            yield partial(bars, groups=groups, benchmark=benchmark, title=title)
    new, old = defaultdict(dict), defaultdict(dict)  # type: ignore[var-annotated]
    for key, values in select(groups, "incremental").items():
        if len(key) == 2:
            new[key[0]][key[1]], old[key[0]][key[1]] = values["new"], values["old"]
    for curves, which in ((new, "new"), (old, "old")):
        if curves:
            title = f"Two structures added: the {which} ones"
            yield partial(lines_of, curves=curves, title=title, below="cases")
    played: dict[str, dict[float, Sequence[float]]] = defaultdict(dict)
    for (number,), values in select(groups, "rounds").items():
        for name in ("old", "new"):
            if values.get(name):
                played[f"{name} structures"][number] = values[name]
    if played:
        yield partial(lines_of, curves=played, title="Five rounds, without a gate", below="round")
    transfer: dict[str, dict[float, Sequence[float]]] = defaultdict(dict)
    for (start, cases), values in select(groups, "transfer").items():
        transfer[start][cases] = values["dice"]
    if transfer:
        yield partial(lines_of, curves=transfer, title="An unseen dataset", below="cases")


def draw(groups: Groups, path: Path) -> None:
    """A PNG with a panel for each that was measured."""
    panels = list(panels_of(groups))
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, 4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, number)
        panel(axes)
        axes.set_ylabel("Dice")
        axes.set_ylim(0, 1)
    figure.savefig(path, dpi=80)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables and write the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args(arguments)
    groups = grouped(line for file in given.files for line in file.read_text(encoding="utf-8").splitlines())
    for benchmark in dict.fromkeys(key[0] for key in groups):
        print(table(groups, benchmark) + "\n")
    if given.picture is not None:
        draw(groups, given.picture)


if __name__ == "__main__":
    main()
