"""A round over HTTP whose trainer and whose server are killed ends with the bits of one that nobody disturbed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from safetensors.numpy import load_file

from hermes.campaign.campaign import Campaign
from hermes.campaign.records import RunState
from hermes.checkpoint import load_checkpoint
from hermes.training.cases import TrainingCase
from hermes.training.trainer import Recipe, train
from hermes.types import CaseId, Modality
from tests.integration.test_campaign_state import server_pid
from tests.integration.test_loop import wait_for

ROUND_S = 6.0
"""How long a round is to train at least, so that it can be killed twice between its beginning and its end."""
GOING_ON = re.compile(r"Going on with an interrupted training at step (\d+)")
UNDISTURBED = """
import sys
from hermes.cli.versions import find_campaign, image_finder
from hermes.rounds import run_round
found = find_campaign(sys.argv[1], {})
run_round(found.open(starter=None), image_finder(found.studies))
"""
CONF = {"training_threads": "1", "holdout_share": "0", "device": "cpu", "precision": "fp32"}


def steps_of_a_round(model: Path) -> int:
    """As many as this machine takes in `ROUND_S` when nothing else runs on it."""
    net, _ = load_checkpoint(model)
    rng = np.random.default_rng(0)
    labels = (rng.random((32, 32, 32)) > 0.7).astype(np.uint8)
    case = TrainingCase(
        CaseId("a"), rng.normal(size=labels.shape).astype(np.float32), labels, {0: 1}, Modality.CT
    )
    recipe = replace(Recipe.for_cpu(), steps=8, patch=(32, 32, 32), batch_size=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        began = time.process_time()
        train(net, [case], recipe, device=torch.device("cpu"), seed=0)
        spent_s = time.process_time() - began
    finally:
        torch.set_num_threads(threads)
    return max(10, round(ROUND_S * recipe.steps / spent_s))


def copy_campaign(studies: Path, target: Path) -> None:
    """The same campaign a second time: images, labels, settings and database."""
    shutil.copytree(studies, target, ignore=shutil.ignore_patterns("campaign.sqlite*", "*.lock"))
    source = sqlite3.connect(studies / ".hermes" / "campaign.sqlite")
    copy = sqlite3.connect(target / ".hermes" / "campaign.sqlite")
    source.backup(copy)
    source.close(), copy.close()


def weights(studies: Path) -> tuple[str, dict[str, Any]]:
    """Name and tensors of the version that answers."""
    models = studies / ".hermes" / "models"
    name = (models / "current").read_text(encoding="utf-8").strip()
    return name, load_file(models / name / "model.safetensors")


def running(studies: Path) -> Any:
    with Campaign(studies / ".hermes" / "campaign.sqlite") as campaign:
        return campaign.current_run()


def wait_for_a_state(studies: Path, *, newer_than: float = 0.0) -> tuple[int, float]:
    """The process that trains and the age of its state, once it has kept one in the middle of its steps."""
    state = studies / ".hermes" / "training.state"
    wait_for(lambda: state.exists() and state.stat().st_mtime > newer_than, "a state of the training", 60)
    run = running(studies)
    assert run is not None, "the round was over before it could be killed"
    return run.pid, state.stat().st_mtime


def test_a_round_that_is_killed_twice_ends_with_the_same_bits(
    start: Any, truth: Any, tiny_model: Path, tmp_path: Path
) -> None:
    steps = steps_of_a_round(tiny_model)
    conf = {**CONF, "train_steps_per_round": str(steps)}
    with start(**conf) as server:
        studies, first_log = server.studies, server.log
        for image, case in list(server.cases.items())[:2]:
            label, params = truth(case)
            assert server.submit(image, label, params).status_code == 200
        copy_campaign(studies, tmp_path / "copy")
        assert server.post("/train/hermes", json={}).status_code == 200
        trainer, kept = wait_for_a_state(studies)
        os.kill(trainer, signal.SIGKILL)
        wait_for(
            lambda: server.get("/train/?check_if_running=true").status_code == 404, "the end of the trainer"
        )
        assert server.stats()["serving_version"] == "tiny"

        assert server.post("/train/hermes", json={}).status_code == 200
        trainer, _ = wait_for_a_state(studies, newer_than=kept)
        os.kill(server_pid(server.address), signal.SIGKILL)
        wait_for(lambda: not psutil.pid_exists(trainer), "the end of the trainer without its server", 20)

    # A new server begins by itself what a dead one has left.
    with start(studies=studies, **{**conf, "labels_per_round": "2"}) as server:
        wait_for(lambda: server.stats()["serving_version"] != "tiny", "a published version")
        resumed = [GOING_ON.findall(log.read_text(encoding="utf-8")) for log in (first_log, server.log)]
        published = server.stats()["serving_version"]
    [[once], [twice]] = resumed
    assert 0 < int(once) < int(twice) < steps
    with Campaign(studies / ".hermes" / "campaign.sqlite") as campaign:
        assert [run.state for run in campaign.runs()] == [RunState.FAILED, RunState.FAILED, RunState.DONE]

    subprocess.run([sys.executable, "-c", UNDISTURBED, str(tmp_path / "copy")], check=True, timeout=180)
    (name, expected), (ours, found) = weights(tmp_path / "copy"), weights(studies)
    assert name == ours == published  # the name is made of the weights' hash
    assert expected.keys() == found.keys()
    assert all(expected[key].tobytes() == found[key].tobytes() for key in expected)
