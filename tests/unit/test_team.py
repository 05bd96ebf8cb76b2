"""Two processes train as one: same losses, same weights; only the first saves and reports."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hermes.errors import BadRequestError
from hermes.model import NetworkConfig, UniversalNetwork, build_network
from hermes.training.cases import TrainingCase
from hermes.training.team import Team
from hermes.training.trainer import Recipe, TrainingResult, train
from hermes.types import CaseId, Modality

# A large eps: where a gradient is all rounding error, AdamW would make steps of its sign. A small rate: rounding
# errors grow from step to step. A seed whose patches are easy on the deepest norms, which are over two voxels here.
RECIPE = replace(
    Recipe.for_cpu(), steps=4, patch=(16, 16, 32), batch_size=3, eps=1e-2, warmup_fraction=0.0, learning_rate=2e-4
)  # fmt: skip


def toy_net(seed: int = 0) -> UniversalNetwork:
    torch.manual_seed(seed)
    return build_network(NetworkConfig("hermes-c", 4, tasks=3))


def toy_cases() -> list[TrainingCase]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (16, 16, 32)).astype(np.uint8)
    image = (rng.normal(size=labels.shape) + labels).astype(np.float32)
    return [
        TrainingCase(CaseId("a"), image, labels, {0: 1, 1: 2}, Modality.CT),
        TrainingCase(CaseId("b"), image[::-1].copy(), labels[::-1].copy(), {2: 2}, None),
    ]


def run(rank: int, **more: object) -> TrainingResult:
    """Every process but the first starts from other weights: they must not matter."""
    return train(toy_net(rank), toy_cases(), RECIPE, device=torch.device("cpu"), seed=6, **more)  # type: ignore[arg-type]


MEMBER = """
import json, sys
from pathlib import Path
import torch
import torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from test_team import run
from hermes.training.resume import ResumePoint
folder, rank = Path(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
steps, point = [], ResumePoint(folder / f"state{rank}", "a", keep=True)
result = run(rank, on_step=lambda report: steps.append(report.step), resume=point)
torch.save({"net": result.net.state_dict(), "losses": result.losses}, folder / f"result{rank}")
(folder / f"told{rank}").write_text(json.dumps(steps))
dist.destroy_process_group()
"""


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    command = [sys.executable, "-c", MEMBER, str(Path(__file__).parent), str(tmp_path)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    members = [subprocess.Popen([*command, str(r)], env=environment, stderr=subprocess.PIPE) for r in (0, 1)]
    for member in members:
        _, said = member.communicate(timeout=300)
        assert member.returncode == 0, said.decode()
    alone, start = run(0), toy_net(0).state_dict()
    found = [torch.load(tmp_path / f"result{rank}", weights_only=True) for rank in (0, 1)]
    for name, value in alone.net.state_dict().items():
        assert torch.equal(found[0]["net"][name], found[1]["net"][name]), name
        torch.testing.assert_close(found[0]["net"][name], value, rtol=0, atol=1e-5)
    moved = max(float((v - start[k]).abs().max()) for k, v in alone.net.state_dict().items())
    assert moved > 1e-4
    assert found[0]["losses"] == found[1]["losses"] == pytest.approx(alone.losses, abs=1e-5)
    assert [(tmp_path / f"told{rank}").read_text() for rank in (0, 1)] == ["[1, 2, 3, 4]", "[]"]
    assert (tmp_path / "state0").exists()
    assert not (tmp_path / "state1").exists()


def test_shares_are_the_whole_batch_and_nobody_is_idle() -> None:
    places = [list(range(5))[Team(rank, 2).share(5)] for rank in (0, 1)]
    assert sorted(itertools.chain(*places)) == list(range(5))
    assert Team().share(1) == slice(0, None, 1)
    with pytest.raises(BadRequestError, match="each of 4 processes"):
        Team(0, 4).share(3)
