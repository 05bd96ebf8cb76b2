"""States in which a request cannot be served, and what survives a killed server."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import psutil
import requests

from tests.integration.test_loop import wait_for


def trainers(studies: object) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        command = " ".join(process.info["cmdline"] or [])
        if "monailabel.interfaces.utils.app" in command and str(studies) in str(process.info["environ"]):
            found.append(process)
    return found


def server_pid(address: str) -> int:
    port = int(address.rsplit(":", 1)[1])
    return next(c.pid for c in psutil.net_connections("tcp") if c.laddr.port == port and c.status == "LISTEN")


def test_everything_labelled(start: Any, truth: Any) -> None:
    with start() as server:
        for image, case in server.cases.items():
            label, params = truth(case)
            assert server.submit(image, label, params).status_code == 200
        response = server.post("/activelearning/uncertainty", json={})
        assert response.status_code == 200
        assert "id" not in response.json()
        assert "All 5 readable images are labelled" in response.json()["detail"]


def test_corrupt_image_is_refused_and_does_not_block_the_campaign(start: Any) -> None:
    with start() as server:
        (server.studies / "broken.nii.gz").write_bytes(b"not an image")
        wait_for(lambda: server.get("/info/").json()["datastore"]["total"] == 6, "the new file", 30)
        response = server.infer("broken")
        assert response.status_code == 422
        assert "Expected" in response.json()["detail"]
        offered = set()
        for _ in range(6):
            offered.add(
                server.post("/activelearning/first", json={"client_id": f"c{len(offered)}"}).json().get("id")
            )
        assert offered == {*server.cases, None}


def test_second_training_is_refused(start: Any, truth: Any) -> None:
    with start(train_steps_per_round="100000") as server:
        image, case = next(iter(server.cases.items()))
        label, params = truth(case)
        assert server.submit(image, label, params).status_code == 200
        assert server.post("/train/hermes", json={}).status_code == 200
        second = server.post("/train/hermes", json={})
        assert second.status_code == 429
        assert "running" in second.json()["detail"]
        queued = server.post("/train/hermes?enqueue=true", json={})
        assert queued.status_code == 429
        wait_for(lambda: server.stats().get("phase") == "training", "the first step", 120)
        assert requests.delete(f"{server.address}/train/", timeout=60).json()["status"] == "STOPPED"
        wait_for(lambda: not trainers(server.studies), "the end of the trainer", 10)
        with server.campaign() as campaign:
            assert [run.state.value for run in campaign.runs()] == ["stopped"]
        assert server.stats()["serving_version"] == "tiny"


def test_killed_server_leaves_no_orphan_and_loses_nothing(start: Any, truth: Any) -> None:
    with start(labels_per_round="2", train_steps_per_round="2") as server:
        studies, cases = server.studies, list(server.cases.items())
        for image, case in cases[:2]:
            label, params = truth(case)
            assert server.submit(image, label, params).status_code == 200
        wait_for(lambda: server.stats()["serving_version"] != "tiny", "a published version")
        published = server.stats()["serving_version"]
        wait_for(lambda: not trainers(studies), "the end of the trainer", 60)
    with start(studies=studies, labels_per_round="2", train_steps_per_round="100000") as server:
        for image, case in cases[2:4]:
            label, params = truth(case)
            assert server.submit(image, label, params).status_code == 200
        wait_for(lambda: server.stats().get("phase") == "training" and trainers(studies), "training", 120)
        os.kill(server_pid(server.address), signal.SIGKILL)
        killed = time.monotonic()
        wait_for(lambda: not trainers(studies), "the end of the orphan", 10)
        assert time.monotonic() - killed < 10
    before = sorted((studies / ".hermes" / "models").iterdir())
    with start(studies=studies) as server:
        assert server.stats()["serving_version"] == published
        assert server.get("/info/").json()["datastore"]["completed"] == 4
        with server.campaign() as campaign:
            assert sorted(label.image_id for label in campaign.labels()) == sorted(
                image for image, _ in cases[:4]
            )
        assert server.infer(cases[4][0]).json()["model_version"] == published
    assert sorted((studies / ".hermes" / "models").iterdir()) == before


def test_what_is_deleted_trains_nothing_and_blocks_nothing(start: Any, truth: Any) -> None:
    with start() as server:
        names = list(server.cases)
        for image in names[:3]:
            label, params = truth(server.cases[image])
            assert server.submit(image, label, params).status_code == 200
        url = f"{server.address}/datastore"
        assert requests.delete(f"{url}/label", params={"id": names[0], "tag": "final"}, timeout=60).ok
        assert requests.delete(f"{url}/image", params={"id": names[1]}, timeout=60).ok
        (server.studies / f"{names[3]}.nii.gz").unlink()
        assert server.stats()["new_labels"] == 1
        assert server.post("/train/hermes", json={}).status_code == 200
        wait_for(lambda: server.stats()["serving_version"] != "tiny", "a published version")
        assert server.get("/info/").json()["datastore"]["completed"] == 1
        with server.campaign() as campaign:
            assert [label.image_id for label in campaign.labels()] == [names[2]]
            assert len(campaign.labels(latest=False)) == 1


def test_labelled_image_whose_file_is_gone_is_left_out(start: Any, truth: Any) -> None:
    with start() as server:
        names = list(server.cases)
        for image in names[:2]:
            label, params = truth(server.cases[image])
            assert server.submit(image, label, params).status_code == 200
        (server.studies / f"{names[0]}.nii.gz").unlink()
        result = server.post("/train/hermes?run_sync=true", json={})
        assert result.status_code == 200, result.text
        assert [s["image"] for s in result.json()["skipped"]] == [names[0]]
        assert result.json()["cases"] == 1


def test_prelabels_and_their_agreement_with_what_was_submitted(start: Any, truth: Any) -> None:
    with start() as server:
        image, case = next(iter(server.cases.items()))
        label, params = truth(case)
        assert server.submit(image, label, params).status_code == 200
        request = {"device": "cpu", "save_label": True, "label_tag": "original"}
        done = server.post("/batch/infer/hermes?images=labeled&run_sync=true", json=request)
        assert done.status_code == 200, done.text
        assert list(done.json()) == [image]
        tags = server.get("/datastore/?output=all").json()["objects"][image]["labels"]
        assert sorted(tags) == ["final", "original"]
        agreement = server.post("/scoring/agreement?run_sync=true", json={}).json()
        assert set(agreement) == {image}
        assert set(agreement[image]) == {"liver", "spleen"}
        assert all(0.0 <= value <= 1.0 for value in agreement[image].values())
