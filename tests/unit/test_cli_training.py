"""``hermes train`` on files: pre-flight, a version with metrics, interruption, fine-tuning."""

from __future__ import annotations

import hashlib
import math
import signal
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml

from hermes.checkpoint import UsedCase, load_checkpoint, read_manifest
from hermes.cli import main
from hermes.cli import training as command
from hermes.training.trainer import StepReport

TASKS = ["box@A", "ball@A"]


def write_case(folder: Path, name: str, *, ball: bool, extra: int = 0) -> None:
    image = np.random.default_rng(zlib.crc32(name.encode())).normal(0, 20, (32, 32, 24)).astype(np.float32)
    labels = np.zeros(image.shape, np.uint8)
    labels[4:14, 4:14, 4:14] = 1
    if ball:
        labels[18:26, 18:26, 8:16] = 2
    labels[30, 30, 20] = extra
    image += 200.0 * labels
    for kind, array in (("images", image), ("labels", labels)):
        (folder / kind).mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4) * 3), folder / kind / f"{name}.nii.gz")


def used(folder: Path, name: str) -> UsedCase:
    files = [folder / kind / f"{name}.nii.gz" for kind in ("images", "labels")]
    return UsedCase(f"A/{name}", *(hashlib.sha256(file.read_bytes()).hexdigest() for file in files))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for number in range(5):
        write_case(folder, f"case{number}", ball=number < 3)
    write_case(folder, "wrong", ball=False, extra=9)
    (folder / "labels" / "case4.nii.gz").unlink()
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def manifest(data: Path, **values: Any) -> Path:
    dataset = {"name": "A", "images": "images", "labels": "labels", "structures": {1: "box", 2: "ball"},
               "absent": ["ball"], "modality": "CT", **values.pop("dataset", {})}  # fmt: skip
    defaults = {"network": {"name": "hermes-c", "width": 4}, "spacing_mm": 3, "patch": 32, "steps": 3,
                "batch_size": 1, "held_out": 0.25, "seed": 3}  # fmt: skip
    file = data / "plan.yaml"
    file.write_text(yaml.safe_dump({"datasets": [dataset], **defaults, **values}))
    return file


def test_a_version_with_its_metrics(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "v1"
    assert (
        main(["train", str(manifest(data)), "-o", str(out), "--tensorboard", str(tmp_path / "curves")]) == 0
    )
    said = capsys.readouterr()
    assert "2 tasks, 3 steps" in said.out
    assert "Pre-flight" in said.err
    assert "A/case4: no label file" in said.err
    assert "voxels of value [9]" in said.err
    net, stored = load_checkpoint(out)
    assert [task.key for task in stored.label_space.tasks] == TASKS
    assert stored.held_out == (used(data, "case1"),)
    assert stored.trained_on == tuple(used(data, name) for name in ("case0", "case2", "case3"))
    assert set(stored.metrics["dice_on_held_out"]) <= set(TASKS)
    assert all(0 <= value <= 1 for value in stored.metrics["dice_on_held_out"].values())
    assert (stored.version, stored.parent, stored.trained_rows, stored.window) == (
        "v1",
        None,
        (0, 1),
        (32, 32, 32),
    )
    assert net.config.width == 4
    assert list((tmp_path / "curves").iterdir())
    assert not (tmp_path / "v1.work" / "training.state").exists()
    # the version exists now
    assert main(["train", str(manifest(data)), "-o", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
    # and can be the start of another, which learns a new structure beside the old ones
    more = manifest(data, start=str(out), steps=1, dataset={"name": "B", "structures": {1: "box", 2: "cone"}})
    assert main(["train", str(more), "-o", str(tmp_path / "v2")]) == 2  # cone is not `absent: [ball]`
    more = manifest(
        data, start=str(out), dataset={"name": "B", "structures": {1: "box", 2: "cone"}, "absent": []}
    )
    assert main(["train", str(more), "-o", str(tmp_path / "v2"), "--steps", "1"]) == 0
    second = read_manifest(tmp_path / "v2")
    assert [task.key for task in second.label_space.tasks] == [*TASKS, "box@B", "cone@B"]
    assert (second.parent, second.metrics["steps"]) == ("v1", 1)


def test_a_structure_without_a_case_is_refused_before_training(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = manifest(data, dataset={"structures": {1: "box", 2: "ball", 3: "cone"}})
    assert main(["train", str(plan), "-o", str(tmp_path / "v")]) == 2
    said = capsys.readouterr().err
    assert "nobody has drawn: cone@A" in said
    assert "Pre-flight" in said
    assert not (tmp_path / "v").exists()


def test_a_dry_run_trains_nothing(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(manifest(data)), "-o", str(tmp_path / "v"), "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "box@A" in said.err
    assert "model's spacing" in said.err  # whose voxels are counted
    assert said.out == ""
    assert not (tmp_path / "v").exists()


def test_stopped_by_hand_and_resumed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["train", str(manifest(data)), "-o", str(whole)]) == 0
    real = command.train

    def interrupted(*args: Any, on_step: Any, **more: Any) -> Any:
        def press(report: StepReport) -> None:
            on_step(report)
            if report.step == 2:
                signal.raise_signal(signal.SIGINT)

        return real(*args, on_step=press, **more)

    monkeypatch.setattr(command, "train", interrupted)
    assert main(["train", str(manifest(data)), "-o", str(parts)]) == 130
    assert "--resume" in capsys.readouterr().err
    assert (tmp_path / "parts.work" / "training.state").exists()
    monkeypatch.setattr(command, "train", real)
    assert main(["train", str(manifest(data)), "-o", str(parts), "--resume"]) == 0
    first, second = (load_checkpoint(folder)[0].state_dict() for folder in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_names_in_the_file_must_be_those_of_the_manifest(data: Path) -> None:
    dataset = command.read_plan(manifest(data)).datasets[0]
    command._check_names(dataset, {1: "Box", 7: "anything"})
    with pytest.raises(command.BadLabelError, match="calls value 1 'ball'"):
        command._check_names(dataset, {1: "ball"})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"seed": "abc"}, "seed"),
        ({"patch": 16}, "patch"),
        ({"network": {"name": ["x"]}}, "network"),
        ({"network": {"name": "hermes-x"}}, "network"),
        ({"learning_rate": math.inf}, "learning_rate"),
        ({"dataset": {"weight": None}}, "weight of A"),
        ({"dataset": {"images": "**foo/["}}, "images of A"),
        ({"dataset": {"labels": None}}, "labels of A"),
        ({"patient": "(zzz)?"}, "does not fit 'case0'"),
        ({"patient": "([0-9]*)"}, "does not fit 'case0'"),
    ],
)
def test_a_bad_manifest_is_refused_before_anything_is_read(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], values: dict[str, Any], named: str
) -> None:
    assert main(["train", str(manifest(data, **values)), "-o", str(tmp_path / "v")]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("hermes train: Expected ")
    assert named in said.err
    assert (said.err.count("\n"), said.out) == (1, "")
    assert not (tmp_path / "v").exists()
    assert not list(tmp_path.rglob("*.zarr"))


def test_weights_that_are_not_finite_are_no_version(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = manifest(data, learning_rate=1e30)
    assert main(["train", str(plan), "-o", str(tmp_path / "v")]) not in {0, 130}
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hermes train: ")]
    assert "finite" in said
    assert not (tmp_path / "v").exists()


def test_two_trainings_for_one_directory(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call, real = ["train", str(manifest(data)), "-o", str(tmp_path / "v")], command.train

    def train(*args: Any, **more: Any) -> Any:
        (status,) = {main(call), main([*call, "--resume"])}  # in the middle of the first
        assert status not in {0, 2, 130}
        said = capsys.readouterr().err
        assert said.count("another `hermes train` works in it") == 2
        assert "Pre-flight" not in said.partition("hermes train: ")[2]
        return real(*args, **more)

    monkeypatch.setattr(command, "train", train)
    assert main(call) == 0
    assert read_manifest(tmp_path / "v").version == "v"
    monkeypatch.setattr(command, "train", None)  # nobody gets there
    assert main(call) == 2
    assert "exists" in capsys.readouterr().err


def test_a_version_that_appears_while_the_lock_is_taken_is_refused_before_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other process may have written it and let go between the two."""
    real = command.filelock.FileLock

    def slow(path: Path) -> Any:
        (tmp_path / "v").mkdir()
        return real(path)

    monkeypatch.setattr(command.filelock, "FileLock", slow)
    assert main(["train", str(manifest(data)), "-o", str(tmp_path / "v")]) == 2
    said = capsys.readouterr().err
    assert "exists" in said
    assert "Pre-flight" not in said


@pytest.mark.parametrize(("pattern", "status"), [("(case", 2), ("case", 2), (r"([a-z]+)\d*", 2)])
def test_patients_by_name(data: Path, tmp_path: Path, pattern: str, status: int) -> None:
    """The last pattern makes one patient of all cases: all held out or none, here nothing is left to train on."""
    plan = manifest(data, patient=pattern, held_out=0.999999)
    assert main(["train", str(plan), "-o", str(tmp_path / "v"), "--dry-run"]) == status


def pair(dataset: str, name: str, content: str = "") -> tuple[Any, str]:
    """An image of a dataset, and what its file holds."""
    plan = command.DatasetPlan(dataset, "images", "labels", {1: "box"})
    return command.Pair(plan, name, Path(dataset, name), None), content or f"{dataset}/{name}"


def sides(*pairs: tuple[Any, str], seed: int, **more: Any) -> tuple[set[str], set[str]]:
    plan = command.TrainingPlan(Path(), (), seed=seed, held_out=0.5, **more)
    contents = {one.image: content for one, content in pairs}
    found = command._hold_out(plan, [one for one, _ in pairs], contents.__getitem__)
    training, held_out = ({one.case_id for one in side} for side in found)
    return training, held_out


def test_a_patient_of_several_datasets_is_on_one_side() -> None:
    """By name and, where a file is the same under two names, by that: through any number of steps."""
    pairs = [pair(d, f"STS_{n}") for d in ("CT", "MR", "PET") for n in range(6)]
    pairs += [pair("CT", "sub-1_ses-1"), pair("MR", "sub-1_ses-2")]
    pairs += [pair("A", "x", "one"), pair("B", "b", "one"), pair("B", "c", "two"), pair("C", "x", "two")]
    pairs += [pair("C", "c", "three"), pair("D", "z", "three")]
    together = [{f"{d}/STS_{n}" for d in ("CT", "MR", "PET")} for n in range(6)]
    together += [{"CT/sub-1_ses-1", "MR/sub-1_ses-2"}, {"A/x", "B/b", "B/c", "C/x", "C/c", "D/z"}]
    seen = set()
    for seed in range(20):
        training, held_out = sides(*pairs, seed=seed)
        assert not training & held_out
        assert all(group <= training or group <= held_out for group in together)
        assert sides(*reversed(pairs), seed=seed) == (training, held_out)
        alone, _ = sides(pair("B", "b"), seed=seed)  # the smallest name of the last group
        assert ("D/z" in training) == bool(alone)
        seen.add("A/x" in training)
    assert seen == {True, False}


def test_the_same_file_under_two_names_is_one_patient(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without that, seed 3 holds case1 out and trains on case0."""
    copied = tmp_path / "copied"
    for name in ("case0", "case1", "case2"):
        for kind in ("images", "labels"):
            (copied / kind).mkdir(parents=True, exist_ok=True)
            source = "case0" if kind == "images" else name
            (copied / kind / f"{name}.nii.gz").write_bytes((data / kind / f"{source}.nii.gz").read_bytes())
    assert main(["train", str(manifest(copied)), "-o", str(tmp_path / "v"), "--dry-run"]) == 0
    assert "3 cases to train on, 0 held out" in capsys.readouterr().err


def test_a_held_out_case_that_cannot_be_used_is_named_and_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seed 9 holds out case1, case2, case4 and case7."""
    for number in range(8):
        write_case(tmp_path, f"case{number}", ball=True)
    (tmp_path / "labels" / "case1.nii.gz").write_bytes(b"nonsense")
    (tmp_path / "labels" / "case4.nii.gz").unlink()
    plan = manifest(tmp_path, seed=9, steps=1)
    assert main(["train", str(plan), "-o", str(tmp_path / "v"), "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "4 cases to train on, 2 held out, 2 left out" in said
    assert "left out of the hold-out: A/case1: " in said
    assert "left out of the hold-out: A/case4: no label file" in said
    real = command.train

    def train(*args: Any, **more: Any) -> Any:
        (tmp_path / "labels" / "case7.nii.gz").unlink()  # somebody tidies up meanwhile
        return real(*args, **more)

    monkeypatch.setattr(command, "train", train)
    assert main(["train", str(plan), "-o", str(tmp_path / "v")]) == 0
    assert "left out of the hold-out: A/case7: " in capsys.readouterr().err
    stored = read_manifest(tmp_path / "v")
    assert stored.held_out == (used(tmp_path, "case2"),)
