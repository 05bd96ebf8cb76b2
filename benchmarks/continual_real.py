"""Real images: one universal model of all datasets against one model per dataset, with the same budget.

Example::

    python benchmarks/continual_real.py --seed 0      # appends to continual.jsonl, see continual_report.py

The data are looked for in ``HERMES_TEST_DATA``, else in ``../shared/data``: 20 hippocampus labels (T1, two tasks),
left-ventricular myocardium in cine MR, and the tumour of soft-tissue sarcomas in T1 MR, PET and CT, which is one task
in three modalities. Patients are split once, whatever the seed: the tests are patients that no run has seen, in any
modality. The universal model takes as many steps as all others together; both see every dataset equally often.
hermes-c of width 8, 2 mm, patches of 32 cubed, batch 2, one thread.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from continual import Lines, fit, fresh, precision, recipe
from training_recipe import dice

from hermes.training.cases import TrainingCase
from hermes.transforms.preparation import PreparationSpec, prepare
from hermes.transforms.reading import read_label_map, read_volume
from hermes.types import CaseId, Modality

SPEC = PreparationSpec(spacing_mm=2.0)
PATCH = (32, 32, 32)
ANTERIOR, POSTERIOR, MYOCARDIUM, TUMOUR = range(4)
TASKS = 4


@dataclass(frozen=True)
class Files:
    """A case on disk: value of the label -> row."""

    image: Path
    label: Path
    rows: dict[int, int]


@dataclass(frozen=True)
class Source:
    """A dataset: files to learn from and files of other patients to test on."""

    name: str
    modality: Modality
    learning: list[Files]
    tests: list[Files]


def sources(root: Path) -> Iterator[Source]:
    """The datasets below ``root``."""
    hippocampi = [
        Files(image, image.parents[1] / "labels" / image.name, {1: ANTERIOR, 2: POSTERIOR})
        for image in sorted((root / "mr_hippocampus_msd" / "images").glob("*.nii.gz"))
    ]
    yield Source("hippocampus T1", Modality.T1, hippocampi[:20], hippocampi[-20:])
    hearts = [
        Files(image, image.with_name(image.name.replace("image", "myo")), {1: MYOCARDIUM})
        for image in sorted((root / "cine_mr_sunnybrook_lv").glob("*_image.nii.gz"))
    ]
    yield Source("myocardium cine MR", Modality.CINE, hearts[:18], hearts[18:])
    patients = sorted(p for p in (root / "ctmrpet_sts_ibsi").iterdir() if p.is_dir())
    # Every third patient tests: two of the five with CT, and no patient is on both sides in any modality.
    for name, modality in (("MR_T1", Modality.T1), ("PET", Modality.PET), ("CT", Modality.CT)):
        learning, tests = [], []
        for number, patient in enumerate(patients):
            files = Files(patient / f"{name}_image.nii.gz", patient / f"{name}_mask.nii.gz", {1: TUMOUR})
            if files.image.exists():
                (tests if number % 3 == 0 else learning).append(files)
        yield Source(f"sarcoma {modality.value}", modality, learning, tests)


def case(files: Files, source: Source) -> TrainingCase:
    """The prepared image with its labels."""
    prepared = prepare(read_volume(files.image, modality=source.modality), SPEC)
    labels = prepared.record.prepare_labels(read_label_map(files.label).array).astype(np.uint8)
    annotated = {row: value if (labels == value).any() else None for value, row in files.rows.items()}
    return TrainingCase(
        CaseId(str(files.image)), prepared.array, labels, annotated, source.modality, source.name
    )


def run(lines: Lines, given: argparse.Namespace) -> None:
    """One universal model, then one per dataset."""
    root = Path(os.environ.get("HERMES_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    known = list(sources(root))
    learning = {source.name: [case(files, source) for files in source.learning] for source in known}
    tests = {source.name: [case(files, source) for files in source.tests] for source in known}

    def scores(net: torch.nn.Module, name: str) -> dict[str, float | int]:
        found = dice(net.eval(), tests[name], PATCH, precision())  # type: ignore[arg-type]
        return {"dice": float(found.mean()), "cases": len(learning[name]), "tests": len(tests[name])}

    joint = [one for some in learning.values() for one in some]
    net, cpu = fit(fresh(TASKS, given.seed), joint, recipe(given.steps * len(known)), given.seed)
    for name in tests:
        lines.add(model="universal", dataset=name, cpu_s=cpu, **scores(net, name))
    for name, some in learning.items():
        net, cpu = fit(fresh(TASKS, given.seed), some, recipe(given.steps), given.seed)
        lines.add(model="one per dataset", dataset=name, cpu_s=cpu, **scores(net, name))


def main(arguments: Sequence[str] | None = None) -> None:
    """One seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=300, help="per dataset")
    parser.add_argument("--out", type=Path, default=Path("continual.jsonl"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    run(Lines(given.out, "real", given.seed), given)


if __name__ == "__main__":
    main()
