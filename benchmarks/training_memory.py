"""Peak memory of training on 20 and on 200 cached cases: it must not grow with their number.

Examples::

    python benchmarks/training_memory.py
    python benchmarks/training_memory.py --cases 20,200 --size 160 --steps 6

Each number of cases runs in a process of its own, on a cache that was filled before by another one. The cases are
noise with a few boxes: what is measured is memory, not what is learned. Baseline is a process that has imported
everything and trained on one case.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from hermes.cache import VolumeCache
from hermes.geometry import Grid
from hermes.model import NetworkConfig, build_network
from hermes.records import Volume
from hermes.training.cases import TrainingCase
from hermes.training.trainer import Recipe, train
from hermes.transforms.preparation import PreparationSpec
from hermes.types import CaseId, Modality

STRUCTURES = 10
SPEC = PreparationSpec(spacing_mm=1.5, crop_body=False)


def cached_case(cache: VolumeCache, number: int, size: int) -> TrainingCase:
    """A case whose arrays are on disk."""
    rng = np.random.default_rng(number)
    image = rng.normal(size=(size, size, size)).astype(np.float32)
    labels = np.zeros(image.shape, np.uint8)
    for value in range(1, STRUCTURES + 1):
        z, y, x = rng.integers(0, size - size // 4, 3)
        labels[z : z + size // 4, y : y + size // 4, x : x + size // 4] = value
    affine = np.diag([1.5, 1.5, 1.5, 1.0])
    volume = Volume(image, Grid(image.shape, affine), Modality.CT, "caller", 1.0)
    prepared = cache.prepared(volume, SPEC, lazy=True)
    stored = cache.prepared_labels(labels, prepared.record, lazy=True)
    rows = {row: row + 1 for row in range(STRUCTURES)}
    return TrainingCase(CaseId(str(number)), prepared.array, stored, rows, Modality.CT)


def child(folder: Path, cases: int, size: int, steps: int) -> float:
    """Peak resident memory in MiB of a training on so many cases of the cache; 0 steps: fill it."""
    torch.set_num_threads(1)
    cache = VolumeCache(folder)
    found = [cached_case(cache, number, size) for number in range(cases)]
    if steps:
        recipe = replace(Recipe.for_cpu(), steps=steps, patch=(64, 64, 64), precision="fp32")
        net = build_network(NetworkConfig("hermes-c", 8, tasks=STRUCTURES))
        train(net, found, recipe, device=torch.device("cpu"), seed=0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line per number of cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default="1,20,200")
    parser.add_argument("--size", type=int, default=128, help="voxels per side of a case")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "CASES"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        print(child(Path(given.child[0]), int(given.child[1]), given.size, given.steps))
        return
    counts = [int(count) for count in given.cases.split(",")]
    with tempfile.TemporaryDirectory() as folder:

        def measure(count: int, steps: int) -> float:
            command = [sys.executable, __file__, "--child", folder, str(count), "--size", str(given.size)]
            ran = subprocess.run(
                [*command, "--steps", str(steps)], check=True, capture_output=True, text=True
            )
            return float(ran.stdout)

        measure(max(counts), 0)
        for count in counts:
            print(
                f"{count} cases of {given.size} cubed, {given.steps} steps: peak {measure(count, given.steps):.0f} MiB"
            )


if __name__ == "__main__":
    main()
