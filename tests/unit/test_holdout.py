"""The hold-out: by patient, assigned once, never moved."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from hermes.campaign import Campaign, HoldoutRule
from hermes.campaign.holdout import patient_from_name

HALF = HoldoutRule(share=0.5, seed=3)
DATA = Path(__file__).parent / "data"


def ways(campaign: Campaign) -> dict[str, bool | None]:
    return {image.id: image.holdout for image in campaign.images()}


def submit(campaign: Campaign, image: str, patient: str | None = None) -> int:
    return campaign.record_label(
        image, "final", "p", "0" * 64, "ann", {"liver": "present"}, patient=patient
    ).id


@pytest.mark.parametrize(
    ("name", "patient"),
    [("sub-01_ses-1_T1w", "sub-01"), ("sub-01", "sub-01"), ("case_sub-01", "case_sub-01"), ("sub-", "sub-")],
)
def test_patients_of_plain_files(name: str, patient: str) -> None:
    assert patient_from_name(name) == patient


def test_the_share_is_what_was_asked_for() -> None:
    patients = [f"p{n}" for n in range(2000)]
    assert not any(HoldoutRule(0.0).holds_out(p) for p in patients)
    assert all(HoldoutRule(1.0).holds_out(p) for p in patients)
    assert 340 < sum(HoldoutRule(0.2).holds_out(p) for p in patients) < 460
    chosen = [{p for p in patients if HoldoutRule(0.2, seed).holds_out(p)} for seed in (0, 1)]
    assert chosen[0] != chosen[1]


def test_all_images_of_a_patient_go_the_same_way_whenever_they_come(tmp_path: Path) -> None:
    with Campaign(tmp_path / "c.sqlite", holdout=HALF) as campaign:
        first = [f"sub-{n}_a" for n in range(20)]
        campaign.sync_images(first)
        before = ways(campaign)
        assert set(before.values()) == {True, False}
    # Later images follow their patient, whatever the settings say by then.
    with Campaign(tmp_path / "c.sqlite", holdout=HoldoutRule(share=1.0, seed=9)) as campaign:
        later = [f"sub-{n}_b" for n in range(20)]
        campaign.sync_images([*first, *later])
        for n in range(20):
            submit(campaign, f"sub-{n}_c")
        after = {**ways(campaign)}
        for n in range(20):
            assert {after[f"sub-{n}_{x}"] for x in "abc"} == {before[f"sub-{n}_a"]}
        assert campaign.holdout_ids() == {i for i, way in after.items() if way}
        assert campaign.training_ids() == {i for i, way in after.items() if not way}


def test_the_datastore_says_whose_an_image_is(tmp_path: Path) -> None:
    whose = {f"i{n}": "one patient" for n in range(12)}
    with Campaign(tmp_path / "c.sqlite", holdout=HALF) as campaign:
        campaign.sync_images(whose, whose.get)
        submit(campaign, "late", "one patient")
        assert len(set(ways(campaign).values())) == 1
        assert len({image.patient_key for image in campaign.images()}) == 1
        assert "patient" not in str(campaign.images()[0].patient_key)


def test_the_share_never_moves_an_assigned_image(tmp_path: Path) -> None:
    names = [f"i{n}" for n in range(30)]
    with Campaign(tmp_path / "c.sqlite", holdout=HALF) as campaign:
        campaign.sync_images(names)
        before = ways(campaign)
    for share in (0.0, 1.0, 0.2):
        with Campaign(tmp_path / "c.sqlite", holdout=HoldoutRule(share)) as campaign:
            campaign.sync_images([])
            campaign.sync_images(names)
            submit(campaign, names[0])
            assert ways(campaign) == before


def test_the_assignment_moves_with_the_campaign(tmp_path: Path) -> None:
    with Campaign(tmp_path / "c.sqlite", holdout=HALF) as campaign:
        campaign.sync_images([f"sub-{n}_a" for n in range(10)])
        before = ways(campaign)
    (tmp_path / "moved").mkdir()
    shutil.copy(tmp_path / "c.sqlite", tmp_path / "moved" / "c.sqlite")
    with Campaign(tmp_path / "moved" / "c.sqlite", holdout=HoldoutRule(0.9)) as campaign:
        campaign.sync_images([f"sub-{n}_{x}" for n in range(10) for x in "ab"])
        assert {f"sub-{n}_a": ways(campaign)[f"sub-{n}_b"] for n in range(10)} == before


def test_two_campaigns_give_a_patient_two_pseudonyms(tmp_path: Path) -> None:
    keys = set()
    for name in ("a", "b"):
        with Campaign(tmp_path / f"{name}.sqlite") as campaign:
            campaign.sync_images(["image"])
            keys.add(campaign.images()[0].patient_key)
    assert len(keys) == 2


@pytest.fixture
def version_1(tmp_path: Path) -> Path:
    """A database as schema 1 had it: twelve images; the labels of "sub-0_a" and "sub-1_a" were trained on."""
    path = tmp_path / "old.sqlite"
    with sqlite3.connect(path) as raw:
        raw.executescript((DATA / "campaign-schema-1.sql").read_text(encoding="utf-8"))
        raw.execute("INSERT INTO schema_info VALUES (1)")
        for n in range(6):
            for x in "ab":
                raw.execute("INSERT INTO images (id, first_seen_at) VALUES (?, 1)", (f"sub-{n}_{x}",))
            raw.execute(
                "INSERT INTO labels VALUES (?, ?, 'final', 1, 'p', '0', 'ann', 1, NULL, 'annotator', '{}', NULL)",
                (n + 1, f"sub-{n}_a"),
            )
        raw.execute("INSERT INTO training_runs VALUES (1, 'done', 1, 2, 2, 'h', 1, '', 5, NULL, 'v')")
        raw.executemany("INSERT INTO training_run_labels VALUES (1, ?)", [(1,), (2,)])
        raw.execute("UPDATE images SET missing_since = 5 WHERE id = 'sub-1_a'")
    raw.close()
    return path


def test_an_old_database_is_migrated_in_place(version_1: Path) -> None:
    everything = HoldoutRule(share=1.0)
    with Campaign(version_1, holdout=everything) as campaign:
        assert {label.image_id for label in campaign.labels()} == {f"sub-{n}_a" for n in range(6)}
        assert campaign.training_ids() == {"sub-0_a", "sub-1_a"}  # nothing unassigned trains
        campaign.sync_images([f"sub-{n}_{x}" for n in range(6) for x in "ab" if (n, x) != (1, "a")])
        assert [run.report for run in campaign.runs()] == [None]
        assert campaign.confirmed.all() == ()
        # What was trained on can measure nothing any more, nor can other images of these patients.
        assert campaign.training_ids() == {f"sub-{n}_{x}" for n in (0, 1) for x in "ab"}
        assert campaign.holdout_ids() == {f"sub-{n}_{x}" for n in range(2, 6) for x in "ab"}
    with Campaign(version_1, holdout=HoldoutRule(0.0)) as again:
        assert len(again.holdout_ids()) == 8


def test_a_patient_edited_into_both_groups_trains_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    with Campaign(path) as campaign:
        campaign.sync_images(["sub-1_a", "sub-1_b", "sub-2_a"])
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE images SET holdout = 1 WHERE id = 'sub-1_a'")
    raw.close()
    with Campaign(path) as campaign:
        assert campaign.training_ids() == {"sub-2_a"}
