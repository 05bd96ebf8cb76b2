"""``make starter``: train the starter model on digital phantoms and store it.

The result knows phantoms, not patients. It exists so that the first inference of a fresh installation shows
organs, and as the beginning of a campaign's fine-tuning.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress, track

from hermes.checkpoint import Manifest, code_version, save_checkpoint
from hermes.device import choose_device, choose_precision
from hermes.geometry import Grid
from hermes.inference.predictor import Predictor
from hermes.labels.space import LabelSpace, Task
from hermes.model import DEFAULT_WIDTHS, NetworkConfig, UniversalNetwork, build_network
from hermes.phantoms import PhantomCase, datasets, make_case
from hermes.records import Volume
from hermes.scoring.agreement import dice
from hermes.training.cases import TrainingCase
from hermes.training.trainer import Recipe, StepReport, train
from hermes.transforms.preparation import PreparationSpec, prepare
from hermes.types import Modality

SPACING_MM = 4.0  # most phantoms are 4 to 5 mm; finer costs time on a CPU and shows nothing more
PATCH = (48, 48, 48)  # 19 cm: a whole organ with its neighbours
TRAINING_SEEDS = 10_000  # first seed of the training cases; the sample data use seeds below 1,000
MEASURING_SEEDS = 90_000
HELD_BACK = (
    "PhantomAbdomenCT"  # the protocol of the sample campaign: what the demo learns, the starter must not know
)
# Bodies of many organs are the hardest and the most useful; a heart or a brain is learned from fewer patches.
DATASET_WEIGHTS = {
    "PhantomLiverCT": 1.5,
    "PhantomKidneyCT": 1.5,
    "PhantomAbdomenMR": 1.5,
    "PhantomCineMR": 0.5,
}
NOTE = (
    "Trained on digital phantoms that this project generates itself, and on nothing else. It is a demonstration and "
    "a start for fine-tuning. It has never seen a patient: never use its answers for one."
)


@dataclass(frozen=True)
class PhantomSpace:
    """The starter's label space and the row of each drawing of each phantom dataset."""

    space: LabelSpace
    rows: dict[tuple[str, str], int]


def phantom_space() -> PhantomSpace:
    """One task for each structure of each phantom dataset that the starter is trained on."""
    tasks: list[Task] = []
    rows: dict[tuple[str, str], int] = {}
    for dataset in datasets():
        if dataset.name == HELD_BACK:
            continue
        for structure in dataset.structures:
            rows[dataset.name, structure] = len(tasks)
            tasks.append(Task(structure, dataset.name, dataset.modalities))
    return PhantomSpace(LabelSpace(tuple(tasks)), rows)


def phantom_volume(case: PhantomCase) -> Volume:
    """The phantom as an image of known modality."""
    depth, height, width = case.image.shape
    return Volume(case.image, Grid((depth, height, width), case.affine), case.modality, "caller", 1.0)


def training_case(case: PhantomCase, spec: PreparationSpec, rows: dict[tuple[str, str], int]) -> TrainingCase:
    """The phantom prepared for training: every structure of its dataset is annotated, drawn or absent."""
    prepared = prepare(phantom_volume(case), spec)
    labels = prepared.record.prepare_labels(case.labels).astype(np.uint8)
    present = set(np.unique(labels).tolist())
    annotated = {
        rows[case.dataset, name]: value if value in present else None for value, name in case.names.items()
    }
    return TrainingCase(
        case.name, prepared.array.astype(np.float16), labels, annotated, case.modality, case.dataset
    )


def measure(predictor: Predictor, space: PhantomSpace, *, cases: int) -> dict[str, float]:
    """Mean Dice per task over phantoms that were not trained on."""
    found: dict[str, list[float]] = {}
    for dataset in [d for d in datasets() if d.name != HELD_BACK]:
        for number in range(cases):
            case = make_case(dataset.name, MEASURING_SEEDS + number)
            rows = {name: space.rows[dataset.name, name] for name in case.names.values()}
            prediction = predictor.predict(phantom_volume(case), rows)
            values = {r.structure: r.value for r in prediction.structures}
            for value, name in case.names.items():
                truth = case.labels == value
                if truth.any():
                    score = dice(prediction.label_map.array == values[name], truth)
                    found.setdefault(f"{name}@{dataset.name}", []).append(score)
    return {task: round(float(np.mean(scores)), 4) for task, scores in found.items()}


def make_starter(out: Path, *, steps: int, cases: int, seed: int) -> Manifest:
    """Generate phantoms, train, measure, and write the model directory ``out``."""
    space = phantom_space()
    spec = PreparationSpec(spacing_mm=SPACING_MM)
    jobs = [(d.name, TRAINING_SEEDS + i) for d in datasets() if d.name != HELD_BACK for i in range(cases)]
    training = [training_case(make_case(name, s), spec, space.rows) for name, s in track(jobs, "phantoms")]
    torch.manual_seed(seed)
    config = NetworkConfig(
        "hermes-c", DEFAULT_WIDTHS["hermes-c"], tasks=len(space.space), modalities=len(Modality)
    )
    net = build_network(config)
    device = choose_device("auto")
    recipe = replace(
        Recipe.for_cpu(),
        steps=steps,
        batch_size=2,
        patch=PATCH,
        precision=choose_precision("auto", device),
        dataset_weights=DATASET_WEIGHTS,
    )
    with Progress() as bar:
        task = bar.add_task("training", total=steps)

        def on_step(report: StepReport) -> None:
            bar.update(task, completed=report.step, description=f"training, loss {report.loss:.3f}")

        result = train(net, training, recipe, device=device, seed=seed, on_step=on_step)
    return _store(out, result.net, space, spec, recipe, seed)


def _store(
    out: Path, net: torch.nn.Module, space: PhantomSpace, spec: PreparationSpec, recipe: Recipe, seed: int
) -> Manifest:
    assert isinstance(net, UniversalNetwork)  # what went in comes out
    manifest = Manifest(
        network=net.config,
        label_space=space.space,
        preparation=spec,
        window=recipe.patch,
        version="starter",
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seed=seed,
        code_version=code_version(),
        settings={"steps": recipe.steps, "batch_size": recipe.batch_size, "patch": list(recipe.patch)},
        note=NOTE,
        dtype="float16",
    )
    predictor = Predictor(net.half().float(), manifest)  # as it will be read back
    manifest = replace(manifest, metrics={"dice_on_unseen_phantoms": measure(predictor, space, cases=4)})
    return save_checkpoint(out, net, manifest)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the starter model."""
    parser = argparse.ArgumentParser(prog="hermes.starter", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="model directory to write; must not exist")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--cases", type=int, default=24, help="phantoms per dataset")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    manifest = make_starter(given.out, steps=given.steps, cases=given.cases, seed=given.seed)
    for task, score in manifest.metrics["dice_on_unseen_phantoms"].items():
        sys.stdout.write(f"{score:.3f}  {task}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
