"""The calls that viewers make to choose, score and label ahead, on a server that does all of it."""

from __future__ import annotations

import time
from typing import Any

from hermes.strategies import STRATEGIES


def wait_for(condition: Any, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.5)


def test_every_strategy_offers_and_labels_lie_ready(start: Any, truth: Any) -> None:
    with start(prelabel="true", score_images_per_round="64", strategy="hybrid") as server:
        images = sorted(server.cases)

        def tags() -> dict[str, list[str]]:
            listing = server.get("/datastore/?output=all").json()["objects"]
            return {name: sorted(entry["labels"]) for name, entry in listing.items()}

        wait_for(lambda: all("original" in t for t in tags().values()))
        with server.campaign() as campaign:
            facts = campaign.facts.of("tiny")
        assert set(facts) == set(images)
        assert all(one.embedding() is not None for one in facts.values())
        ready = server.get(f"/datastore/label?label={images[0]}&tag=original")
        assert ready.status_code == 200
        assert len(ready.content) > 100
        info = server.get(f"/datastore/label/info?label={images[0]}&tag=original").json()
        assert info["params"]["model_version"] == "tiny"
        for number, name in enumerate(STRATEGIES):
            offer = server.post(
                f"/activelearning/{name}", json={"client_id": f"annotator {number % 3}"}
            ).json()
            assert offer["id"] in images
        label, params = truth(server.cases[images[0]], ("liver",))
        assert server.submit(images[0], label, {**params, "absent": []}).status_code == 200
        # What is labelled in one structure is still offered for the other, and not for the first.
        for structures, wanted in ((["liver"], images[1:]), (["spleen"], images)):
            asked = {"client_id": "annotator 0", "structures": structures}
            assert server.post("/activelearning/coverage", json=asked).json()["id"] in wanted
        done = server.post("/scoring/uncertainty?run_sync=true", json={})
        assert (done.status_code, done.json()) == (200, {"scored": 0})  # nothing has changed
        batch = server.post("/batch/infer/hermes?images=unlabeled&run_sync=true", json={"max_workers": 1})
        assert batch.status_code == 200
