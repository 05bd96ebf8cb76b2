"""Patches per second of training, beside a plain loop that does what the paper says and nothing else.

Examples::

    python benchmarks/training_throughput.py
    python benchmarks/training_throughput.py --network hermes-r --width 32 --steps 4 --device cuda

Both train the same network on the same cached cases with the same losses, augmentation, optimiser and precision. The
plain loop loads whole volumes, warps an enlarged crop of image and masks and cuts its centre, asks for all tasks at
once, in one thread, and averages the weights parameter by parameter. Ours is :func:`hermes.training.trainer.train`.
Plain, ours, plain, ours, ...: the medians of the repeats are compared.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as nnf
from training_memory import STRUCTURES, cached_case

from hermes.cache import VolumeCache
from hermes.device import choose_device, choose_precision
from hermes.model import NetworkConfig, UniversalNetwork, build_network
from hermes.training.augment import draw, shade, warp
from hermes.training.cases import TrainingCase
from hermes.training.losses import MODALITY_LOSS_WEIGHT, modality_loss, segmentation_losses
from hermes.training.trainer import Recipe, build_optimiser, train

ENLARGED = 2.0  # sides of the crop that is warped; 1.3 for the scale times sqrt(2) for the rotation, and some


def plain_sample(
    case: TrainingCase, patch: tuple[int, int, int], generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (1, d, h, w) and masks (n, d, h, w) as METHOD section 6 describes them."""
    image = torch.from_numpy(np.asarray(case.image[:, :, :]))
    labels = torch.from_numpy(np.asarray(case.labels[:, :, :]))
    augmentation = draw(case.modality, generator)
    size = [round(ENLARGED * p) if augmentation.matrix is not None else p for p in patch]
    starts = [int(generator.integers(0, max(1, n - s + 1))) for n, s in zip(image.shape, size, strict=True)]
    box = tuple(slice(start, start + s) for start, s in zip(starts, size, strict=True))
    image, labels = image[box], labels[box]
    pads = [p for n, s in zip(image.shape[::-1], size[::-1], strict=True) for p in (0, max(0, s - n))]
    image, labels = nnf.pad(image, pads), nnf.pad(labels, pads)
    masks = torch.stack([(labels == value).float() for value in case.annotated.values()])
    if augmentation.matrix is not None:
        shape = (size[0], size[1], size[2])
        middle = (np.array(size) - 1) / 2
        warped = [warp(one, middle, augmentation.matrix, shape, nearest=False) for one in (image, *masks)]
        low = [(s - p) // 2 for s, p in zip(size, patch, strict=True)]
        centre = tuple(slice(start, start + p) for start, p in zip(low, patch, strict=True))
        image, masks = warped[0][centre], torch.stack([one[centre] for one in warped[1:]])
    return shade(image, augmentation.shading)[None], (masks > 0.5).float()


def plain_loop(
    net: UniversalNetwork, cases: Sequence[TrainingCase], recipe: Recipe, device: torch.device
) -> None:
    """Steps as in the paper, one after the other."""
    generator = np.random.default_rng(0)
    net = net.to(device).train()
    average, optimiser = copy.deepcopy(net), build_optimiser(net, recipe)
    rows = torch.arange(STRUCTURES, device=device).expand(recipe.batch_size, -1)
    bf16 = recipe.precision == "bf16"
    for step in range(recipe.steps):
        chosen = [cases[int(generator.integers(len(cases)))] for _ in range(recipe.batch_size)]
        samples = [plain_sample(case, recipe.patch, generator) for case in chosen]
        image = torch.stack([sample[0] for sample in samples]).to(device)
        masks = torch.stack([sample[1] for sample in samples]).to(device)
        modality = torch.tensor([case.modality.row for case in chosen if case.modality], device=device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            out = net(image, rows, modality)
        dice, bce = segmentation_losses(out.logits.float(), masks, torch.ones_like(masks))
        known = torch.ones_like(modality, dtype=torch.bool)
        loss = dice + bce + MODALITY_LOSS_WEIGHT * modality_loss(out.modality_logits.float(), modality, known)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), recipe.max_gradient_norm)
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate_at(step)
        optimiser.step()
        with torch.no_grad():
            decay = min(1 - 1 / (step + 1), recipe.ema_decay)
            for mean, now in zip(average.parameters(), net.parameters(), strict=True):
                mean.mul_(decay).add_(now, alpha=1 - decay)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print patches per second of both, and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="hermes-c")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--patch", type=int, default=64, help="voxels per side")
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--size", type=int, default=160, help="voxels per side of a case")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    device = choose_device(given.device)
    base = Recipe.for_gpu() if device.type == "cuda" else Recipe.for_cpu()
    recipe = replace(
        base, steps=given.steps, patch=(given.patch,) * 3, precision=choose_precision("auto", device)
    )
    torch.manual_seed(0)
    net = build_network(NetworkConfig(given.network, given.width, tasks=STRUCTURES))
    with tempfile.TemporaryDirectory() as folder:
        cache = VolumeCache(Path(folder))
        cases = [cached_case(cache, number, given.size) for number in range(given.cases)]

        def plain() -> None:
            plain_loop(copy.deepcopy(net), cases, recipe, device)

        def ours() -> float:
            return train(copy.deepcopy(net), cases, recipe, device=device, seed=0).idle_share

        idle = ours()  # also warms up
        plain()
        wall: dict[str, list[float]] = {"plain": [], "ours": []}
        cpu: dict[str, list[float]] = {"plain": [], "ours": []}
        for _ in range(given.repeats):
            for name, work in (("plain", plain), ("ours", ours)):
                started, before = time.perf_counter(), time.process_time()
                work()
                wall[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - before)
    patches = recipe.steps * recipe.batch_size
    for name in wall:
        rate, work_s = patches / np.median(wall[name]), np.median(cpu[name]) / patches
        print(f"{name}: {rate:.2f} patches per second, {work_s:.3f} CPU s each")
    print(
        f"ours: {np.median(wall['plain']) / np.median(wall['ours']):.2f} times the rate, "
        f"{np.median(cpu['plain']) / np.median(cpu['ours']):.2f} times by CPU seconds; device idle {idle:.1%}"
    )


if __name__ == "__main__":
    main()
