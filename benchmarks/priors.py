"""Do the learned priors of related tasks and modalities resemble each other? Cosine similarities, picture and test.

Examples::

    python benchmarks/priors.py                                  # the starter model
    python benchmarks/priors.py --model DIR --out priors.png

Two kinds of related tasks are tested: tasks of one organ in different datasets (or its left and right one), and tasks of
one dataset. The p value is the share of 10,000 random renamings of the rows whose mean similarity over related pairs
is at least the one found.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hermes.checkpoint import load_checkpoint
from hermes.labels.space import Task
from hermes.model.priors import PriorTables
from hermes.types import Modality

RENAMINGS = 10_000
SIDES = ("left ", "right ")


def cosines(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n, n) cosine similarities of ``(n, ...)`` vectors."""
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    similarities: NDArray[np.float64] = flat @ flat.T
    return similarities


def organ(task: Task) -> str:
    """The structure without its side."""
    for side in SIDES:
        if task.structure.startswith(side):
            return task.structure.removeprefix(side)
    return task.structure


def compare(similarities: NDArray[np.float64], tasks: Sequence[Task], kind: Callable[[Task], str]) -> str:
    """Mean over related pairs, over the others, and how often chance does as well."""
    pairs = list(combinations(range(len(tasks)), 2))
    related = [pair for pair in pairs if kind(tasks[pair[0]]) == kind(tasks[pair[1]])]
    others = [pair for pair in pairs if pair not in related]
    first, second = np.array(related).T
    found = similarities[first, second].mean()
    rng = np.random.default_rng(0)
    renamings = (rng.permutation(len(tasks)) for _ in range(RENAMINGS))
    chance = np.array([similarities[new[first], new[second]].mean() for new in renamings])
    rest = similarities[tuple(np.array(others).T)]
    return (
        f"{len(related)} pairs {found:+.3f}, {len(others)} others {rest.mean():+.3f} ± {rest.std():.3f}, "
        f"p {(chance >= found).mean():.4f}"
    )


def draw(tables: Sequence[tuple[str, NDArray[np.float64], Sequence[str]]], path: Path) -> None:
    """A PNG with one matrix per table, names at its sides."""
    figure = Figure(figsize=(15, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(tables), width_ratios=[max(6, len(names)) for _, _, names in tables])
    for axis, (title, values, names) in zip(axes, tables, strict=True):
        shown = np.where(np.eye(len(values), dtype=bool), np.nan, values)
        picture = axis.imshow(shown, cmap="RdBu_r", vmin=-0.5, vmax=0.5)
        axis.set_title(title)
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axis.set_yticks(range(len(names)), names, fontsize=7)
    figure.colorbar(picture, ax=axes, label="cosine similarity")
    figure.savefig(path, dpi=80)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tests and write the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path(__file__).parents[1] / "apps/hermes/starter")
    parser.add_argument("--out", type=Path, default=Path("priors.png"))
    given = parser.parse_args(arguments)
    net, manifest = load_checkpoint(given.model)
    tasks = manifest.label_space.tasks
    levels = [module for module in net.modules() if isinstance(module, PriorTables)]
    similar = cosines(np.concatenate([level.task_prior.detach().numpy() for level in levels], axis=1))
    modalities = cosines(np.concatenate([level.modality_prior.detach().numpy() for level in levels], axis=2))
    print(f"tasks of one organ: {compare(similar, tasks, organ)}")
    print(f"tasks of one dataset: {compare(similar, tasks, lambda task: task.protocol)}")
    names = [modality.value for modality in Modality]
    for i, j in combinations(range(len(names)), 2):
        print(f"{names[i]} and {names[j]}: {modalities[i, j]:+.3f}")
    labels = [f"{task.structure} ({task.protocol.removeprefix('Phantom')})" for task in tasks]
    draw([("task priors", similar, labels), ("modality priors", modalities, names)], given.out)


if __name__ == "__main__":
    main()
