"""Played campaigns, on balls in noise and a tiny network; and what is made of their results."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from hermes.checkpoint import Manifest, save_checkpoint
from hermes.cli.command import main
from hermes.errors import BadRequestError, ConflictError
from hermes.geometry import Grid
from hermes.labels.space import LabelSpace, Task
from hermes.model import NetworkConfig, build_network
from hermes.records import LabelMap
from hermes.simulation import Plan, Row, areas_of, read_rows, simulate, split_cases, write_rows
from hermes.simulation.results import area_under
from hermes.transforms.preparation import PreparationSpec
from hermes.transforms.writing import write_label_map

GRID = Grid((24, 24, 24), np.diag([4.0, 4.0, 4.0, 1.0]))
CONF = {
    "modality": "CT", "device": "cpu", "train_patch_voxels": "32,32,32", "train_batch_size": "1",
    "train_steps_per_round": "1", "precision": "fp32", "spacing_mm": "4", "window_overlap": "0",
}  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight patients, one of them with two images; a ball is value 1, in every second image another is value 2."""
    rng = np.random.default_rng(0)
    z, y, x = np.indices(GRID.shape)
    for part in ("images", "labels"):
        (tmp_path / "data" / part).mkdir(parents=True)
    names = [*(f"sub-{n}_ct" for n in range(8)), "sub-7_again"]
    for number, name in enumerate(names):
        labels = np.zeros(GRID.shape, np.uint8)
        labels[(z - 8) ** 2 + (y - 8) ** 2 + (x - 8 - number % 3) ** 2 < 36] = 1
        if number % 2:
            labels[(z - 16) ** 2 + (y - 16) ** 2 + (x - 16) ** 2 < 16] = 2
        image = np.clip(rng.normal(20, 3, GRID.shape) + 60 * labels, 0, 255).astype(np.int16)
        write_label_map(LabelMap(image, GRID, {}), tmp_path / "data" / "images" / f"{name}.nii.gz")
        write_label_map(LabelMap(labels, GRID, {}), tmp_path / "data" / "labels" / f"{name}.nii.gz")
    return tmp_path / "data"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    net = build_network(NetworkConfig("hermes-c", 4, tasks=1))
    space = LabelSpace((Task("ball", "campaign"),))
    manifest = Manifest(
        net.config, space, PreparationSpec(spacing_mm=4.0), (32, 32, 32), version="untrained", trained_rows=()
    )
    save_checkpoint(tmp_path / "base", net, manifest)
    return tmp_path / "base"


def test_patients_are_on_one_side_and_the_same_one_every_time(data: Path) -> None:
    split = split_cases(data, 0.4, ("ball", "dot"))
    assert split == split_cases(data, 0.4, ("ball", "dot"))
    sides = [{p.case_id.split("_")[0] for p in part} for part in (split.pool, split.test)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 3
    assert len(split.pool) + len(split.test) == 9
    assert split.structures == ("ball", "dot")
    with pytest.raises(BadRequestError, match="test share"):
        split_cases(data, 1.0)


def test_a_campaign_is_played_to_the_end_and_never_again(data: Path, base: Path, tmp_path: Path) -> None:
    split = split_cases(data, 0.3, ("ball", "dot"))
    plan = Plan(("random", "hybrid"), 1, budget=4, per_round=2, conf=CONF)
    said: list[str] = []
    rows = simulate(split, plan, tmp_path / "out", starter=base, progress=said.append)
    assert {(r.strategy, r.labels) for r in rows} == {(s, n) for s in plan.strategies for n in (2, 4)}
    assert {r.structure for r in rows} == {"ball", "dot"}
    # The first round is common: the model knows nothing that a strategy could go by.
    first = [[r.dice for r in rows if r.strategy == s and r.labels == 2] for s in plan.strategies]
    assert first[0] == first[1]
    assert sum("scored" in line for line in said) == len(
        split.pool
    )  # labelled ones too: hybrid compares with them
    assert not list((tmp_path / "out" / "work").glob("*-0"))
    said.clear()
    assert simulate(split, plan, tmp_path / "out", starter=base, progress=said.append) == rows
    assert said == []
    with pytest.raises(ConflictError, match="another one"):
        simulate(split, Plan(("random",), 1, 3, 2), tmp_path / "out", starter=base, progress=said.append)


def test_an_interrupted_simulation_goes_on(data: Path, base: Path, tmp_path: Path) -> None:
    split = split_cases(data, 0.3, ("ball", "dot"))
    plan = Plan(("random", "first"), 1, budget=3, per_round=2, conf=CONF)

    def stop(what: str) -> None:
        if what.startswith("first") and "training" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(split, plan, tmp_path / "out", starter=base, progress=stop)
    assert {r.strategy for r in read_rows(tmp_path / "out" / "results.csv")} == {"random"}
    said: list[str] = []
    rows = simulate(split, plan, tmp_path / "out", starter=base, progress=said.append)
    assert {r.strategy for r in rows} == {"random", "first"}
    assert not any(line.startswith("random") for line in said)


def test_plans_that_cannot_be_played(data: Path, base: Path, tmp_path: Path) -> None:
    split = split_cases(data, 0.3, ("ball", "dot"))
    for plan in (
        Plan(("radnom",), 1, 2, 1),
        Plan(("random", "random"), 1, 2, 1),
        Plan(("random",), 1, 99, 1),
        Plan(("random",), 1, 1, 2),
    ):
        with pytest.raises(BadRequestError):
            simulate(split, plan, tmp_path / "out", starter=base, progress=lambda _: None)


def test_areas_are_those_of_trapezoids_and_gains_are_paired() -> None:
    assert area_under([0, 2, 6], [0.0, 0.5, 0.5]) == pytest.approx((0.5 + 2.0) / 6)
    assert area_under([5], [0.7]) == 0.7
    rows = [
        Row(
            strategy,
            seed,
            labels,
            structure,
            0.1 * seed + (labels / 10 if strategy == "good" else 0.0) + shift,
        )
        for strategy in ("random", "good")
        for seed in range(3)
        for labels in (0, 2)
        for structure, shift in (("a", 0.0), ("b", 0.2))
    ]
    by_name = {area.strategy: area for area in areas_of(rows)}
    assert by_name["random"].areas == pytest.approx((0.1, 0.2, 0.3))
    assert by_name["good"].gains == pytest.approx((0.1, 0.1, 0.1))
    assert by_name["good"].finals == pytest.approx((0.3, 0.4, 0.5))
    assert by_name["random"].gains == (0.0, 0.0, 0.0)


def test_rows_survive_the_file(tmp_path: Path) -> None:
    rows = [Row("random", 0, 5, 'a, "b"', 0.25), Row("clasp", 1, 10, "left kidney", 1.0)]
    write_rows(tmp_path / "r.csv", rows)
    assert read_rows(tmp_path / "r.csv") == rows


def test_the_command_writes_rows_and_curves(
    data: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = " ".join(f"{k}={v}" for k, v in CONF.items())
    command = [
        "simulate", str(data), "--strategy", "random,foreground", "--seeds", "1", "--budget", "3", "--round", "2",
        "--model", str(base), "--structures", "ball,dot", "--conf", conf, "-o", str(tmp_path / "out"),
    ]  # fmt: skip
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "foreground" in printed
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "out" / "results.csv").open() as stream:
        assert {row["strategy"] for row in csv.DictReader(stream)} == {"random", "foreground"}
    assert main([*command[:1], str(tmp_path / "nowhere"), *command[2:]]) == 2
