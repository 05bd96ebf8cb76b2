from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.clocks import Clock

from hermes.campaign.campaign import Campaign
from hermes.campaign.records import Score
from hermes.queueing import UNCERTAINTY_METHOD, Queue
from hermes.strategies import get_strategy

IMAGES = ["a", "b", "c"]


@pytest.fixture
def campaign(tmp_path: Path, clock: Clock) -> Iterator[Campaign]:
    with Campaign(tmp_path / "c.sqlite", clock=clock) as opened:
        opened.sync_images(IMAGES)
        yield opened


def queue(campaign: Campaign, lease_s: float = 60) -> Queue:
    return Queue(campaign, lease_s=lease_s, seed=0, serving_version=lambda: "v1")


FIRST = get_strategy("first")


def test_two_annotators_never_hold_one_image(campaign: Campaign) -> None:
    offers = [queue(campaign).offer(FIRST, IMAGES, f"annotator {n}").image_id for n in range(3)]
    assert offers == ["a", "b", "c"]
    last = queue(campaign).offer(FIRST, IMAGES, "late")
    assert last.image_id is None
    assert "other annotators" in last.reason


def test_asking_again_gives_another_image_first(campaign: Campaign) -> None:
    asked = [queue(campaign).offer(FIRST, IMAGES, "anna").image_id for _ in range(4)]
    assert asked[:3] == IMAGES
    assert asked[3] in IMAGES


def test_expired_reservation_is_offered_again(campaign: Campaign, clock: Clock) -> None:
    assert queue(campaign).offer(FIRST, IMAGES, "anna").image_id == "a"
    clock.now += 61
    assert queue(campaign).offer(FIRST, IMAGES, "ben").image_id == "a"


def test_most_uncertain_by_the_serving_version(campaign: Campaign) -> None:
    strategy = get_strategy("uncertainty")
    campaign.put_scores(UNCERTAINTY_METHOD, "v0", [Score("a", "", 0.9)])
    campaign.put_scores(
        UNCERTAINTY_METHOD, "v1", [Score(i, "", v) for i, v in zip(IMAGES, (0.1, 0.2, 0.7), strict=True)]
    )
    assert queue(campaign).offer(strategy, IMAGES, "anna").image_id == "c"


def test_labelled_and_unreadable_images_are_not_offered(campaign: Campaign) -> None:
    campaign.record_label("a", "final", "p", "0" * 64, "anna", {"liver": "present"})
    campaign.quarantine("b", "cannot be read")
    campaign.sync_images([*IMAGES, "gone"])
    offer = queue(campaign).offer(FIRST, IMAGES, "anna")
    assert offer.image_id == "c"
    assert offer.reason == "strategy 'first' among 2 images"  # as /info/ counts them
    campaign.record_label("c", "final", "p", "0" * 64, "anna", {"liver": "present"})
    done = queue(campaign).offer(FIRST, IMAGES, "anna")
    assert done.image_id is None
    assert "labelled" in done.reason
    assert "1 could not be read" in done.reason


def test_no_reservations_when_switched_off(campaign: Campaign) -> None:
    assert [queue(campaign, 0).offer(FIRST, IMAGES, f"c{n}").image_id for n in range(2)] == ["a", "a"]
