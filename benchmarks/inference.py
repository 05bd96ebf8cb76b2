"""Inference: what tasks, memory, processing around the network and the network itself cost, as ratios in one run.

Examples::

    python benchmarks/inference.py tasks                       # 1, 29 and 71 tasks, same volume, end to end
    python benchmarks/inference.py tasks --network hermes-r --width 32 --size 160 --window 96
    python benchmarks/inference.py tokens                      # one pass of the network alone, 1 and 71 tasks
    python benchmarks/inference.py memory                      # peak memory of 71 tasks at 333 x 333 x 603 voxels
    python benchmarks/inference.py cache                       # first against second request on one image
    python benchmarks/inference.py network                     # 96 cubed, width 32: plain eager against what is served
    python benchmarks/inference.py precision                   # Dice of the starter, fp32 against bf16
    python benchmarks/inference.py copies                      # memory of the server's infer tasks

Networks are untrained where only time and memory count. Every variant of a table is run in turn, several times;
the fastest run of each counts, so that other work on the machine disturbs little.
"""

from __future__ import annotations

import argparse
import gc
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np
import psutil
import torch

from hermes.cache import VolumeCache
from hermes.checkpoint import Manifest, load_checkpoint, save_checkpoint
from hermes.device import choose_precision, in_fast_layout, keep_freed_memory
from hermes.geometry import Grid
from hermes.inference.engine import DEFAULT_BUDGET_BYTES, EngineSettings, Request, encode, segment
from hermes.inference.predictor import Predictor
from hermes.labels.space import published_label_space
from hermes.model import NetworkConfig, build_network
from hermes.phantoms import make_case
from hermes.records import Volume
from hermes.scoring.agreement import dice
from hermes.transforms.preparation import PreparationSpec
from hermes.types import Modality

TASKS = 71
STARTER = Path(__file__).resolve().parents[1] / "apps" / "hermes" / "starter"


def seconds_of(variants: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Per variant the least (wall, CPU) seconds; variants take turns."""
    best = {name: (float("inf"), float("inf")) for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            spent = time.perf_counter() - wall, time.process_time() - cpu
            best[name] = (min(best[name][0], spent[0]), min(best[name][1], spent[1]))
    return best


def untrained(network: str, width: int, window: int) -> tuple[torch.nn.Module, Manifest]:
    """A network with the 71 published tasks."""
    torch.manual_seed(0)
    config = NetworkConfig(network, width, tasks=TASKS)
    manifest = Manifest(
        network=config,
        label_space=published_label_space(),
        preparation=PreparationSpec(spacing_mm=1.5),
        window=(window, window, window),
        version="untrained",
    )
    return build_network(config).eval(), manifest


def noise_volume(size: int) -> Volume:
    """A cube of smooth noise at the model's spacing: nothing is cropped, no window is air."""
    coarse = torch.randn(1, 1, size // 8, size // 8, size // 8, generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="trilinear")[0, 0].numpy() * 200
    return Volume(fine, Grid.from_axes(fine.shape, (0, 0, 0), (1.5, 1.5, 1.5)), Modality.T1, "caller", 1.0)


def tasks(options: argparse.Namespace) -> None:
    """Wall time of 1, 29 and 71 tasks, and the share of everything after the network."""
    net, manifest = untrained(options.network, options.width, options.window)
    precision = choose_precision(options.precision, torch.device("cpu"))
    predictor = Predictor(net, manifest, precision=precision)
    volume = noise_volume(options.size)
    rows = {n: {f"task {row}": row for row in range(n)} for n in (1, 29, TASKS)}
    last: dict[int, dict[str, float]] = {}

    def run(n: int) -> None:
        last[n] = dict(predictor.predict(volume, rows[n]).timings_s)

    best = seconds_of({str(n): lambda n=n: run(n) for n in rows}, options.repeats)
    print(
        f"{options.network} width {options.width}, {precision}, volume {options.size} cubed, window {options.window}"
    )
    for name, (wall, cpu) in best.items():
        stages = ", ".join(f"{stage} {value:.2f}" for stage, value in last[int(name)].items())
        print(
            f"  {name:>2} tasks: {wall:7.2f} s wall ({wall / best['1'][0]:.3f} of 1 task), {cpu:7.2f} s CPU; last run: {stages}"
        )


def tokens(options: argparse.Namespace) -> None:
    """One pass of the network alone, on one thread, for 1 and for 71 tasks: what their tokens cost."""
    torch.set_num_threads(1)
    keep_freed_memory()
    cpu = torch.device("cpu")
    net = in_fast_layout(untrained(options.network, options.width, options.window)[0], cpu)
    windows = np.random.default_rng(0).standard_normal((1, *[options.window] * 3), dtype=np.float32)
    precision = choose_precision(options.precision, cpu)
    variants = {
        str(n): lambda n=n: encode(net, windows, range(n), 0, cpu, precision) for n in (1, options.tasks)
    }
    seconds_of(variants, 1)  # the first passes are slower
    best = seconds_of(variants, options.repeats)
    for name, (wall, cpu_s) in best.items():
        print(
            f"  {name:>2} tasks: {wall:.3f} s wall, {cpu_s:.3f} s CPU ({cpu_s / best['1'][1]:.3f} of 1 task)"
        )


def memory(options: argparse.Namespace) -> None:
    """Peak memory of a run beside what was there before: image, network, Python, torch."""
    z, y, x = options.shape
    net, manifest = untrained(options.network, options.width, options.window)
    keep_freed_memory()
    net = in_fast_layout(net, torch.device("cpu"))
    array = np.random.default_rng(0).standard_normal((z, y, x), dtype=np.float32)
    request = Request(
        rows=tuple(range(options.tasks)), modality_row=0, containers=[[] for _ in range(options.tasks)]
    )
    settings = EngineSettings(
        window=manifest.window,
        budget_bytes=options.budget_mib * 2**20,
        precision=choose_precision(options.precision, torch.device("cpu")),
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    result = segment(net, array, request, settings, device=torch.device("cpu"))
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    wall = time.perf_counter() - started
    print(
        f"{options.network} width {options.width}, {options.tasks} tasks, {z} x {y} x {x} voxels, window {options.window}"
    )
    print(
        f"  budget {options.budget_mib} MiB: peak {extra:.2f} GiB extra, {wall:.0f} s wall, {result.windows} windows"
    )


def cache(options: argparse.Namespace) -> None:
    """Seconds of preparation in the first and the second request on one image."""
    net, manifest = untrained("hermes-c", 8, 64)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.nii.gz"
        case = make_case("PhantomAbdomenCT", 0, size="large", plain_axes=True)
        nibabel.save(
            nibabel.Nifti1Image(
                case.image.transpose(2, 1, 0), Grid(case.labels.shape, case.affine).affine_ras
            ),
            path,
        )
        for _ in range(options.repeats):
            predictor = Predictor(net, manifest, cache=VolumeCache(Path(folder) / "cache"))
            first, second = (
                predictor.predict(path, {"liver": 0}, modality=Modality.CT).timings_s["prepare"]
                for _ in range(2)
            )
            print(
                f"{case.image.shape}: first {first:.3f} s, second {second:.4f} s, {first / second:.0f} times faster"
            )
            for entry in sorted((Path(folder) / "cache").rglob("*"), reverse=True):
                entry.rmdir() if entry.is_dir() else entry.unlink()


def network(options: argparse.Namespace) -> None:
    """Forward passes side by side: plain eager module, the same with kept memory, what is served, bf16."""
    image = torch.randn(
        1, 1, options.size, options.size, options.size, generator=torch.Generator().manual_seed(1)
    )
    rows, modality = torch.arange(TASKS)[None], torch.zeros(1, dtype=torch.long)
    plain, _ = untrained("hermes-r", options.width, 96)
    served, _ = untrained("hermes-r", options.width, 96)

    def bf16() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return served(image, rows, modality).logits.float()

    with torch.inference_mode():
        reference = plain(image, rows, modality).logits
        # Once set, memory is kept until the process ends: the plain module is timed before.
        best = seconds_of({"plain eager": lambda: plain(image, rows, modality)}, options.repeats)
        keep_freed_memory()
        in_fast_layout(served, torch.device("cpu"))
        best |= seconds_of(
            {
                "plain eager, freed memory kept": lambda: plain(image, rows, modality),
                "served: and channels-last": lambda: served(image, rows, modality),
                "served in bf16": bf16,
            },
            options.repeats,
        )
        outputs = {
            "served: and channels-last": served(image, rows, modality).logits,
            "served in bf16": bf16(),
        }
    print(
        f"hermes-r width {options.width}, {options.size} cubed, {TASKS} tasks, {torch.get_num_threads()} threads"
    )
    for name, (wall, cpu) in best.items():
        gain = best["plain eager"][0] / wall
        apart = (
            f", largest difference of a logit {float((outputs[name] - reference).abs().max()):.1e}"
            if name in outputs
            else ""
        )
        print(f"  {name}: {wall:.2f} s wall, {cpu:.2f} s CPU, {gain:.2f} times as fast{apart}")


def precision(options: argparse.Namespace) -> None:
    """Dice of the starter on new phantoms in both precisions, and of one answer against the other."""
    del options
    net, manifest = load_checkpoint(STARTER)
    table: dict[str, list[float]] = {"fp32": [], "bf16": [], "one against the other": []}
    for number in range(4):
        case = make_case("PhantomAbdomenCT", 900 + number)
        volume = Volume(case.image, Grid(case.labels.shape, case.affine), case.modality, "caller", 1.0)
        values = {v: name for v, name in case.names.items() if name in manifest.label_space.structures()}
        answers = {
            kind: Predictor(net, manifest, precision=kind)
            .predict(volume, list(values.values()))
            .label_map.array
            for kind in ("fp32", "bf16")
        }
        for place, value in enumerate(values, start=1):
            masks = {kind: labels == place for kind, labels in answers.items()}
            for kind, mask in masks.items():
                table[kind].append(dice(mask, case.labels == value))
            table["one against the other"].append(dice(masks["fp32"], masks["bf16"]))
    for kind, values in table.items():
        print(f"{kind}: mean Dice {np.nanmean(values):.4f} over {len(values)} structures")


def copies(options: argparse.Namespace) -> None:
    """Networks and memory of the server's app after an inference by each of its infer tasks."""
    from hermes.adapters.build import build
    from hermes.model import UniversalNetwork

    with tempfile.TemporaryDirectory() as folder:
        studies = Path(folder) / "studies"
        studies.mkdir()
        path = studies / "case.nii.gz"
        nibabel.save(nibabel.Nifti1Image(noise_volume(32).array, np.diag([1.5, 1.5, 1.5, 1.0])), path)
        net, manifest = untrained("hermes-r", options.width, 32)
        save_checkpoint(Path(folder) / "model", net, manifest)
        weights = sum(p.numel() * p.element_size() for p in net.parameters()) / 2**20
        del net
        parts = build(folder, str(studies), {"model": str(Path(folder) / "model"), "device": "cpu"})
        print(f"hermes-r width {options.width}, weights {weights:.0f} MiB")
        for number, (name, task) in enumerate(parts.infers().items(), start=1):
            task({"image": str(path)})
            gc.collect()
            copies = sum(type(thing) is UniversalNetwork for thing in gc.get_objects())
            resident = psutil.Process().memory_info().rss / 2**20
            print(
                f"  after {number} task(s) ({name}): {copies} network(s), resident memory {resident:.0f} MiB"
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the tables."""
    tables = {f.__name__: f for f in (tasks, tokens, memory, cache, network, precision, copies)}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=tables)
    parser.add_argument("--network", default="hermes-c", choices=("hermes-c", "hermes-r", "hermes-m"))
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--size", type=int, default=96, help="of a cube in voxels")
    parser.add_argument("--shape", type=int, nargs=3, default=(603, 333, 333), help="z y x, of `memory`")
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--tasks", type=int, default=TASKS, help="of `memory` and `tokens`")
    parser.add_argument("--budget-mib", type=int, default=DEFAULT_BUDGET_BYTES // 2**20)
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    tables[options.table](options)


if __name__ == "__main__":
    main()
