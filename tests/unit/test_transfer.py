"""A campaign's state written out and taken in again: nothing is lost, nothing is overwritten."""

from __future__ import annotations

import csv
import json
import sqlite3
from pathlib import Path

import pytest

from hermes.campaign.campaign import Campaign
from hermes.campaign.holdout import HoldoutRule
from hermes.campaign.openness import Wish
from hermes.campaign.records import ReviewState, Score
from hermes.campaign.transfer import read_json, write_csv, write_json
from hermes.errors import BadRequestError, ConflictError
from hermes.records import NewStructure


@pytest.fixture
def campaign_file(tmp_path: Path) -> Path:
    path = tmp_path / "campaign.sqlite"
    with Campaign(path, clock=lambda: 1000.0, holdout=HoldoutRule(0.5)) as campaign:
        campaign.sync_images([f"sub-{n}_a" for n in range(4)])
        campaign.quarantine("sub-3_a", 'broken, "very"\n')
        first = campaign.record_label(
            "sub-0_a", "final", "sub-0_a/0001.nii.gz", "0" * 64, "änna", {"liver": "present"}
        ).id
        campaign.record_label("sub-0_a", "final", "sub-0_a/0002.nii.gz", "1" * 64, "ben", {"liver": "absent"})
        campaign.reviews.review(first, ReviewState.REJECTED, reviewer="boss", comment="no")
        campaign.assignments.skip("sub-1_a", "ben", "motion")
        campaign.assignments.take("sub-2_a", "ben", 60, Wish())
        campaign.put_scores("uncertainty", "v1", [Score("sub-2_a", "", 0.25)])
        campaign.agreements.put_offered(first, "v1", {"liver": 0.5})
        campaign.confirmed.add([NewStructure("my organ", "liver")])
        campaign.finish_run(
            campaign.start_run([first]).id, version="v1", report={"gate": {"state": "passed"}}
        )
        campaign.record_version("v1", "v1", metrics={"mean": 0.5})
    return path


def rows_of(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with sqlite3.connect(path) as raw:
        names = [name for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {name: sorted(raw.execute(f"SELECT * FROM {name}"), key=repr) for name in names}
    raw.close()
    return found


def test_a_campaign_that_was_moved_is_the_same_but_for_its_leases(
    campaign_file: Path, tmp_path: Path
) -> None:
    counts = write_json(campaign_file, tmp_path / "x.json")
    assert (counts["images"], counts["labels"], counts["skips"], counts["scores"]) == (4, 2, 1, 1)
    moved = tmp_path / "elsewhere" / "campaign.sqlite"
    assert read_json(tmp_path / "x.json", moved) == counts
    before, after = rows_of(campaign_file), rows_of(moved)
    assert len(before.pop("leases")) == 1
    assert after.pop("leases") == []
    runs = before.pop("training_runs"), after.pop("training_runs")
    assert [("done" in before, "imported" in after) for before, after in zip(*runs, strict=True)] == [
        (True, True)
    ]
    assert after == before
    with Campaign(moved, holdout=HoldoutRule(0.0)) as campaign:  # goes on: numbers and patients continue
        assert (
            campaign.record_label("sub-0_a", "final", "p", "2" * 64, "ben", {"liver": "present"}).number == 3
        )
        assert campaign.labels_since_last_training() == 1  # no model came along: nothing is learned yet
        campaign.sync_images([*(f"sub-{n}_a" for n in range(4)), *(f"sub-{n}_b" for n in range(4))])
        held = campaign.holdout_ids()
        assert (
            {i[:5] for i in held}
            == {i[:5] for i in held if i.endswith("_b")}
            == {i[:5] for i in held if i.endswith("_a")}
        )


def test_what_is_no_export_is_refused_and_a_campaign_is_never_overwritten(
    campaign_file: Path, tmp_path: Path
) -> None:
    write_json(campaign_file, tmp_path / "x.json")
    before = rows_of(campaign_file)
    with pytest.raises(ConflictError, match="images"):
        read_json(tmp_path / "x.json", campaign_file)
    assert rows_of(campaign_file) == before
    good = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    bad: list[object] = [
        [], {"format": "other"}, good | {"schema": 99}, good | {"tables": {"nothing": []}},
        good | {"tables": {"images": [{"id": "a", "surprise": 1}]}},
    ]  # fmt: skip
    for number, document in enumerate(bad):
        (tmp_path / "bad.json").write_text(json.dumps(document), encoding="utf-8")
        with pytest.raises(BadRequestError):
            read_json(tmp_path / "bad.json", tmp_path / f"new-{number}.sqlite")


def test_every_table_is_a_csv_file(campaign_file: Path, tmp_path: Path) -> None:
    counts = write_csv(campaign_file, tmp_path / "tables")
    with (tmp_path / "tables" / "labels.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["annotator"] for row in rows] == ["änna", "ben"]
    assert json.loads(rows[1]["annotated"]) == {"liver": "absent"}
    with (tmp_path / "tables" / "images.csv").open(newline="", encoding="utf-8") as stream:
        assert [row["quarantined_reason"] for row in csv.DictReader(stream)][3] == 'broken, "very"\n'
    assert {path.stem for path in (tmp_path / "tables").iterdir()} == set(counts)
