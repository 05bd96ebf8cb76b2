"""The whole story in one test: next sample, infer, submit, train, publish, infer again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.client import MONAILabelClient

from hermes.campaign.records import Annotated, RunState
from hermes.transforms.reading import read_label_map

WAIT_S = 180


def wait_for(condition: Callable[[], bool], what: str, seconds: float = WAIT_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come within {seconds} s"
        time.sleep(0.3)


def test_campaign_end_to_end(start: Any, truth: Any, tmp_path: Path) -> None:
    with start(labels_per_round="2", score_images_per_round="64") as server:
        client = MONAILabelClient(server.address, str(tmp_path), "anna")
        info = client.info()
        assert info["labels"] == ["liver", "spleen"]
        assert info["models"]["hermes"]["labels"] == {"liver": 1, "spleen": 2}
        assert info["models"]["hermes"]["type"] == "segmentation"
        assert {"random", "uncertainty"} <= set(info["strategies"])
        assert {"uncertainty", "agreement"} <= set(info["scoring"])
        assert info["train_stats"]["hermes"]["serving_version"] == "tiny"
        assert info["datastore"] == {"total": 5, "completed": 0, "quarantined": 0, "label_tags": {}}

        labelled = []
        for _ in range(2):
            sample = client.next_sample("uncertainty", {})
            assert sample["id"] in server.cases
            assert sample["id"] not in labelled
            case = server.cases[sample["id"]]
            file, answer = client.infer("hermes", sample["id"], {"result_extension": ".nii.gz"})
            assert answer["model_version"] == "tiny"
            assert set(answer["structures"]) == {"liver", "spleen"}
            assert read_label_map(file).array.shape == case.labels.shape
            label, params = truth(case)
            client.save_label(sample["id"], str(label), params=params)
            labelled.append(sample["id"])

        wait_for(lambda: server.stats()["serving_version"] != "tiny", "a published version")
        version = server.stats()["serving_version"]
        assert server.infer(labelled[0]).json()["model_version"] == version
        wait_for(
            lambda: server.get("/train/?check_if_running=true").status_code == 404, "the end of the trainer"
        )
        assert server.get("/train/").json()["status"] == "DONE"

        with server.campaign() as campaign:
            labels = campaign.labels()
            assert sorted(label.image_id for label in labels) == sorted(labelled)
            assert {label.annotator for label in labels} == {"anna"}
            present = {name for name, state in labels[0].annotated.items() if state is Annotated.PRESENT}
            assert present <= {"liver", "spleen"}
            assert present
            assert [run.state for run in campaign.runs()] == [RunState.DONE]
            assert set(campaign.runs()[0].label_ids) == {label.id for label in labels}
            assert campaign.labels_since_last_training() == 0

        stored = client.download_label(labelled[0], "final")
        drawn = read_label_map(stored).array
        case = server.cases[labelled[0]]
        for name, value in {"liver": 1, "spleen": 2}.items():
            theirs = next(v for v, n in case.names.items() if n == name)
            np.testing.assert_array_equal(drawn == value, case.labels == theirs)


def test_new_structure_is_learned_from_its_first_labels(start: Any, truth: Any) -> None:
    with start(labels_per_round="1", structures="liver,my lesion") as server:
        image, case = next(iter(server.cases.items()))
        before = server.infer(image).json()
        assert before["not_learned_yet"] == ["my lesion"]
        assert "my lesion" not in before["structures"]
        label, _ = truth(case, ("liver", "stomach"))
        values = {n: v for v, n in case.names.items()}
        info = [{"name": "Liver", "idx": values["liver"]}, {"name": "my lesion", "idx": values["stomach"]}]
        assert server.submit(image, label, {"label_info": info}).status_code == 200
        wait_for(lambda: server.stats()["serving_version"] != "tiny", "a published version")
        after = server.infer(image).json()
        assert after["not_learned_yet"] == []
        assert set(after["structures"]) == {"liver", "my lesion"}
        assert after["label_names"] == {"liver": 1, "my lesion": 2}
