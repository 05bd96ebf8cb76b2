"""An interrupted run goes on and ends with the bits of one that was never interrupted."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from hermes.errors import CancelledError
from hermes.model import NetworkConfig, UniversalNetwork, build_network
from hermes.training.cases import TrainingCase
from hermes.training.resume import ResumePoint, fingerprint
from hermes.training.trainer import Recipe, StepReport, TrainingResult, train
from hermes.types import CaseId, Modality

STEPS = 6
TOY = replace(Recipe.for_cpu(), steps=STEPS, patch=(16, 16, 32), batch_size=1)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def toy_net() -> UniversalNetwork:
    torch.manual_seed(0)
    return build_network(NetworkConfig("hermes-c", 4, tasks=2))


def toy_cases() -> list[TrainingCase]:
    rng = np.random.default_rng(0)
    labels = (rng.random((16, 16, 32)) > 0.7).astype(np.uint8)
    return [
        TrainingCase(CaseId(str(i)), rng.normal(size=labels.shape).astype(np.float32), labels, {i: 1}, Modality.CT)
        for i in range(2)
    ]  # fmt: skip


def run(recipe: Recipe = TOY, **more: object) -> TrainingResult:
    return train(toy_net(), toy_cases(), recipe, device=torch.device("cpu"), seed=3, **more)  # type: ignore[arg-type]


def stop_after(steps: int, point: ResumePoint, recipe: Recipe = TOY) -> None:
    seen: list[StepReport] = []
    with pytest.raises(CancelledError, match="stopped on request"):
        run(recipe, resume=point, on_step=seen.append, should_stop=lambda: len(seen) == steps)


def same(one: TrainingResult, other: TrainingResult) -> bool:
    ours, theirs = one.net.state_dict(), other.net.state_dict()
    return one.losses == other.losses and all(torch.equal(ours[k], theirs[k]) for k in ours)


def point_in(folder: Path, key: str = "a", **more: object) -> ResumePoint:
    return ResumePoint(folder / "state.pt", key, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("optimiser", ["adamw", "lamb"])
def test_a_stopped_run_goes_on_with_the_same_bits(
    tmp_path: Path, optimiser: Literal["adamw", "lamb"]
) -> None:
    recipe = replace(TOY, optimiser=optimiser)
    point = point_in(tmp_path)  # saved because it was told to stop, not because 60 s had passed
    stop_after(2, point, recipe)
    stop_after(1, point, recipe)  # and once more, now at step 3
    reports: list[StepReport] = []
    resumed = run(recipe, resume=point, on_step=reports.append)
    assert resumed.resumed_at == 3
    assert [r.step for r in reports] == [4, 5, 6]
    assert same(resumed, run(recipe))
    assert not list(tmp_path.iterdir())


CHILD = """
import os, signal, sys
from pathlib import Path
import torch
sys.path.insert(0, {folder!r})
from test_resume import ResumePoint, run
torch.set_num_threads(1)
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
if {moment!r} == "between":
    run(resume=ResumePoint(Path(sys.argv[1]), "a", every_s=0.0), on_step=lambda r: r.step == 4 and die())
calls = []
fsync = os.fsync
os.fsync = lambda handle: (calls.append(handle), die() if len(calls) == 4 else fsync(handle))
run(resume=ResumePoint(Path(sys.argv[1]), "a", every_s=0.0))
"""


@pytest.mark.parametrize("moment", ["between", "writing"])
def test_a_killed_run_goes_on_with_the_same_bits(tmp_path: Path, moment: str) -> None:
    point = point_in(tmp_path)
    code = CHILD.format(folder=str(Path(__file__).parent), moment=moment)
    killed = subprocess.run([sys.executable, "-c", code, str(point.path)], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert point.partial.exists() == (moment == "writing")
    resumed = run(resume=point)
    assert resumed.resumed_at == 3  # killed after step 4 and before its state was there
    assert same(resumed, run())
    assert not list(tmp_path.iterdir())


def test_the_state_of_another_run_is_discarded(tmp_path: Path) -> None:
    stop_after(2, point_in(tmp_path, "other labels"))
    assert run(resume=point_in(tmp_path)).resumed_at == 0
    stop_after(2, point_in(tmp_path))
    longer = replace(TOY, steps=STEPS + 1)  # the schedules depend on the length
    assert run(longer, resume=point_in(tmp_path)).resumed_at == 0


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("damage", ["cut", "flipped bit", "nonsense", "program", "other content"])
def test_a_damaged_state_is_discarded_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    point = point_in(tmp_path)
    stop_after(2, point)
    content = bytearray(point.path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "cut":
        point.path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped bit":
        point.path.write_bytes(content)
    elif damage == "nonsense":
        point.path.write_bytes(b"no state")
    elif damage == "program":
        torch.save({"key": "a", "steps": STEPS, "step": _Evil()}, point.path)
    else:
        torch.save([1, 2], point.path)
    with caplog.at_level(logging.WARNING):
        assert run(resume=point).resumed_at == 0
    assert "damaged" in caplog.text
    assert not (tmp_path / "evil").exists()


def test_pickled_programs_would_run_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The danger that the test above guards against is real."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(_Evil()))
    assert (tmp_path / "evil").exists()


def test_a_finished_run_can_be_kept_until_its_result_is_safe(tmp_path: Path) -> None:
    point = point_in(tmp_path, keep=True)
    done = run(resume=point)
    again = run(resume=point)
    assert (done.resumed_at, again.resumed_at) == (0, STEPS)
    assert same(done, again)


def test_a_full_disk_costs_the_state_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert run(resume=point_in(tmp_path, every_s=0.0)).steps == STEPS
    assert "No space left" in caplog.text


def test_a_state_is_saved_the_more_often_the_less_it_costs() -> None:
    point = ResumePoint(Path("state"), "a")
    assert [point.pause_s(took) for took in (0.0, 0.02, 0.5, 1.2, 9.0)] == [1.0, 1.0, 25.0, 60.0, 60.0]
    assert ResumePoint(Path("state"), "a", every_s=0.0).pause_s(9.0) == 0.0


def test_fingerprints() -> None:
    facts = {"parent": "v1", "labels": ["a", "b"], "recipe": TOY, "seed": 1}
    assert fingerprint(**facts) == fingerprint(**dict(reversed(facts.items())))
    others = [{"parent": "v2"}, {"labels": ["b", "a"]}, {"recipe": replace(TOY, steps=7)}, {"seed": 2}]
    assert len({fingerprint(**{**facts, **other}) for other in others} | {fingerprint(**facts)}) == 5
