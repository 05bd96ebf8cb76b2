"""Dice and time of the training recipe: from scratch, or as a campaign whose rounds continue each other.

Examples::

    python benchmarks/training_recipe.py --data hippocampus --rounds 5,10,15,20 --threads 2
    python benchmarks/training_recipe.py --data hippocampus --rounds 20 --set optimiser="'lamb'"
    python benchmarks/training_recipe.py --data phantoms --rounds 16 --threads 2

The real data are looked for in ``HERMES_TEST_DATA``, else in ``../shared/data``. Held out are the last cases
by sorted name. CPU seconds are those of all threads of this process: they compare on a busy machine, wall
seconds do not.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from rich.progress import track

from hermes.geometry import Grid
from hermes.inference.windows import Layout, cut
from hermes.model import NetworkConfig, UniversalNetwork, build_network
from hermes.phantoms import make_case
from hermes.records import Volume
from hermes.training.augment import AugmentationRanges
from hermes.training.cases import TrainingCase
from hermes.training.trainer import Recipe, StepReport, fit_patch, train
from hermes.transforms.preparation import PreparationSpec, prepare
from hermes.types import CaseId, Modality

PHANTOM_STRUCTURES = ("liver", "spleen", "left kidney", "right kidney", "stomach")


@dataclass(frozen=True)
class Data:
    """Cases to learn from in the order in which they are labelled, and held-out ones."""

    learning: list[TrainingCase]
    held_out: list[TrainingCase]
    structures: tuple[str, ...]


def hippocampus(held_out: int) -> Data:
    """Two structures in 91 T1 volumes of about 36 x 50 x 36 voxels at 1 mm."""
    root = Path(os.environ.get("HERMES_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    names = sorted(p.name for p in (root / "mr_hippocampus_msd" / "images").glob("*.nii.gz"))
    cases = []
    for name in names:
        image, labels = (
            # RAS x, y, z -> z, y, x with y to posterior and x to left
            np.asarray(nib.as_closest_canonical(nib.load(root / "mr_hippocampus_msd" / kind / name)).dataobj)
            .transpose(2, 1, 0)[:, ::-1, ::-1]
            .copy()
            for kind in ("images", "labels")
        )
        image = image.astype(np.float32).clip(*np.percentile(image, [2, 98]))
        image = ((image - image.mean()) / image.std()).astype(np.float32)
        cases.append(TrainingCase(CaseId(name), image, labels.astype(np.uint8), {0: 1, 1: 2}, Modality.T1))
    return Data(cases[:-held_out], cases[-held_out:], ("anterior", "posterior"))


def phantoms(held_out: int) -> Data:
    """Five organs in digital abdominal CT at 3 mm; 20 cases to learn from."""
    cases = [_phantom(seed) for seed in track(range(20 + held_out), description="phantoms", disable=None)]
    return Data(cases[:20], cases[20:], PHANTOM_STRUCTURES)


def _phantom(seed: int) -> TrainingCase:
    case = make_case("PhantomAbdomenCT", seed)
    volume = Volume(case.image, Grid(case.image.shape, case.affine), case.modality, "caller", 1.0)
    prepared = prepare(volume, PreparationSpec(spacing_mm=3.0))
    labels = prepared.record.prepare_labels(case.labels)
    values = {name: value for value, name in case.names.items()}
    annotated = {row: values[name] for row, name in enumerate(PHANTOM_STRUCTURES)}
    return TrainingCase(CaseId(case.name), prepared.array, labels, annotated, case.modality)


def dice(
    net: UniversalNetwork, cases: Sequence[TrainingCase], window: tuple[int, int, int], precision: str
) -> np.ndarray:
    """(cases, tasks) Dice by sliding ``window`` with half overlap, uniform weights, threshold 0.5."""
    return np.array([_dice(net, case, window, precision) for case in cases])


@torch.inference_mode()
def _dice(
    net: UniversalNetwork, case: TrainingCase, window: tuple[int, int, int], precision: str
) -> list[float]:
    image = np.asarray(case.image)
    d, h, w = image.shape
    layout = Layout.over((d, h, w), window)
    rows = torch.tensor([sorted(case.annotated)])
    total = np.zeros((rows.shape[1], *layout.padded), np.float32)
    count = np.zeros(layout.padded, np.float32)
    modality = torch.tensor([case.modality.row if case.modality else 0])
    for z in layout.starts[0]:
        for y in layout.starts[1]:
            for x in layout.starts[2]:
                part = torch.from_numpy(cut(image, (z, y, x), layout.window))[None, None]
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                    logits = net(part, rows, modality).logits[0]
                box = tuple(slice(s, s + n) for s, n in zip((z, y, x), layout.window, strict=True))
                total[(slice(None), *box)] += logits.float().sigmoid().numpy()
                count[box] += 1
    found = (total / np.maximum(count, 1) > 0.5)[:, :d, :h, :w]
    truth = [np.asarray(case.labels) == case.annotated[int(row)] for row in rows[0]]
    return [2.0 * (f & t).sum() / max(1, f.sum() + t.sum()) for f, t in zip(found, truth, strict=True)]


def parse_overrides(pairs: Sequence[str]) -> tuple[dict[str, object], dict[str, float]]:
    """``FIELD=VALUE`` for the recipe and ``augmentation.FIELD=VALUE`` for its ranges, as Python literals."""
    recipe: dict[str, object] = {}
    ranges: dict[str, float] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name.startswith("augmentation."):
            ranges[name.split(".", 1)[1]] = float(value)
        else:
            recipe[name] = ast.literal_eval(value)
    return recipe, ranges


def main() -> None:
    """Train as asked and write one line per round."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=["hippocampus", "phantoms"], default="hippocampus")
    parser.add_argument(
        "--rounds", default="5,10,15,20", help="labels of each round; one number: from scratch"
    )
    parser.add_argument("--held-out", type=int, default=25)
    parser.add_argument("--network", default="hermes-c")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--evaluate-every", type=int, default=0, help="steps; 0: only after each round")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change the recipe")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """The rounds, one after the other."""
    data = (
        hippocampus(arguments.held_out) if arguments.data == "hippocampus" else phantoms(arguments.held_out)
    )
    overrides, ranges = parse_overrides(arguments.set)
    net = build_network(NetworkConfig(arguments.network, arguments.width, len(data.structures)))
    say(f"{' '.join(sys.argv[1:])} | {sum(p.numel() for p in net.parameters())} parameters")
    for number, count in enumerate(int(n) for n in arguments.rounds.split(",")):
        cases = data.learning[:count]
        patch = fit_patch([c.image.shape for c in cases], largest=64)
        recipe = replace(Recipe.for_cpu(), patch=patch, precision=arguments.precision)
        recipe = replace(recipe, steps=recipe.steps_for(count))
        if ranges:
            recipe = replace(recipe, augmentation=replace(AugmentationRanges(), **ranges))
        recipe = replace(recipe, **overrides)  # type: ignore[arg-type]
        window = recipe.patch

        def on_step(report: StepReport) -> None:
            if arguments.evaluate_every and report.step % arguments.evaluate_every == 0:
                say(f"  step {report.step}: loss {report.loss:.3f}, {report.seconds:.0f} s")

        before = time.process_time()
        result = train(
            net, cases, recipe, device=torch.device("cpu"), seed=arguments.seed + number, on_step=on_step
        )
        cpu = time.process_time() - before
        net = result.net  # type: ignore[assignment]
        scores = dice(net, data.held_out, window, arguments.precision).mean(axis=0)
        net.requires_grad_(True)
        text = ", ".join(f"{n} {s:.3f}" for n, s in zip(data.structures, scores, strict=True))
        say(
            f"{count} labels: {text}, mean {scores.mean():.3f}; loss {np.mean(result.losses[-50:]):.3f}; "
            f"{recipe.steps} steps, {cpu:.0f} CPU s ({cpu / recipe.steps:.3f} each), {result.seconds:.0f} s"
        )


def say(text: str) -> None:
    """Write a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
