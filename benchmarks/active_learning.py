"""Which strategy needs the fewest labels: campaigns played on digital phantoms and on real hippocampi.

Each step is kept in ``--out`` and an interrupted one goes on. ``phantoms`` makes a pool in which a choice can matter,
and a model of other phantom datasets to begin with; ``hippocampus`` begins with an untrained network.

Examples::

    python benchmarks/active_learning.py phantoms --out al-phantoms
    python benchmarks/active_learning.py hippocampus --data HIPPOCAMPUS --out al-hippocampus
    python benchmarks/active_learning.py report --out al-phantoms

The pool of phantoms: of every twelve images three are abdomens by the protocol that is to be learned, three are
copies of one further abdomen with fresh noise (the same patient), three show its upper third only and three a thorax,
in which all that is wanted is absent or nearly so. hermes-c of width 8, 10 mm, one window of 32 x 32 x 48, one thread.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from hermes.checkpoint import Manifest, save_checkpoint
from hermes.config import from_conf
from hermes.device import choose_precision
from hermes.geometry import Grid
from hermes.labels.space import LabelSpace, Task
from hermes.model import NetworkConfig, UniversalNetwork, build_network
from hermes.phantoms import dataset, make_case
from hermes.records import LabelMap
from hermes.simulation import Plan, Split, areas_of, draw_curves, read_rows, simulate, split_cases
from hermes.starter import training_case
from hermes.strategies import STRATEGIES
from hermes.training.trainer import Recipe, train
from hermes.transforms.preparation import PreparationSpec
from hermes.transforms.writing import write_label_map
from hermes.types import Modality

WANTED = ("spleen", "stomach", "left kidney", "gallbladder")
OLD = ("PhantomLiverCT", "PhantomKidneyCT", "PhantomAbdomenMR")
NEW, ELSEWHERE = "PhantomAbdomenCT", "PhantomThoraxCT"
SPEC = PreparationSpec(spacing_mm=10.0)
WINDOW = (32, 32, 48)
COPIES = 3
COMPARED = tuple(name for name in STRATEGIES if name not in ("first", "last"))


def make_pool(folder: Path, images: int) -> None:
    """Write a pool of ``images`` phantoms, and their labels, where there is none yet."""
    if folder.exists():
        return
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for part in ("images", "labels"):
        (partial / part).mkdir(parents=True)
    for number in range(images):
        twelve, place = divmod(number, 12)
        kind, copy = divmod(place, COPIES)
        seed = 3000 + 100 * twelve + 10 * kind + (0 if kind == 1 else copy)
        write_phantom(partial, f"sub-{seed}_run-{copy}", kind, seed, noise=copy if kind == 1 else 0)
    partial.rename(folder)


def write_phantom(folder: Path, name: str, kind: int, seed: int, *, noise: int) -> None:
    """One image and its label: 0 and 1 an abdomen, 2 its upper third, 3 a thorax."""
    case = make_case(ELSEWHERE if kind == 3 else NEW, seed, plain_axes=True)
    image, labels = case.image, np.zeros(case.labels.shape, np.uint8)
    for value, structure in case.names.items():
        if structure in WANTED:
            labels[case.labels == value] = 1 + WANTED.index(structure)
    affine = case.affine.copy()
    if noise:
        image = image + np.random.default_rng([seed, noise]).normal(0, 8, image.shape).astype(np.float32)
    if kind == 2:  # planes run from the feet to the head
        first = 2 * len(image) // 3
        image, labels = image[first:], labels[first:]
        affine[:3, 3] += affine[:3, 2] * first
    grid = Grid(tuple(int(n) for n in image.shape), affine)
    write_label_map(
        LabelMap(np.round(image).astype(np.int16), grid, {}), folder / "images" / f"{name}.nii.gz"
    )
    write_label_map(LabelMap(labels, grid, {}), folder / "labels" / f"{name}.nii.gz")


def make_base(folder: Path, *, cases: int, steps: int) -> None:
    """A model of the other phantom datasets, where there is none yet."""
    if folder.exists():
        return
    pairs = [(name, structure) for name in OLD for structure in dataset(name).structures]
    rows = {pair: row for row, pair in enumerate(pairs)}
    tasks = tuple(Task(structure, name, dataset(name).modalities) for name, structure in pairs)
    net = fresh(len(tasks))
    data = [training_case(make_case(name, 20_000 + n), SPEC, rows) for name in OLD for n in range(cases)]
    how = replace(
        Recipe.for_cpu(), steps=steps, patch=WINDOW, precision=choose_precision("auto", torch.device("cpu"))
    )
    trained = train(net, data, how, device=torch.device("cpu"), seed=0).net
    assert isinstance(trained, UniversalNetwork)
    save_checkpoint(
        folder, trained, Manifest(trained.config, LabelSpace(tasks), SPEC, WINDOW, version="phantoms")
    )


def make_untrained(
    folder: Path, structures: Sequence[str], window: tuple[int, int, int], spacing_mm: float
) -> None:
    """A network that knows nothing yet, where there is none yet."""
    if not folder.exists():
        tasks = tuple(Task(name, "campaign", (Modality.T1,)) for name in structures)
        net, spec = fresh(len(tasks)), PreparationSpec(spacing_mm=spacing_mm)
        save_checkpoint(
            folder,
            net,
            Manifest(net.config, LabelSpace(tasks), spec, window, version="untrained", trained_rows=()),
        )


def fresh(tasks: int) -> UniversalNetwork:
    """A new network."""
    torch.manual_seed(0)
    return build_network(NetworkConfig("hermes-c", 8, tasks=tasks))


def phantoms(given: argparse.Namespace) -> None:
    """Campaigns that add four structures to a model of other phantom datasets."""
    make_pool(given.out / "data", given.images)
    make_base(given.out / "base", cases=8, steps=300)
    split = split_cases(given.out / "data", 0.25, WANTED)
    # The test images are those in which something of what is wanted is there.
    conf = {
        "structures": ",".join(WANTED),
        "modality": "CT",
        "spacing_mm": "10",
        "train_patch_voxels": "32,32,48",
    }
    play(split, conf, given, model=given.out / "base")


def hippocampus(given: argparse.Namespace) -> None:
    """Campaigns from scratch on real T1 volumes cropped to the hippocampus."""
    structures = ("anterior hippocampus", "posterior hippocampus")
    make_untrained(given.out / "base", structures, (32, 48, 32), 1.3)
    split = split_cases(given.data, 0.15, structures)
    split = replace(split, pool=split.pool[: given.images])
    conf = {
        "structures": ",".join(structures),
        "modality": "T1",
        "spacing_mm": "1.3",
        "train_patch_voxels": "32,48,32",
    }
    play(split, conf, given, model=given.out / "base")


def play(split: Split, conf: dict[str, str], given: argparse.Namespace, *, model: Path) -> None:
    """Play what is missing and draw the curves."""
    conf |= {
        "model": str(model.absolute()), "device": "cpu", "window_overlap": "0", "train_batch_size": "1",
        "train_steps_per_round": str(given.steps), "training_threads": "1",
    }  # fmt: skip
    from_conf(conf)  # a misspelled setting is told at once
    strategies = tuple(given.strategies.split(","))
    plan = Plan(strategies, given.seeds, given.budget, given.round, first_seed=given.first_seed, conf=conf)
    began, spent = time.monotonic(), time.process_time()
    print(f"{len(split.pool)} images to label, {len(split.test)} measured on", flush=True)
    simulate(
        split, plan, given.out, starter=model, progress=lambda what: say(what, began, spent, given.verbose)
    )
    print(f"{time.process_time() - spent:.0f} CPU s")
    report(given)


def say(what: str, began: float, spent: float, verbose: bool) -> None:
    """A line where a round begins."""
    if verbose or "training" in what:
        print(
            f"{time.monotonic() - began:7.0f} s, {time.process_time() - spent:6.0f} CPU s: {what}", flush=True
        )


def report(given: argparse.Namespace) -> None:
    """Areas under the curves as a table of Markdown, and the curves as a picture."""
    rows = read_rows(given.out / "results.csv")
    draw_curves(rows, given.out / "curves.png")
    print("| strategy | seeds | area | last Dice | area beyond random | seeds better | beyond foreground |")
    print("|---|---|---|---|---|---|---|")
    found = areas_of(rows)
    fair = {
        seed: area
        for one in found
        if one.strategy == "foreground"
        for seed, area in zip(one.seeds, one.areas, strict=True)
    }
    for one in found:
        beyond = [area - fair[seed] for seed, area in zip(one.seeds, one.areas, strict=True) if seed in fair]
        cells = [one.strategy, str(len(one.seeds)), spread(one.areas), spread(one.finals), spread(one.gains)]
        cells += [f"{sum(gain > 0 for gain in one.gains)} of {len(one.gains)}", spread(beyond)]
        print("| " + " | ".join(cells) + " |")


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return ""
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1) if len(values) > 1 else 0.0:.4f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Play one of the experiments, or report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    experiments = {f.__name__: f for f in (phantoms, hippocampus, report)}
    parser.add_argument("experiment", choices=list(experiments))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="of hippocampus: a folder with images/ and labels/")
    parser.add_argument(
        "--images", type=int, default=48, help="of the pool (with the test images, of phantoms)"
    )
    parser.add_argument("--strategies", default=",".join(COMPARED))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--budget", type=int, default=12)
    parser.add_argument("--round", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60, help="per round")
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    experiments[given.experiment](given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
