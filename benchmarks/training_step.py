"""Seconds of one optimiser step on a CPU: whole batch at once against one sample per thread, in one run.

Examples::

    python benchmarks/training_step.py
    OMP_WAIT_POLICY=PASSIVE python benchmarks/training_step.py
    OMP_WAIT_POLICY=PASSIVE python benchmarks/training_step.py --beside 1   # another process keeps a core busy

The ratio is what counts; the data are phantoms.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Sequence

import numpy as np
import torch

from hermes.device import choose_precision
from hermes.model import NetworkConfig, build_network
from hermes.phantoms import make_case
from hermes.starter import phantom_space, training_case
from hermes.training.backward import Backward, SampleThreads, backward_at_once
from hermes.training.sampling import PatchSampler
from hermes.transforms.preparation import PreparationSpec


def busy() -> None:
    """Keep one core busy."""
    while True:
        pass


def median_step_s(backward: Backward, sampler: PatchSampler, tasks: int, steps: int) -> float:
    """Median wall seconds of forward and backward."""
    torch.manual_seed(0)
    net = (
        build_network(NetworkConfig("hermes-c", 8, tasks=tasks))
        .train()
        .to(memory_format=torch.channels_last_3d)
    )
    precision = choose_precision("auto", torch.device("cpu"))
    seconds = []
    for step in range(steps):
        batch = sampler.batch(step)
        net.zero_grad(set_to_none=True)
        started = time.perf_counter()
        backward(net, batch, precision=precision)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[1:]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row per patch size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--beside", type=int, default=0, help="processes that keep a core busy meanwhile")
    given = parser.parse_args(arguments)
    others = [multiprocessing.Process(target=busy, daemon=True) for _ in range(given.beside)]
    for other in others:
        other.start()
    torch.set_num_threads(given.threads)
    space = phantom_space()
    spec = PreparationSpec(spacing_mm=4.0)
    cases = [training_case(make_case("PhantomLiverCT", 20_000 + i), spec, space.rows) for i in range(3)]
    print(
        f"threads {given.threads}, beside {given.beside}, OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY')}"
    )
    for patch in ((32, 48, 32), (48, 48, 48), (64, 64, 64)):
        sampler = PatchSampler(cases, patch=patch, batch_size=2, seed=0)
        whole = median_step_s(backward_at_once, sampler, len(space.space), given.steps)
        split = median_step_s(SampleThreads(given.threads), sampler, len(space.space), given.steps)
        torch.set_num_threads(given.threads)
        print(
            f"{patch}: at once {whole:.3f} s, one sample per thread {split:.3f} s, ratio {whole / split:.2f}"
        )
    for other in others:
        other.terminate()


if __name__ == "__main__":
    main()
