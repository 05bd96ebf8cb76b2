"""Continual learning on digital phantoms: synergy, partial labels, new structures, transfer.

Each run appends lines of JSON to ``--out``; ``continual_report.py`` makes tables and a picture of them.

Examples::

    python benchmarks/continual.py synergy --seed 0
    python benchmarks/continual.py partial --seed 0
    python benchmarks/continual.py incremental --seed 0
    python benchmarks/continual.py rounds --seed 0
    python benchmarks/continual.py beside --seed 0
    python benchmarks/continual.py transfer --seed 0

hermes-c of width 8, 6 mm, patches of 32 cubed, batch 2, bf16 where the CPU multiplies it, one thread. Dice is the mean
over structures of the mean over unseen phantoms; it differs between seeds in network, sampling and training cases.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from training_recipe import dice

from hermes.device import choose_precision
from hermes.model import NetworkConfig, UniversalNetwork, build_network, extend_tasks
from hermes.phantoms import dataset, make_case
from hermes.rounds.options import RoundOptions
from hermes.rounds.recipe import KEEPING_RATE, by_rarity
from hermes.starter import phantom_volume
from hermes.training.cases import TrainingCase
from hermes.training.trainer import Recipe, train
from hermes.transforms.preparation import PreparationSpec, prepare
from hermes.types import CaseId

CPU = torch.device("cpu")
SPEC = PreparationSpec(spacing_mm=6.0)
PATCH = (32, 32, 32)
TESTS = 6
UNSEEN = 500_000  # first seed of test cases
JOINT = ("PhantomAbdomenCT", "PhantomLiverCT", "PhantomKidneyCT", "PhantomAbdomenMR")
OLD, NEW = ("PhantomLiverCT", "PhantomKidneyCT", "PhantomAbdomenMR"), "PhantomAbdomenCT"
ADDED = ("spleen", "stomach")
ROUNDS, OLD_PER_DATASET = 5, 4
DISTIL = RoundOptions().distil
THREE = ("liver", "spleen", "left kidney")
Rows = Mapping[tuple[str, str], int]


def rows_of(names: Sequence[str]) -> dict[tuple[str, str], int]:
    """(dataset, structure) -> row, for all structures of some datasets."""
    pairs = [(name, structure) for name in names for structure in dataset(name).structures]
    return {pair: row for row, pair in enumerate(pairs)}


@functools.lru_cache(maxsize=512)
def phantom(name: str, seed: int) -> tuple[np.ndarray, np.ndarray, dict[str, int], object]:
    """Prepared image and labels, values by structure, modality."""
    made = make_case(name, seed)
    prepared = prepare(phantom_volume(made), SPEC)
    labels = prepared.record.prepare_labels(made.labels).astype(np.uint8)
    return prepared.array, labels, {s: v for v, s in made.names.items()}, made.modality


def case(name: str, seed: int, rows: Rows, structures: Sequence[str] | None = None) -> TrainingCase:
    """One phantom, of which ``structures`` are annotated (None: all that have rows)."""
    image, labels, values, modality = phantom(name, seed)
    chosen = [s for s in values if (name, s) in rows and (structures is None or s in structures)]
    annotated = {rows[name, s]: values[s] if (labels == values[s]).any() else None for s in chosen}
    covered = frozenset(
        row for (protocol, _), row in rows.items() if modality in dataset(protocol).modalities
    )
    return TrainingCase(CaseId(f"{name}-{seed}"), image, labels, annotated, modality, name, None, covered)


def cases(
    name: str, rows: Rows, count: int, seed: int, structures: Sequence[str] | None = None
) -> list[TrainingCase]:
    """Training cases; other seeds have others."""
    return [case(name, 1000 * (seed + 1) + number, rows, structures) for number in range(count)]


def score(net: UniversalNetwork, name: str, rows: Rows, structures: Sequence[str] | None = None) -> float:
    """Mean Dice on unseen phantoms, over the structures that occur in them."""
    return mean(scores(net, name, rows, structures))


def mean(found: Mapping[str, float]) -> float:
    """Over the structures."""
    return float(np.mean(list(found.values())))


def scores(
    net: UniversalNetwork, name: str, rows: Rows, structures: Sequence[str] | None = None
) -> dict[str, float]:
    """Per structure: mean Dice on the unseen phantoms in which it occurs."""
    tests = [case(name, UNSEEN + number, rows, structures) for number in range(TESTS)]
    found = dice(net.eval(), tests, PATCH, precision())
    columns = sorted(tests[0].annotated)
    named = {row: s for (d, s), row in rows.items() if d == name}
    present = np.array([[t.annotated[row] is not None for row in columns] for t in tests])
    return {
        named[row]: float(found[present[:, k], k].mean())
        for k, row in enumerate(columns)
        if present[:, k].any()
    }


def precision() -> str:
    """bf16 where this CPU has it."""
    return choose_precision("auto", CPU)


def recipe(steps: int) -> Recipe:
    """The CPU recipe at this benchmark's size."""
    return replace(Recipe.for_cpu(), steps=steps, patch=PATCH, precision=precision())


def fresh(tasks: int, seed: int) -> UniversalNetwork:
    """A new network."""
    torch.manual_seed(seed)
    return build_network(NetworkConfig("hermes-c", 8, tasks=tasks))


def fit(
    net: UniversalNetwork, data: Sequence[TrainingCase], how: Recipe, seed: int, **more: object
) -> tuple[UniversalNetwork, float]:
    """The averaged network and the CPU seconds it took."""
    before = time.process_time()
    result = train(net, data, how, device=CPU, seed=seed, **more)  # type: ignore[arg-type]
    assert isinstance(result.net, UniversalNetwork)
    return result.net, time.process_time() - before


class Lines:
    """Appends results."""

    def __init__(self, path: Path, benchmark: str, seed: int) -> None:
        self._path, self._common = path, {"benchmark": benchmark, "seed": seed}

    def add(self, **facts: object) -> None:
        """One line, printed as well."""
        line = json.dumps(
            {**self._common, **{k: round(v, 4) if isinstance(v, float) else v for k, v in facts.items()}}
        )
        print(line, flush=True)
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")


def synergy(lines: Lines, given: argparse.Namespace) -> None:
    """One universal model against one model per dataset: same network, same steps in all."""
    rows = rows_of(JOINT)
    data = {name: cases(name, rows, given.cases, given.seed) for name in JOINT}
    joint = [one for some in data.values() for one in some]
    net, cpu = fit(fresh(len(rows), given.seed), joint, recipe(given.steps * len(JOINT)), given.seed)
    for name in JOINT:
        lines.add(model="universal", dataset=name, dice=score(net, name, rows), cpu_s=cpu)
    torch.save(net.state_dict(), given.out.with_suffix(f".universal-{given.seed}.pt"))
    for name in JOINT:
        net, cpu = fit(fresh(len(rows), given.seed), data[name], recipe(given.steps), given.seed)
        lines.add(model="one per dataset", dataset=name, dice=score(net, name, rows), cpu_s=cpu)


def partial(lines: Lines, given: argparse.Namespace) -> None:
    """All three structures labelled in every case, one of three per case, and what is missing taken for background.

    With three times the steps each structure has been seen as often in one of three cases as in all of them.
    """
    rows = {(NEW, structure): row for row, structure in enumerate(THREE)}
    full = cases(NEW, rows, given.cases, given.seed)
    one = [replace(c, annotated={k: c.annotated[k]}) for number, c in enumerate(full) for k in [number % 3]]
    background = [replace(c, annotated={row: c.annotated.get(row) for row in rows.values()}) for c in one]
    labelled = {"all labelled": full, "one of three": one, "missing is background": background}
    runs = {name: (data, 2 * given.steps) for name, data in labelled.items()}
    runs |= {
        f"{name}, 3x steps": (labelled[name], 6 * given.steps) for name in ("all labelled", "one of three")
    }
    for name, (data, steps) in runs.items():
        net, cpu = fit(fresh(len(rows), given.seed), data, recipe(steps), given.seed)
        found = scores(net, NEW, rows)
        lines.add(labels=name, dice=mean(found), cpu_s=cpu, steps=steps, **found)


def base(
    given: argparse.Namespace,
) -> tuple[UniversalNetwork, dict[tuple[str, str], int], list[TrainingCase]]:
    """A model of the old datasets, its rows, and its cases."""
    rows = rows_of(OLD)
    data = [one for name in OLD for one in cases(name, rows, given.cases, given.seed)]
    file = given.out.with_suffix(f".base-{given.seed}.pt")
    net = fresh(len(rows), given.seed)
    if file.exists():
        net.load_state_dict(torch.load(file, weights_only=True))
    else:
        net, _ = fit(net, data, recipe(given.steps * len(OLD)), given.seed)
        torch.save(net.state_dict(), file)
    return net, rows, data


def each_old(net: UniversalNetwork, rows: Rows) -> list[dict[str, float]]:
    """The scores of the old datasets."""
    return [scores(net, name, rows) for name in OLD]


def flat(found: Sequence[Mapping[str, float]]) -> list[float]:
    """All structures of all datasets, in their order."""
    return [dice for one in found for dice in one.values()]


def named(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each structure of each old dataset."""
    each = zip(OLD, found, strict=True)
    return {f"{structure}@{name}": round(dice, 4) for name, one in each for structure, dice in one.items()}


def mean_of_means(found: Sequence[Mapping[str, float]]) -> float:
    """The mean over datasets of the mean over structures."""
    return float(np.mean([mean(one) for one in found]))


def old_dice(net: UniversalNetwork, rows: Rows) -> float:
    """Mean over the old datasets."""
    return mean_of_means(each_old(net, rows))


MODES = (
    "full",
    "full, replay",
    "full, distillation",
    "full, replay, distillation",
    "frozen encoder",
    "priors only",
)


def incremental(lines: Lines, given: argparse.Namespace) -> None:
    """Two structures added from a few cases: Dice of new and old tasks, time, numbers trained."""
    start, rows, old_cases = base(given)
    before = old_dice(start, rows)
    lines.add(mode="before", old=before)
    first = len(rows)
    rows = with_added(start, rows, given.seed)
    new_rows = tuple(rows[NEW, name] for name in ADDED)
    for count in (1, 5, 10):
        new = cases(NEW, rows, count, given.seed, ADDED)
        for mode in MODES:
            how = recipe(150 + 25 * count)
            data, more = list(new), {}
            if mode == "priors only":
                how = how.priors_only(new_rows)
            if mode == "frozen encoder":
                how = replace(how, trainable="decoder")
            if "replay" in mode:
                data += old_cases
                how = replace(how, dataset_weights={NEW: float(len(OLD)), **dict.fromkeys(OLD, 1.0)})
            if "distillation" in mode:
                how = replace(how, distil_weight=DISTIL)
                more = {"teachers": [(copy.deepcopy(start), tuple(range(first)))]}
            net, cpu = fit(copy.deepcopy(start), data, how, given.seed, **more)
            found = scores(net, NEW, rows, ADDED)
            after = old_dice(net, rows)
            lines.add(mode=mode, cases=count, new=mean(found), old=after,
                      forgotten=before - after, cpu_s=cpu, steps=how.steps, **found)  # fmt: skip


def with_added(
    net: UniversalNetwork, rows: dict[tuple[str, str], int], seed: int
) -> dict[tuple[str, str], int]:
    """The rows with those of the added structures, which ``net`` gains: like the spleen in MR, and at random."""
    first = len(rows)
    relatives = [rows["PhantomAbdomenMR", "spleen"], None]
    extend_tasks(net, len(ADDED), relatives, torch.Generator().manual_seed(seed))
    return {**rows, **{(NEW, name): first + number for number, name in enumerate(ADDED)}}


def rounds(lines: Lines, given: argparse.Namespace) -> None:
    """Five rounds of two new cases each with what a campaign does by default, but for the gate: every round counts.

    A third of what the base was trained on is replayed, half of the draws at least are new cases. The base answers for
    the old structures, beside the labels as well: it was the last to learn them. The model of the round before answers
    for the new ones where they are not annotated. The rate is a third.
    """
    net, rows, _ = base(given)
    before = each_old(net, rows)
    lines.add(round=0, old=mean_of_means(before), each=named(before))
    learned = len(rows)
    rows = with_added(net, rows, given.seed)
    start = copy.deepcopy(net)
    old = [one for name in OLD for one in cases(name, rows, OLD_PER_DATASET, given.seed)]
    for number in range(1, ROUNDS + 1):
        data = old + cases(NEW, rows, 2 * number, given.seed, ADDED)
        counts = {name: float(sum(one.dataset == name for one in data)) for name in (*OLD, NEW)}
        counts[NEW] = max(counts[NEW], sum(counts[name] for name in OLD))
        how = replace(recipe(1), dataset_weights=counts)
        rate = how.learning_rate * KEEPING_RATE
        how = replace(how, steps=how.steps_for(len(data)), learning_rate=rate, distil_weight=DISTIL,
                      rehearsed_rows=tuple(range(learned)))  # fmt: skip
        teachers = [(start, how.rehearsed_rows)]
        if number > 1:
            teachers.append((copy.deepcopy(net), tuple(range(learned, len(rows)))))
        net, cpu = fit(net, data, how, given.seed + number, teachers=teachers)
        after, found = each_old(net, rows), scores(net, NEW, rows, ADDED)
        worst = min(a - b for a, b in zip(flat(after), flat(before), strict=True))
        lines.add(round=number, new=mean(found), old=mean_of_means(after),
                  worst_task_change=worst, steps=how.steps, cpu_s=cpu, each=named(after), **found)  # fmt: skip


def beside(lines: Lines, given: argparse.Namespace) -> None:
    """A structure that one image of many labels, beside what all of them do: images drawn alike, and by rarity."""
    old = {(NEW, structure): row for row, structure in enumerate(THREE)}
    rows = {**old, (NEW, "stomach"): len(old)}
    data = cases(NEW, old, given.cases - 1, given.seed)
    start, _ = fit(fresh(len(rows), given.seed), data, recipe(given.steps), given.seed)
    data.append(case(NEW, 1000 * (given.seed + 1) + given.cases, rows))
    how = replace(recipe(1), steps=recipe(1).steps_for(len(data)))
    lines.add(draws="before", **scores(start, NEW, old))
    for name, drawn in (("alike", data), ("by rarity", by_rarity(data, set(rows.values())))):
        net, cpu = fit(copy.deepcopy(start), drawn, how, given.seed)
        lines.add(draws=name, cpu_s=cpu, steps=how.steps, **scores(net, NEW, rows))


def transfer(lines: Lines, given: argparse.Namespace) -> None:
    """The model of the old datasets fine-tuned on an unseen one, against training from scratch."""
    start, rows, _ = base(given)
    first = len(rows)
    structures = dataset(NEW).structures
    extend_tasks(start, len(structures), [None] * len(structures), torch.Generator().manual_seed(given.seed))
    rows = {**rows, **{(NEW, name): first + number for number, name in enumerate(structures)}}
    for count in (1, 5, 20):
        new = cases(NEW, rows, count, given.seed)
        for name, net, rate in (
            ("fine-tuned", copy.deepcopy(start), 1.0),
            ("fine-tuned, a third of the rate", copy.deepcopy(start), KEEPING_RATE),
            ("from scratch", fresh(len(rows), given.seed), 1.0),
        ):
            how = recipe(150 + 25 * count)
            how = replace(how, learning_rate=rate * how.learning_rate)
            net, cpu = fit(net, new, how, given.seed)
            lines.add(start=name, cases=count, dice=score(net, NEW, rows), cpu_s=cpu)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the benchmarks for one seed."""
    benchmarks = {f.__name__: f for f in (synergy, partial, incremental, rounds, beside, transfer)}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", choices=[*benchmarks])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400, help="per dataset")
    parser.add_argument("--cases", type=int, default=12, help="per dataset")
    parser.add_argument("--out", type=Path, default=Path("continual.jsonl"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    benchmarks[given.benchmark](Lines(given.out, given.benchmark, given.seed), given)


if __name__ == "__main__":
    main()
