"""What scores cost: an inference with findings beside one without, and beside one that measures nothing at all.

Examples::

    python benchmarks/scoring.py time                       # hermes-c of width 8, 71 tasks
    python benchmarks/scoring.py time --network hermes-r --width 32 --size 128 --window 96
    python benchmarks/scoring.py memory --tasks 71          # peak memory with and without, each in a process of its own

The variants take turns in one process, and the least time of each counts, so that other work disturbs little.
"Nothing at all" leaves out the entropies that every answer carries too.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from unittest import mock

import numpy as np
import torch
from inference import noise_volume, untrained

from hermes.device import choose_precision
from hermes.inference import reduction
from hermes.inference.predictor import Predictor


def nothing_measured() -> mock._patch_dict:  # type: ignore[type-arg]
    """The reduction without its entropies."""

    def no_entropies(some: torch.Tensor, **_: bool) -> tuple[np.ndarray, np.ndarray, None]:
        return np.zeros(len(some)), np.zeros(len(some), np.int64), None

    def undecided(chosen: torch.Tensor) -> np.ndarray:
        return np.zeros(chosen.shape[1:], np.float32)

    return mock.patch.multiple(reduction, _task_entropies=no_entropies, _undecided_bits=undecided)


def measure(options: argparse.Namespace) -> None:
    """Seconds of the three variants and their ratios."""
    predictor, volume, rows = prepared(options)

    def plain() -> None:
        predictor.predict(volume, rows)

    def with_findings() -> None:
        predictor.predict(volume, rows, findings=True)

    def without_anything() -> None:
        with nothing_measured():
            predictor.predict(volume, rows)

    variants = {"nothing measured": without_anything, "as answered": plain, "with findings": with_findings}
    best = {name: (float("inf"), float("inf")) for name in variants}
    for _ in range(options.repeats):
        for name, run in variants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            spent = time.perf_counter() - wall, time.process_time() - cpu
            best[name] = (min(best[name][0], spent[0]), min(best[name][1], spent[1]))
    print(
        f"{options.network} width {options.width}, {options.tasks} tasks, {options.size} cubed, window {options.window}"
    )
    for name, (wall, cpu) in best.items():
        ratio = cpu / best["nothing measured"][1]
        print(f"  {name:>16}: {wall:7.2f} s wall, {cpu:7.2f} s CPU, {ratio:.3f} of nothing measured")


def prepared(options: argparse.Namespace) -> tuple[Predictor, object, dict[str, int]]:
    """A predictor, a volume of noise and the rows to ask for."""
    net, manifest = untrained(options.network, options.width, options.window)
    precision = choose_precision("auto", torch.device("cpu"))
    rows = {f"task {row}": row for row in range(options.tasks)}
    return Predictor(net, manifest, precision=precision), noise_volume(options.size), rows


def memory(options: argparse.Namespace) -> None:
    """Peak memory of both variants, each in a process of its own."""
    peaks = {}
    for findings in ("plain", "findings"):
        command = [sys.executable, __file__, "peak", findings, "--network", options.network, "--width", str(options.width),
                   "--size", str(options.size), "--window", str(options.window), "--tasks", str(options.tasks)]  # fmt: skip
        peaks[findings] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    extra = peaks["findings"] - peaks["plain"]
    print(
        f"{options.tasks} tasks, {options.size} cubed: peak {peaks['plain']:.2f} GiB, with findings {extra:+.3f} GiB"
    )


def peak(options: argparse.Namespace) -> None:
    """Peak memory of this process after one inference, in GiB."""
    predictor, volume, rows = prepared(options)
    predictor.predict(volume, rows, findings=options.variant == "findings")  # type: ignore[arg-type]
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", choices=["time", "memory", "peak"])
    parser.add_argument("variant", nargs="?", default="findings")
    parser.add_argument("--network", default="hermes-c")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--tasks", type=int, default=71)
    parser.add_argument("--repeats", type=int, default=4)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    {"time": measure, "memory": memory, "peak": peak}[given.benchmark](given)


if __name__ == "__main__":
    main()
