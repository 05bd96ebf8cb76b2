"""Simulations: every strategy with every seed, each finished campaign kept, so that an interrupted one goes on."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from hermes.errors import ConflictError
from hermes.publish import write_atomically
from hermes.simulation.campaign import Player, Progress, is_marked, mark
from hermes.simulation.plan import Plan, Split
from hermes.simulation.results import BASELINE, Row, read_rows, write_rows

logger = logging.getLogger(__name__)

RESULTS, PLAN = "results.csv", "plan.json"


def simulate(
    split: Split,
    plan: Plan,
    out: Path,
    *,
    starter: Path,
    progress: Progress,
    ended: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Play what has not been played yet; the rows of everything in ``out``, which are in ``results.csv`` there too.

    Campaigns of one seed begin alike: where the model knows none of the structures, the labels of the first round are
    drawn at random, once for all strategies, since no strategy could know better.

    Args:
        split: images to label and to measure on.
        plan: what is played.
        out: directory for results and the campaigns at work.
        starter: model to begin with, where the settings name none.
        progress: told what is being done.
        ended: told when a campaign has ended.

    Raises:
        BadRequestError: a plan that cannot be played.
        ConflictError: ``out`` holds the results of another plan.
    """
    plan.check(len(split.pool))
    out.mkdir(parents=True, exist_ok=True)
    _same_plan(out / PLAN, {**plan.to_json(), "test": [pair.case_id for pair in split.test]})
    for seed in range(plan.first_seed, plan.first_seed + plan.seeds):
        for strategy in plan.strategies:
            file = _rows_file(out, strategy, seed)
            if not file.is_file():
                rows = list(_play(split, plan, out, strategy, seed, starter, progress))
                file.parent.mkdir(exist_ok=True)
                write_rows(file, rows)
                _collect(out)
                ended()
        if not plan.keep:
            shutil.rmtree(out / "work" / f"start-{seed}", ignore_errors=True)
    return _collect(out)


def campaigns_to_play(plan: Plan, out: Path) -> int:
    """How many campaigns of a plan have not been played yet."""
    seeds = range(plan.first_seed, plan.first_seed + plan.seeds)
    return sum(not _rows_file(out, name, seed).is_file() for seed in seeds for name in plan.strategies)


def _play(
    split: Split, plan: Plan, out: Path, strategy: str, seed: int, starter: Path, progress: Progress
) -> Iterator[Row]:
    """One campaign from the common start of its seed to the end of the budget."""
    start = out / "work" / f"start-{seed}"
    labels = _start(split, plan, out, seed, starter, progress)
    for row in read_rows(start / "rows.csv"):
        yield Row(strategy, seed, row.labels, row.structure, row.dice)
    place = out / "work" / f"{strategy}-{seed}"
    shutil.rmtree(place, ignore_errors=True)  # of a simulation that was interrupted
    shutil.copytree(start, place)
    player = _player(split, plan, out, place, strategy, seed, starter)
    try:
        while labels < plan.budget:
            player.look(lambda what: progress(f"{strategy}, seed {seed}: {what}"))
            for _ in range(min(plan.per_round, plan.budget - labels)):
                player.label_next()
                labels += 1
            progress(f"{strategy}, seed {seed}: training on {labels} labels")
            player.train()
            yield from player.measure(
                split.test, labels, lambda what: progress(f"{strategy}, seed {seed}: {what}")
            )
    finally:
        player.close()
    if not plan.keep:
        shutil.rmtree(place)


def _start(split: Split, plan: Plan, out: Path, seed: int, starter: Path, progress: Progress) -> int:
    """Make the common start of a seed; how many labels it has."""
    start = out / "work" / f"start-{seed}"
    if is_marked(start):
        return int((start / "done").read_text())
    shutil.rmtree(start, ignore_errors=True)
    player = _player(split, plan, out, start, BASELINE, seed, starter)
    labels = 0
    try:
        if not player.knows_something:
            for _ in range(plan.per_round):
                player.label_next()
                labels += 1
            progress(f"start, seed {seed}: training on {labels} labels")
            player.train()
        write_rows(
            start / "rows.csv", player.measure(split.test, labels, lambda what: progress(f"start: {what}"))
        )
    finally:
        player.close()
    mark(start, str(labels))
    return labels


def _player(
    split: Split, plan: Plan, out: Path, place: Path, strategy: str, seed: int, starter: Path
) -> Player:
    conf = {"structures": ",".join(split.structures), "spacing_mm": f"{split.spacing_mm:g}", **plan.conf}
    return Player(place, split.pool, strategy, seed, conf, starter=starter, cache=out / "work" / "cache")


def _rows_file(out: Path, strategy: str, seed: int) -> Path:
    return out / "runs" / f"{strategy}-{seed}.csv"


def _collect(out: Path) -> list[Row]:
    """All rows, strategies in the order in which they were first played; written as one file."""
    files = sorted((out / "runs").glob("*.csv"), key=lambda file: (file.stat().st_mtime_ns, file.name))
    rows = [row for file in files for row in read_rows(file)]
    order = {name: place for place, name in enumerate(dict.fromkeys(row.strategy for row in rows))}
    rows.sort(key=lambda row: (order[row.strategy], row.seed, row.labels, row.structure))
    write_rows(out / RESULTS, rows)
    return rows


def _same_plan(file: Path, wanted: Mapping[str, object]) -> None:
    text = json.dumps(wanted, indent=1, sort_keys=True)
    if not file.is_file():
        write_atomically(file, text)
    elif file.read_text(encoding="utf-8") != text:
        msg = f"Expected the plan of the results in {file.parent}, got another one. Use another directory for it."
        raise ConflictError(msg)
