"""The queue of labels for the PACS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.clocks import Clock

from hermes.campaign import Campaign
from hermes.campaign.events import LABEL_WITHDRAWN
from hermes.campaign.uploads import FIRST_DELAY_S, LONGEST_DELAY_S, Upload, UploadState
from hermes.errors import NotFoundError


@pytest.fixture
def campaign(tmp_path: Path, clock: Clock) -> Iterator[Campaign]:
    with Campaign(tmp_path / "c.sqlite", clock=clock) as opened:
        yield opened


def add(campaign: Campaign, name: str = "a") -> Upload:
    label = campaign.record_label(name, "final", f"{name}/0001.nii.gz", "0", "anna", {"liver": "present"})
    return campaign.uploads.add(name, label.path, {"annotator": "anna"}, f"1.2.{label.id}", label_id=label.id)


def test_each_upload_is_claimed_once_and_in_order(campaign: Campaign) -> None:
    first, second = add(campaign, "a"), add(campaign, "b")
    claimed = [campaign.uploads.claim(), campaign.uploads.claim(), campaign.uploads.claim()]
    assert [upload and upload.id for upload in claimed] == [first.id, second.id, None]
    assert claimed[0] is not None
    assert claimed[0].about == {"annotator": "anna"}
    assert claimed[0].attempts == 1
    campaign.uploads.done(first.id)
    counts = {state: count for state, count in campaign.uploads.counts().items() if count}
    assert counts == {"uploading": 1, "done": 1}
    assert len(campaign.uploads.counts()) == len(UploadState)


def test_a_label_is_queued_once(campaign: Campaign) -> None:
    upload = add(campaign)
    again = campaign.uploads.add("a", "a/0001.nii.gz", {}, "9.9", label_id=upload.label_id)
    assert again == upload
    assert campaign.uploads.label_ids() == {upload.label_id}


def test_tries_come_later_and_later(campaign: Campaign, clock: Clock) -> None:
    upload = add(campaign)
    waits = []
    for _ in range(10):
        assert campaign.uploads.claim() is not None
        campaign.uploads.postpone(upload.id, "no connection")
        assert campaign.uploads.claim() is None
        waits.append(campaign.uploads.all()[0].next_try_at - clock.now)
        clock.now = campaign.uploads.all()[0].next_try_at
    assert waits[:3] == [FIRST_DELAY_S, 2 * FIRST_DELAY_S, 4 * FIRST_DELAY_S]
    assert waits[-1] == LONGEST_DELAY_S
    assert campaign.uploads.all()[0].last_error == "no connection"


def test_what_failed_for_good_waits_for_somebody(campaign: Campaign, clock: Clock) -> None:
    upload = add(campaign)
    campaign.uploads.claim()
    campaign.uploads.fail(upload.id, "refused")
    clock.now += 10 * LONGEST_DELAY_S
    assert campaign.uploads.claim() is None
    assert campaign.uploads.retry(failed=False) == 0
    assert campaign.uploads.retry() == 1
    assert campaign.uploads.claim() is not None


def test_a_new_server_goes_on_with_what_was_under_way(tmp_path: Path) -> None:
    with Campaign(tmp_path / "c.sqlite") as first:
        upload = add(first)
        assert first.uploads.claim() is not None
    with Campaign(tmp_path / "c.sqlite") as second:
        assert second.uploads.claim() is None
        assert second.uploads.resume() == 1
        claimed = second.uploads.claim()
        assert claimed is not None
        assert (claimed.sop_instance_uid, claimed.attempts) == (upload.sop_instance_uid, 2)


def test_a_label_that_is_taken_back_before_a_try_is_not_stored(campaign: Campaign) -> None:
    upload = add(campaign)
    assert campaign.uploads.withdraw(upload.id) is UploadState.CANCELLED
    assert campaign.uploads.claim() is None
    assert campaign.uploads.retry() == 0
    assert campaign.uploads.withdraw(upload.id) is UploadState.CANCELLED


@pytest.mark.parametrize("end", ["done", "postpone", "fail"])
def test_what_may_be_stored_is_to_be_removed_however_the_try_ends(
    campaign: Campaign, clock: Clock, end: str
) -> None:
    upload = add(campaign)
    campaign.uploads.claim()
    assert campaign.uploads.withdraw(upload.id) is UploadState.WITHDRAWING  # while it is being stored
    getattr(campaign.uploads, end)(upload.id, *(() if end == "done" else ("no answer",)))
    assert campaign.uploads.all()[0].state is UploadState.WITHDRAWING
    clock.now += LONGEST_DELAY_S
    claimed = campaign.uploads.claim()
    assert claimed is not None
    assert claimed.state is UploadState.WITHDRAWING
    campaign.uploads.postpone(upload.id, "no connection")
    assert campaign.uploads.claim() is None  # later
    assert campaign.uploads.retry(failed=False) == 1
    assert campaign.uploads.claim() is not None
    campaign.uploads.withdrawn(upload.id)
    assert (campaign.uploads.all()[0].state, campaign.uploads.claim()) == (UploadState.WITHDRAWN, None)


def test_a_stored_label_is_removed_and_one_that_others_stored_is_kept(campaign: Campaign) -> None:
    ours = add(campaign, "a")
    campaign.uploads.claim()
    campaign.uploads.done(ours.id)
    label = campaign.record_label("b", "final", "b/0001.nii.gz", "0", "anna", {"liver": "present"})
    theirs = campaign.uploads.add("b", label.path, {}, "1.2.99", label_id=label.id, done=True)
    assert campaign.uploads.withdraw(ours.id) is UploadState.WITHDRAWING
    assert campaign.uploads.withdraw(theirs.id) is UploadState.KEPT
    campaign.uploads.keep(ours.id, "405")
    assert [(one.state, bool(one.last_error)) for one in campaign.uploads.all()] == [
        (UploadState.KEPT, True)
    ] * 2
    assert campaign.uploads.retry() == 0


def test_unknown_upload(campaign: Campaign) -> None:
    with pytest.raises(NotFoundError):
        campaign.uploads.done(7)


def test_one_version_is_withdrawn_and_the_one_before_counts_again(campaign: Campaign) -> None:
    versions = [
        campaign.record_label("a", "final", f"a/{n}.nii.gz", "0", "anna", {"liver": "present"})
        for n in (1, 2)
    ]
    assert campaign.pacs.withdraw([versions[1].id]) == 1
    assert [label.id for label in campaign.labels()] == [versions[0].id]
    assert campaign.pacs.withdraw([versions[1].id]) == 0
    assert [event.payload["image"] for event in campaign.events(LABEL_WITHDRAWN)] == ["a"]
