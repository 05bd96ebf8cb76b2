"""A process that is killed in the middle of its work loses nothing that was acknowledged, and blocks nobody for long."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hermes.campaign.campaign import Campaign
from hermes.campaign.openness import Wish
from hermes.queueing import Queue
from hermes.strategies import get_strategy

LEASE_S = 2.0
WORKER = """
import random, sys
from hermes.campaign.campaign import Campaign
from hermes.queueing import Queue
from hermes.strategies import get_strategy
path, notes, seed = sys.argv[1:]
rng = random.Random(seed)
with Campaign(path) as campaign, open(notes, "a") as notes:
    images = [image.id for image in campaign.images()]
    queue = Queue(campaign, lease_s=2.0, seed=0, serving_version=lambda: "v1")
    for _ in range(200):
        who, action = rng.choice("abc"), rng.random()
        offer = queue.offer(get_strategy("random"), images, who)
        if offer.image_id is None:
            continue
        if action < 0.6:
            label = campaign.record_label(offer.image_id, "final", "p", "0", who, {"liver": "present"})
            notes.write(f"{label.id}\\n")
            notes.flush()
        elif action < 0.7:
            campaign.assignments.skip(offer.image_id, who, "no")
"""


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nothing_acknowledged_is_lost_and_no_lease_stays(tmp_path: Path, seed: int) -> None:
    path, notes = tmp_path / "c.sqlite", tmp_path / "acknowledged"
    with Campaign(path) as campaign:
        campaign.sync_images([f"image-{n:03d}" for n in range(200)])
    notes.touch()
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(path), str(notes), str(seed)])
    aim = random.Random(seed).randint(3, 60)
    while len(notes.read_text().splitlines()) < aim:
        assert worker.poll() is None
        time.sleep(0.002)
    worker.send_signal(signal.SIGKILL)
    assert worker.wait() == -signal.SIGKILL

    acknowledged = {int(line) for line in notes.read_text().split()}
    raw = sqlite3.connect(path)
    assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
    raw.close()
    with Campaign(path) as campaign:
        labels = campaign.labels(latest=False)
        assert len(acknowledged) >= aim
        assert (
            acknowledged
            <= {label.id for label in labels}
            == {json.loads(json.dumps(event.payload))["label"] for event in campaign.events("LabelSubmitted")}
        )
        assert all(lease.until <= time.time() + LEASE_S for lease in campaign.assignments.leases())
    with Campaign(path, clock=lambda: time.time() + LEASE_S) as later:
        assert later.assignments.leases() == []
        states = later.assignments.states()
        free = [name for name, state in states.items() if state.may_take("new", Wish(), later.now())]
        offer = Queue(later, lease_s=LEASE_S, seed=0, serving_version=lambda: "v1").offer(
            get_strategy("first"), sorted(states), "new"
        )
        assert offer.image_id == min(free)
