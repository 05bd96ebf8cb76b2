"""``make demo``: a labelling campaign played over HTTP, from an empty one to a model that has learned.

A server is started on a copy of the images; an annotator is played through ``MONAILabelClient``: next sample,
infer, the true label submitted as the correction, until a round is full and the server trains and publishes by
itself. After every round the cases to measure on, which the server never sees as images of the campaign, are segmented
and compared with their true labels.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from hermes.config import from_conf
from hermes.errors import BadRequestError, HermesError
from hermes.labelled import Pair, finest_spacing, folders_of, pairs_of, value_names, values_in
from hermes.pacs import free_port
from hermes.phantoms import dataset as phantom_dataset
from hermes.records import LabelMap
from hermes.scoring.agreement import dice
from hermes.serve import PROJECT, SAMPLE_DATASET, parse_conf
from hermes.transforms.orientation import Turn
from hermes.transforms.reading import read_label_map, read_volume
from hermes.transforms.writing import write_label_map

matplotlib.use("Agg")

SAMPLE = PROJECT / "sample-data"
MODEL = "hermes"
HELD_OUT_FRACTION = 0.275
LARGEST_HELD_OUT = 25
START_TIMEOUT_S = 180
ROUND_TIMEOUT_S = 3600


@dataclass(frozen=True)
class Dataset:
    """What the demo plays: cases to label, cases to measure on, and the server's settings."""

    pool: tuple[Pair, ...]
    held_out: tuple[Pair, ...]
    conf: Mapping[str, str]
    structures: tuple[str, ...]


@dataclass(frozen=True)
class RoundResult:
    """One row of ``demo.json``."""

    round: int
    labels: int
    dice: dict[str, float]
    train_seconds: float
    label_to_model_seconds: float
    model_version: str
    gate: str = ""


def sample_dataset(conf: Mapping[str, str]) -> Dataset:
    """The sample campaign, the ground truth that stands beside it, and the structures it is meant to label."""
    campaign = phantom_dataset(SAMPLE_DATASET)
    numbers = {name: value for value, name in enumerate(campaign.structures, start=1)}
    names = {numbers[name]: name for name in campaign.demonstration}
    pool = pairs_of(SAMPLE / "campaign", SAMPLE / "truth", names)
    held_out = pairs_of(SAMPLE / "heldout" / "images", SAMPLE / "heldout" / "labels", names)
    structures = tuple(names.values())
    return Dataset(pool, held_out, {"structures": ",".join(structures), **conf}, structures)


def folder_dataset(folder: Path, conf: Mapping[str, str]) -> Dataset:
    """Images and labels of the same file name in ``images/`` and ``labels/`` (or ``imagesTr``, ``labelsTr``).

    Label values take their names from ``conf["structures"]`` in order of the values, else from
    ``dataset.json`` (``labels``), else "structure <value>". The last cases by name are held out.

    Raises:
        BadRequestError: there are no pairs, or more values than names.
    """
    images, labels = folders_of(folder)
    values = values_in(sorted(labels.iterdir())[:8])
    given = [name.strip() for name in conf.get("structures", "").split(",") if name.strip()]
    names = value_names(folder, values, given)
    pairs = pairs_of(images, labels, names)
    count = min(LARGEST_HELD_OUT, max(1, round(HELD_OUT_FRACTION * len(pairs))))
    structures = tuple(names.values())
    defaults = {"structures": ",".join(structures), "spacing_mm": f"{finest_spacing(pairs):g}"}
    return Dataset(pairs[:-count], pairs[-count:], {**defaults, **conf}, structures)


def _label(path: Path) -> LabelMap:
    return read_label_map(path)


def server_command(studies: Path, conf: Mapping[str, str]) -> tuple[list[str], int]:
    """The command that starts a server on a free port of this machine, and the port."""
    port = free_port()
    text = " ".join(f"{key}={value}" for key, value in conf.items())
    options = ["--port", str(port), "--studies", str(studies), "--conf", text]
    return [sys.executable, "-m", "hermes.serve", *options], port


@contextmanager
def running_server(studies: Path, conf: Mapping[str, str], log: Path) -> Iterator[str]:
    """A server on a free port of this machine; its address. It is ended when the block ends."""
    with running(*server_command(studies, conf), log) as address:
        yield address


@contextmanager
def running(command: Sequence[str], port: int, log: Path) -> Iterator[str]:
    """A server that ``command`` starts on ``port`` of this machine; its address once it answers."""
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        try:
            _wait_until_up(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_up(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    import requests

    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            msg = f"The server ended with status {process.returncode} while starting. Its log: {log}"
            raise HermesError(msg)
        try:
            if requests.get(f"{address}/info/", timeout=5).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.5)
    msg = f"The server did not answer within {START_TIMEOUT_S} s. Its log: {log}"
    raise HermesError(msg)


class Annotator:
    """An annotator who corrects every offered label to the true one."""

    def __init__(self, address: str, dataset: Dataset, scratch: Path) -> None:
        """Talk to the server at ``address``; ``scratch`` takes temporary files."""
        from monailabel.client import MONAILabelClient

        scratch.mkdir(parents=True, exist_ok=True)
        self.client = MONAILabelClient(address, str(scratch), "demo-annotator")
        self._pool = {pair.case_id: pair for pair in dataset.pool}
        self._dataset, self._scratch = dataset, scratch.resolve()

    def label_next(self, strategy: str) -> str:
        """Label the image that the server offers; its id."""
        sample = self.client.next_sample(strategy, {})
        case_id = sample.get("id")
        if case_id is None:
            msg = f"Expected the server to offer an image, it answered {sample}."
            raise HermesError(msg)
        offered, _ = self.client.infer(MODEL, case_id, {"result_extension": ".nii.gz"})
        Path(offered).unlink()
        pair = self._pool[case_id]
        truth = _label(pair.label)
        drawn = {int(v) for v in np.unique(truth.array)}
        info = [{"name": name, "idx": value} for value, name in pair.names.items()]
        absent = [name for value, name in pair.names.items() if value not in drawn]
        drawing = np.where(np.isin(truth.array, list(pair.names)), truth.array, 0)
        file = write_label_map(LabelMap(drawing, truth.grid, pair.names), self._scratch / "label.nii.gz")
        self.client.save_label(
            case_id, str(file), params={"label_info": info, "label_values": "idx", "absent": absent}
        )
        return str(case_id)

    def measure(self, pairs: Sequence[Pair], tick: Any) -> tuple[dict[str, float], str, np.ndarray[Any, Any]]:
        """Mean Dice per structure over ``pairs``, the version that answered, the first prediction (D, H, W)."""
        scores: dict[str, list[float]] = {name: [] for name in self._dataset.structures}
        version, first = "", None
        for pair in pairs:
            file, params = self.client.infer(
                MODEL, pair.case_id, {"result_extension": ".nii.gz"}, file=str(pair.image)
            )
            predicted, truth = _label(Path(file)), _label(pair.label)
            Path(file).unlink()
            version = params["model_version"]
            first = predicted.array if first is None else first
            for value, name in pair.names.items():
                answered = params["label_names"].get(name)
                ours = predicted.array == answered if answered else np.zeros(truth.array.shape, bool)
                if (truth.array == value).any():
                    scores[name].append(dice(ours, truth.array == value))
            tick()
        means = {name: round(float(np.mean(v)), 4) for name, v in scores.items() if v}
        if first is None:
            msg = "Expected at least one held-out case, got none."
            raise BadRequestError(msg)
        return means, version, first

    def wait_for_round_after(self, run: int) -> tuple[int, float, str]:
        """Wait until a round later than ``run`` has ended: its number, seconds of training, what the gate said.

        Raises:
            HermesError: training failed, or did not end within an hour.
        """
        deadline = time.monotonic() + ROUND_TIMEOUT_S
        while time.monotonic() < deadline:
            stats = self.client.info()["train_stats"][MODEL]
            if stats.get("phase") == "failed":
                msg = f"Training failed: {stats.get('reason')}"
                raise HermesError(msg)
            if stats.get("phase") in ("published", "refused") and int(stats["run"]) > run:
                return int(stats["run"]), float(stats["train_seconds"]), str(stats["report"]["gate"]["state"])
            time.sleep(0.5)
        msg = f"Expected the round to end within {ROUND_TIMEOUT_S} s, it has not."
        raise HermesError(msg)


def play(dataset: Dataset, out: Path, *, rounds: int, per_round: int, strategy: str) -> list[RoundResult]:
    """Play ``rounds`` rounds and write table, pictures and ``demo.json`` to ``out``."""
    console = Console(width=max(110, Console().width))  # the table is wider than a log's 80 columns
    studies = out / "campaign"
    if studies.exists():
        shutil.rmtree(studies)
    studies.mkdir(parents=True)
    for pair in dataset.pool:
        shutil.copy(pair.image, studies / pair.image.name)
    conf = {**dataset.conf, "labels_per_round": str(per_round)}
    results: list[RoundResult] = []
    console.print(
        f"{len(dataset.pool)} images to label, {len(dataset.held_out)} others to measure on; starting the server ..."
    )
    share = from_conf(conf).holdout_share
    if share > 0:
        console.print(
            f"Of the images to label the server itself holds out about {share:.0%}: their labels decide whether a "
            "model is published and are never trained on (holdout_share=0 trains on all)."
        )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        running_server(studies, conf, out / "server.log") as address,
        Progress(*columns, console=console) as bar,
    ):
        annotator = Annotator(address, dataset, out / "tmp")
        results.append(_measured(annotator, dataset, bar, out, 0, 0, (0.0, 0.0)))
        run = 0
        for number in range(1, rounds + 1):
            task = bar.add_task(f"round {number}: labelling", total=per_round)
            for _ in range(per_round):
                annotator.label_next(strategy)
                bar.advance(task)
            last_label = time.monotonic()
            task = bar.add_task(f"round {number}: training", total=1)
            run, train_seconds, gate = annotator.wait_for_round_after(run)
            seconds = (train_seconds, time.monotonic() - last_label)
            bar.advance(task)
            measured = _measured(annotator, dataset, bar, out, number, number * per_round, seconds)
            results.append(replace(measured, gate=gate))
    (out / "demo.json").write_text(json.dumps([asdict(r) for r in results], indent=2), encoding="utf-8")
    draw_curve(results, out / "curve.png")
    console.print(_table(results))
    console.print(f"Curve, overlays and demo.json are in {out}")
    return results


def _measured(
    annotator: Annotator,
    dataset: Dataset,
    bar: Progress,
    out: Path,
    number: int,
    labels: int,
    seconds: tuple[float, float],
) -> RoundResult:
    task = bar.add_task(f"round {number}: measuring", total=len(dataset.held_out))
    means, version, first = annotator.measure(dataset.held_out, lambda: bar.advance(task))
    pair = dataset.held_out[0]
    title = f"{pair.case_id}, {labels} labels: left truth, right {version}"
    volume, truth = read_volume(pair.image), _label(pair.label).array
    upright = Turn.to_lps(volume.grid)  # rows towards posterior, columns towards the patient's left
    shown = [
        upright.apply(a) for a in (volume.array, np.where(np.isin(truth, list(pair.names)), truth, 0), first)
    ]
    draw_overlay(shown[0], shown[1], shown[2], title, out / f"overlay-{number}.png")
    return RoundResult(number, labels, means, round(seconds[0], 1), round(seconds[1], 1), version)


def draw_overlay(
    image: np.ndarray[Any, Any],
    truth: np.ndarray[Any, Any],
    predicted: np.ndarray[Any, Any],
    title: str,
    path: Path,
) -> None:
    """Truth and prediction on the slice with most of the truth, as a PNG. All arrays (D, H, W)."""
    from matplotlib import pyplot

    z = int(np.argmax((truth > 0).sum(axis=(1, 2))))
    low, high = np.percentile(image, [1, 99])
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4.6))
    for axis, label in zip(axes, (truth, predicted), strict=True):
        axis.imshow(image[z], cmap="gray", vmin=low, vmax=high)
        shown = np.where(label[z] == 0, np.nan, label[z])
        axis.imshow(shown, cmap="tab10", vmin=1, vmax=10, alpha=0.5, interpolation="nearest")
        axis.axis("off")
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def draw_curve(results: Sequence[RoundResult], path: Path) -> None:
    """Dice on the held-out cases against the number of labels, a line per structure, as a PNG."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4.5))
    labels = [r.labels for r in results]
    for name in results[-1].dice:
        axis.plot(labels, [r.dice.get(name, np.nan) for r in results], marker="o", label=name)
    axis.plot(labels, [_mean(r) for r in results], "k--", label="mean")
    axis.set(xlabel="submitted labels", ylabel="Dice on held-out cases", ylim=(0, 1), xticks=labels)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def _mean(result: RoundResult) -> float:
    return float(np.mean(list(result.dice.values())))


def _table(results: Sequence[RoundResult]) -> Table:
    table = Table(
        "round",
        "labels",
        *results[-1].dice,
        "mean Dice",
        "training s",
        "last label to new model s",
        "gate",
        "version",
    )
    for r in results:
        values = [f"{r.dice[name]:.3f}" for name in results[-1].dice]
        table.add_row(
            str(r.round), str(r.labels), *values, f"{_mean(r):.3f}",
            f"{r.train_seconds:.0f}", f"{r.label_to_model_seconds:.0f}", r.gate, r.model_version,
        )  # fmt: skip
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Play the demo; 2 when the arguments are wrong, 1 when a round fails."""
    parser = argparse.ArgumentParser(prog="hermes.demo", description=__doc__)
    parser.add_argument(
        "--data", default="", help="folder with images/ and labels/; empty: the sample campaign"
    )
    parser.add_argument("--out", default="demo-out")
    parser.add_argument("--conf", default="", help="further settings for the server")
    parser.add_argument("--rounds", type=int, default=0, help="0: as many as reach 20 labels, at least 3")
    parser.add_argument("--strategy", default="uncertainty")
    given = parser.parse_args(arguments)
    try:
        conf = parse_conf(given.conf)
        dataset = folder_dataset(Path(given.data), conf) if given.data else sample_dataset(conf)
        per_round = int(conf.get("labels_per_round", "5"))
        rounds = given.rounds or max(3, min(4, len(dataset.pool) // per_round))
        if rounds * per_round > len(dataset.pool):
            msg = (
                f"Expected at least {rounds * per_round} images for {rounds} rounds, got {len(dataset.pool)}."
            )
            raise BadRequestError(msg)
        play(dataset, Path(given.out), rounds=rounds, per_round=per_round, strategy=given.strategy)
    except BadRequestError as error:
        sys.stderr.write(f"make demo: {error}\n")
        return 2
    except HermesError as error:
        sys.stderr.write(f"make demo: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
