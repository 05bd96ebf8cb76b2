"""Several annotators on one server, over HTTP."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.integration.conftest import Server


@pytest.fixture(scope="module")
def server(start: Callable[..., AbstractContextManager[Server]]) -> Iterator[Server]:
    with start(user_header="X-Remote-User", lease_minutes="10", labels_per_image="2") as running:
        yield running


def ask(server: Server, name: str, **more: Any) -> dict[str, Any]:
    headers = {"X-Remote-User": more.pop("user")} if "user" in more else {}
    answer = server.post("/activelearning/first", json={"client_id": name, **more}, headers=headers)
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def act(server: Server, what: str, **body: Any) -> requests.Response:
    return server.post(f"/hermes/{what}", json=body)


def test_the_story_of_one_image(server: Server, truth: Callable[..., tuple[Path, dict[str, Any]]]) -> None:
    images = sorted(server.cases)
    got = [ask(server, name)["id"] for name in ("anna", "ben")]
    assert got == [images[0]] * 2  # two labels per image
    assert ask(server, "somebody", user="carl")["id"] == images[1]
    leases = server.get("/hermes/leases").json()
    assert [(one["image_id"], one["annotator"]) for one in leases] == [
        (images[0], "anna"),
        (images[0], "ben"),
        (images[1], "carl"),
    ]

    # An inference prolongs the lease, and what it offered is compared with what comes back.
    with server.campaign() as campaign:
        campaign.assignments.take(images[0], "anna", 60, campaign_wish())
    answer = server.infer(images[0], {"client_id": "anna"})
    offered = answer.json()["params"] if "params" in answer.json() else answer.json()
    until = {one["annotator"]: one["until"] for one in server.get("/hermes/leases").json()}
    assert until["anna"] > time.time() + 300
    file, params = truth(server.cases[images[0]])
    assert server.submit(images[0], file, {**params, "client_id": "anna"}).ok
    campaign_now = server.get("/hermes/campaign").json()
    assert {row["structure"] for row in campaign_now["offered"]} == set(offered["label_names"])
    assert all(0 <= row["mean"] < 1 for row in campaign_now["offered"])
    assert [one["annotator"] for one in server.get("/hermes/leases").json()] == ["ben", "carl"]

    # The second annotator's label is kept beside the first, and their agreement is measured.
    del params["client_id"]
    refused = server.submit(images[0], file, params, client_id="b\ten")
    assert (refused.status_code, "'client_id'" in refused.json()["detail"]) == (400, True)
    assert server.submit(images[0], file, params, client_id="ben").ok  # in the query
    pairs = server.get("/hermes/campaign").json()["pairs"]
    assert {(one["first"], one["second"], one["dice"], one["hausdorff95_mm"]) for one in pairs} == {
        ("anna", "ben", 1.0, 0.0)
    }

    # Rejected: it goes back to its annotator first.
    [label] = [
        one for one in server.get(f"/hermes/labels?image={images[0]}").json() if one["annotator"] == "ben"
    ]
    rejected = act(
        server, "review", client_id="boss", label=label["label"], state="rejected", comment="too large"
    )
    assert rejected.status_code == 200
    assert ask(server, "dora")["id"] == images[1]
    again = ask(server, "ben")
    assert (again["id"], again["revisit"]) == (images[0], "too large")
    report = server.get("/hermes/report")
    assert report.headers["content-type"].startswith("text/html")
    assert "anna" in report.text


def campaign_wish() -> Any:
    from hermes.campaign.openness import Wish

    return Wish(labels_per_image=2)


def test_skips_and_wishes_to_look_again(server: Server) -> None:
    images = sorted(server.cases)
    first = ask(server, "eve")["id"]
    assert act(server, "skip", client_id="eve", image=first, reason="motion").status_code == 200
    second = ask(server, "eve")["id"]
    assert second not in (None, first)
    assert [one["reason"] for one in server.get("/hermes/skips").json()] == ["motion"]
    assert act(server, "revisit", client_id="boss", image=images[-1], annotator="eve", reason="look").ok
    assert ask(server, "eve")["id"] == images[-1]
    assert act(server, "release", client_id="eve", image=second).json()["released"] is True
    free = server.get("/hermes/queue?client_id=eve").json()
    assert free["images"] == len(images)
    assert free["free_for_annotator"] > 0


@pytest.mark.parametrize(
    ("what", "body", "status"),
    [
        ("skip", {}, 400),
        ("skip", {"client_id": "eve"}, 400),
        ("skip", {"client_id": "eve", "image": "nothing", "reason": "x"}, 404),
        ("skip", {"client_id": "eve", "image": 3, "reason": "x"}, 400),
        ("skip", {"image": "nothing", "reason": "x"}, 400),
        ("revisit", {"client_id": "eve", "image": "nothing"}, 404),
        ("revisit", {"client_id": "eve", "image": "nothing", "annotator": []}, 400),
        ("review", {"client_id": "eve", "label": 10**9, "state": "approved"}, 404),
        ("review", {"client_id": "eve", "label": "1", "state": "approved"}, 400),
        ("review", {"client_id": "eve", "label": True, "state": "approved"}, 400),
        ("review", {"client_id": "eve", "label": 1, "state": "good"}, 400),
        ("review", {"client_id": "eve", "image": "nothing", "state": "approved"}, 404),
        ("release", {"client_id": "eve"}, 400),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_reason(
    server: Server, what: str, body: dict[str, Any], status: int
) -> None:
    answer = act(server, what, **body)
    assert answer.status_code == status
    assert len(answer.json()["detail"]) > 10
    assert act(server, what, **{**body, "client_id": "\ud800"}).status_code in (400, 404)
    assert server.post(f"/hermes/{what}", json=[1]).status_code == 422


def test_structures_that_are_asked_for(server: Server) -> None:
    assert ask(server, "fay", structures=["Spleen"])["missing"] == ["spleen"]
    refused = server.post("/activelearning/first", json={"client_id": "fay", "structures": ["tail"]})
    assert refused.status_code == 400


def test_annotators_at_once_never_share_an_image(
    start: Callable[..., AbstractContextManager[Server]],
) -> None:
    with start() as running:
        got: list[str] = []
        threads = [
            threading.Thread(target=lambda n=n: got.append(ask(running, f"annotator {n}").get("id")))
            for n in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(got) == sorted(running.cases)
        done = running.post("/activelearning/first", json={"client_id": "late"})
        assert "other annotators" in json.dumps(done.json())


@pytest.mark.parametrize("name", ["", " ", "x" * 65, "an\nna", "\ud800", "\x7f", 7, ["eve"]], ids=ascii)
def test_a_name_that_names_nobody_is_refused_everywhere(
    server: Server, truth: Callable[..., tuple[Path, dict[str, Any]]], name: Any
) -> None:
    image = sorted(server.cases)[-1]
    file, params = truth(server.cases[image])
    before = (server.snapshot(), server.get("/hermes/leases").json(), server.get("/hermes/skips").json())
    said = {"image": image, "reason": "x", "label": 1, "state": "approved", "client_id": name}
    answers = [
        server.post("/activelearning/first", json={"client_id": name}),
        server.infer(image, {"client_id": name}),
        server.submit(image, file, {**params, "client_id": name}),
        *(act(server, what, **said) for what in ("skip", "release", "revisit", "review")),
        act(server, "revisit", **{**said, "client_id": "eve", "annotator": name or " "}),
    ]
    assert [answer.status_code for answer in answers] == [400] * 8
    assert all(len(answer.json()["detail"]) > 10 for answer in answers)
    assert (
        server.snapshot(),
        server.get("/hermes/leases").json(),
        server.get("/hermes/skips").json(),
    ) == before


def test_a_header_that_names_nobody_is_refused(server: Server) -> None:
    answer = requests.get(f"{server.address}/hermes/queue", headers={"X-Remote-User": "x" * 65}, timeout=60)
    assert answer.status_code == 400
    assert "X-Remote-User" in answer.json()["detail"]
    assert server.get("/hermes/queue?client_id=%0A").status_code == 400
    assert server.get("/hermes/queue").status_code == 200


def test_a_sample_does_not_tell_where_the_image_lies(server: Server) -> None:
    sample = ask(server, "gil")
    assert sample["path"] == ""
    assert sample["name"] == f"{sample['id']}.nii.gz"  # 3D Slicer stores its download under it
    told = server.get("/datastore/image/info", params={"image": sample["id"]})
    for text in (json.dumps(sample), told.text):
        assert str(server.studies) not in text
    image = server.get("/datastore/image", params={"image": sample["id"]})
    assert image.content == (server.studies / f"{sample['id']}.nii.gz").read_bytes()
    assert act(server, "release", client_id="gil", image=sample["id"]).json()["released"] is True


def test_withdrawn_versions_stay_in_the_list(
    server: Server, truth: Callable[..., tuple[Path, dict[str, Any]]]
) -> None:
    image = sorted(server.cases)[-1]
    file, params = truth(server.cases[image])
    for name in ("hal", "ida"):
        assert server.submit(image, file, {**params, "client_id": name}).ok
    before = server.get("/hermes/labels", params={"image": image}).json()
    assert [(one["annotator"], one["withdrawn"], one["withdrawn_at"]) for one in before] == [
        ("hal", False, None),
        ("ida", False, None),
    ]
    since = time.time()
    gone = requests.delete(
        f"{server.address}/datastore/label", params={"id": image, "tag": "final"}, timeout=60
    )
    assert gone.ok
    after = server.get("/hermes/labels", params={"image": image}).json()
    assert [one["label"] for one in after] == [one["label"] for one in before]
    assert all(one["withdrawn"] and since <= one["withdrawn_at"] <= time.time() for one in after)
    assert (
        act(server, "review", client_id="boss", label=after[0]["label"], state="approved").status_code == 404
    )
    assert server.submit(image, file, {**params, "client_id": "hal"}).ok
    listed = [one for one in server.get("/hermes/labels").json() if one["image"] == image]
    assert [(one["version"], one["withdrawn"]) for one in listed] == [(1, True), (2, True), (3, False)]
