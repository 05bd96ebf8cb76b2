"""New structures learned by their prior rows only, beside full fine-tuning; and what a step of each costs.

Examples::

    python benchmarks/priors_only.py --cost
    python benchmarks/priors_only.py --cases 5
    python benchmarks/priors_only.py --cases 5 --mode priors --steps 80 --rate 0.1 --like spleen

The starter model, which has never seen PhantomAbdomenCT, gets two rows for structures of it; 6 unseen phantoms
measure. CPU seconds are those of all threads of this process.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from training_recipe import dice

from hermes.checkpoint import Manifest, load_checkpoint
from hermes.model import UniversalNetwork, extend_tasks
from hermes.phantoms import make_case
from hermes.starter import phantom_volume
from hermes.training.backward import backward_at_once, batch_loss
from hermes.training.cases import TrainingCase
from hermes.training.sampling import Batch, PatchSampler
from hermes.training.trainable import trainable_parts
from hermes.training.trainer import Recipe, train
from hermes.transforms.preparation import prepare
from hermes.types import CaseId

STARTER = Path(__file__).parents[1] / "apps" / "hermes" / "starter"
PATCH = (48, 48, 48)


def case(seed: int, rows: dict[str, int], manifest: Manifest) -> TrainingCase:
    """A phantom in which only the structures of ``rows`` are annotated."""
    made = make_case("PhantomAbdomenCT", seed)
    prepared = prepare(phantom_volume(made), manifest.preparation)
    labels = prepared.record.prepare_labels(made.labels).astype(np.uint8)
    values = {name: value for value, name in made.names.items()}
    annotated = {row: values[name] if (labels == values[name]).any() else None for name, row in rows.items()}
    return TrainingCase(CaseId(made.name), prepared.array, labels, annotated, made.modality)


def start(structures: Sequence[str], like: str | None) -> tuple[UniversalNetwork, Manifest, dict[str, int]]:
    """The starter with a row for each structure: a copy of that of ``like``, or a random one."""
    net, manifest = load_checkpoint(STARTER)
    source = next((r for r, t in enumerate(manifest.label_space.tasks) if t.structure == like), None)
    first = net.config.tasks
    extend_tasks(net, len(structures), [source] * len(structures), torch.Generator().manual_seed(0))
    return net, manifest, {name: first + number for number, name in enumerate(structures)}


def learn(given: argparse.Namespace, structures: Sequence[str]) -> None:
    """Train as asked and print Dice and time."""
    net, manifest, rows = start(structures, given.like)
    cases = [case(seed, rows, manifest) for seed in range(given.cases)]
    unseen = [case(seed, rows, manifest) for seed in range(100, 106)]
    recipe = replace(Recipe.for_cpu(), patch=PATCH, precision="bf16")
    recipe = replace(recipe, steps=recipe.steps_for(len(cases)))
    if given.mode == "priors":
        recipe = recipe.priors_only(tuple(rows.values()))
    recipe = replace(
        recipe, steps=given.steps or recipe.steps, learning_rate=given.rate or recipe.learning_rate
    )
    before = time.process_time()
    result = train(net, cases, recipe, device=torch.device("cpu"), seed=given.seed)
    cpu = time.process_time() - before
    assert isinstance(result.net, UniversalNetwork)
    scores = dice(result.net, unseen, PATCH, "bf16").mean(axis=0)
    text = ", ".join(f"{name} {score:.3f}" for name, score in zip(structures, scores, strict=True))
    print(
        f"{given.mode}: {text}, mean {scores.mean():.3f}; {result.trained_numbers} numbers, "
        f"{recipe.steps} steps at {recipe.learning_rate}, {cpu:.0f} CPU s"
    )


def cost(structures: Sequence[str]) -> None:
    """CPU seconds of one pass, interleaved so that a busy machine hits all alike."""
    net, manifest, rows = start(structures, None)
    net.train().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    batch = PatchSampler([case(0, rows, manifest)], patch=PATCH, batch_size=2, seed=0).batch(0)
    recipe = replace(Recipe.for_cpu(), trainable="priors", new_rows=tuple(rows.values()))

    def forward(given: Batch) -> None:
        with torch.no_grad():
            batch_loss(net, given, precision="bf16")

    def full(given: Batch) -> None:
        net.zero_grad()
        backward_at_once(net, given, precision="bf16")

    def priors(given: Batch) -> None:
        with trainable_parts(net, recipe):
            full(given)

    passes: dict[str, Callable[[Batch], None]] = {"forward": forward, "full": full, "priors": priors}
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(7):
        for name, run in passes.items():
            before = time.process_time()
            run(batch)
            seconds[name].append(time.process_time() - before)
    print(", ".join(f"{name} {np.median(found[1:]):.3f} s" for name, found in seconds.items()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--structures", default="spleen,stomach")
    parser.add_argument("--cases", type=int, default=5)
    parser.add_argument("--mode", choices=["full", "priors"], default="full")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--like", help="structure of the starter whose row the new ones begin as")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cost", action="store_true")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    structures = given.structures.split(",")
    if given.cost:
        cost(structures)
    else:
        learn(given, structures)


if __name__ == "__main__":
    main()
