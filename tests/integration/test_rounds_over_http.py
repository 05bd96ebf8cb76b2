"""What a person does with rounds through the server: look before, stop, go on, add a structure, go back."""

from __future__ import annotations

from typing import Any

import requests

from hermes.campaign.records import RunState
from tests.integration.test_loop import wait_for


def train(server: Any, params: Any, **query: str) -> requests.Response:
    response: requests.Response = server.post("/train/hermes", json=params, params=query)
    return response


def refusals(server: Any) -> dict[str, int]:
    asked = {
        "mode": train(server, {"mode": "all"}),
        "replay": train(server, {"replay": "often"}),
        "distil": train(server, {"distil": -1}),
        "keep": train(server, {"keep": "some"}),
        "structure": train(server, {"structures": ["livr"]}),
        "part": server.post("/train/", json={"hermes": 5}),
        "parameter of a part": server.post("/train/", json={"hermes": {"speed": 5}}),
        "part for one": train(server, {"hermes": {"train_steps": 5}}),
        "unknown version": server.post("/hermes/versions/v0009-abcdef/publish"),
        "no parent": server.post("/hermes/rollback"),
    }
    for what, response in asked.items():
        assert isinstance(response.json()["detail"], str), what
    return {what: response.status_code for what, response in asked.items()}


def test_rounds_over_http(start: Any, truth: Any) -> None:
    with start(structures="liver", train_steps_per_round="3") as server:
        image, case = next(iter(server.cases.items()))
        idle = requests.delete(f"{server.address}/train/", timeout=60)
        assert (idle.status_code, idle.json()["status"]) == (200, "IDLE")
        assert server.get("/hermes/preflight").json()["ready"] is False

        label, params = truth(case, ("liver", "spleen"))
        refused = server.submit(image, label, params)
        assert refused.status_code == 400
        assert "new_structures" in refused.json()["detail"]
        assert server.get("/info/").json()["labels"] == ["liver"]
        confirmed = {**params, "new_structures": {"spleen": {"like": "liver"}}}
        assert server.submit(image, label, confirmed).status_code == 200
        info = server.get("/info/").json()
        assert info["labels"] == ["liver", "spleen"]
        assert info["models"]["hermes"]["labels"] == {"liver": 1, "spleen": 2}

        assert refusals(server) == {
            "mode": 400, "replay": 400, "distil": 400, "keep": 400, "structure": 400, "part": 400,
            "parameter of a part": 400, "part for one": 400, "unknown version": 404, "no parent": 409,
        }  # fmt: skip
        found = server.get("/hermes/preflight").json()
        assert found["ready"] is True
        assert {c["name"]: c["cases"] for c in found["structures"]} == {"liver": 1, "spleen": 1}

        begun = server.post(
            "/train/", json={"hermes": {"train_steps": 100_000}}
        )  # as MONAI Label's clients may
        assert begun.json()["hermes"]["result"]["status"] in ("SUBMITTED", "RUNNING"), begun.text
        wait_for(lambda: server.stats().get("step", 0) > 2, "some steps")
        stopped = requests.delete(f"{server.address}/train/", timeout=60).json()
        assert stopped["status"] == "STOPPED"
        assert "goes on where it was" in stopped["detail"]
        with server.campaign() as campaign:
            (run,) = campaign.runs()
        assert run.state is RunState.STOPPED
        assert run.steps > 2
        assert (server.studies / ".hermes" / "training.state").is_file()

        assert train(server, {}).status_code == 200
        wait_for(lambda: server.stats()["serving_version"] != "tiny", "a published version")
        version = server.stats()["serving_version"]
        wait_for(
            lambda: server.get("/train/?check_if_running=true").status_code == 404, "the end of the trainer"
        )
        progress = server.get("/train/").json()["progress"]
        assert progress["report"]["gate"]["state"] == "ungated"
        assert progress["report"]["version"] == version
        listed = server.get("/hermes/versions").json()
        assert [(v["name"], v["serving"]) for v in listed] == [("tiny", False), (version, True)]
        assert server.post("/hermes/rollback").json() == {"serving": "tiny"}
        assert server.infer(image).json()["model_version"] == "tiny"
        again = server.post(f"/hermes/versions/{version}/publish")
        assert again.json() == {"serving": version, "before": "tiny"}
        assert server.infer(image).json()["model_version"] == version
