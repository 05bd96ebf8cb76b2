"""Who may take which image: leases, several labels per image, skips, revisits, reviews."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.clocks import Clock

from hermes.campaign.campaign import Campaign
from hermes.campaign.openness import ImageState, OpenRevisit, Wish
from hermes.campaign.records import ReviewState
from hermes.campaign.reviews import label_to_review
from hermes.config import Quota
from hermes.errors import BadRequestError, NotFoundError
from hermes.queueing import Queue
from hermes.strategies import get_strategy

IMAGES = ["a", "b", "c"]
FIRST = get_strategy("first")
ANY_LABEL = Wish()


@pytest.fixture
def campaign(tmp_path: Path, clock: Clock) -> Iterator[Campaign]:
    with Campaign(tmp_path / "c.sqlite", clock=clock) as opened:
        opened.sync_images(IMAGES)
        yield opened


def queue(campaign: Campaign, wish: Wish = ANY_LABEL, quotas: tuple[Quota, ...] = ()) -> Queue:
    return Queue(campaign, lease_s=60, seed=0, serving_version=lambda: "v1", wish=lambda: wish, quotas=quotas)


def submit(campaign: Campaign, image: str, annotator: str, **annotated: str) -> int:
    about = annotated or {"liver": "present"}
    return campaign.record_label(image, "final", f"{image}.nii.gz", "0" * 64, annotator, about).id


def test_activity_prolongs_a_lease_and_brings_back_one_that_nobody_took(
    campaign: Campaign, clock: Clock
) -> None:
    work = campaign.assignments
    assert work.take("a", "anna", 60, Wish())
    clock.now += 50
    assert work.renew("a", "anna", 60)
    clock.now += 50
    assert work.take("a", "ben", 60, Wish()) is None
    clock.now += 11
    assert work.renew("a", "anna", 60)  # had run out, and was free
    assert work.take("a", "ben", 60, Wish()) is None
    clock.now += 61
    assert work.take("a", "ben", 60, Wish())
    assert not work.renew("a", "anna", 60)
    assert not work.renew("b", "anna", 60)


def test_a_submission_ends_the_lease_and_tells_how_long_it_took(campaign: Campaign, clock: Clock) -> None:
    work = campaign.assignments
    work.take("a", "anna", 60, Wish())
    clock.now += 42
    submit(campaign, "a", "anna")
    submit(campaign, "b", "anna")
    assert work.leases() == []
    assert [event.payload["seconds"] for event in campaign.events("LabelSubmitted")] == [42, None]


def test_a_draft_ends_no_lease(campaign: Campaign) -> None:
    campaign.assignments.take("a", "anna", 60, Wish())
    campaign.record_label("a", "draft", "p", "0" * 64, "anna", {"liver": "present"})
    assert [lease.image_id for lease in campaign.assignments.leases()] == ["a"]


def test_each_image_goes_to_as_many_different_annotators_as_asked(campaign: Campaign) -> None:
    q = queue(campaign, Wish(labels_per_image=2))
    assert q.offer(FIRST, ["a"], "anna").image_id == "a"
    assert q.offer(FIRST, ["a"], "ben").image_id == "a"
    assert q.offer(FIRST, ["a"], "carl").image_id is None
    submit(campaign, "a", "anna")
    assert q.offer(FIRST, ["a"], "carl").image_id is None  # ben has the second place
    assert q.offer(FIRST, ["a"], "anna").image_id is None
    submit(campaign, "a", "ben")
    assert "nothing is left" in q.offer(FIRST, ["a"], "carl").reason
    assert {label.annotator for label in campaign.labels(latest=False)} == {"anna", "ben"}


def test_an_image_with_one_structure_is_open_for_another(campaign: Campaign) -> None:
    q = queue(campaign, Wish(("liver", "pancreas")))
    submit(campaign, "a", "anna", liver="present")
    offer = q.offer(FIRST, IMAGES, "ben")
    assert (offer.image_id, offer.structures) == ("a", ("pancreas",))
    submit(campaign, "a", "ben", pancreas="absent")
    assert q.offer(FIRST, IMAGES, "ben").image_id == "b"
    assert q.offer(FIRST, ["a"], "carl", ["spleen"]).image_id == "a"  # asked for in the request
    assert q.offer(FIRST, ["a"], "dora", ["liver"]).image_id is None


def test_a_skipped_image_comes_back_to_others_only(campaign: Campaign) -> None:
    q = queue(campaign)
    assert q.offer(FIRST, ["a"], "anna").image_id == "a"
    campaign.assignments.skip("a", "anna", "  motion ")
    nothing = q.offer(FIRST, ["a"], "anna")
    assert nothing.image_id is None
    assert "you skipped" in nothing.reason
    assert q.offer(FIRST, ["a"], "ben").image_id == "a"
    assert [(skip.annotator, skip.reason) for skip in campaign.assignments.skips()] == [("anna", "motion")]
    for reason in ("", " ", "x" * 2001):
        with pytest.raises(BadRequestError, match="reason"):
            campaign.assignments.skip("a", "ben", reason)
    with pytest.raises(NotFoundError):
        campaign.assignments.skip("zz", "ben", "why not")


def test_a_wish_to_look_again_comes_first_and_is_fulfilled_by_a_label(campaign: Campaign) -> None:
    q = queue(campaign)
    submit(campaign, "c", "anna")
    campaign.assignments.skip("b", "anna", "later")
    campaign.assignments.ask_revisit("c", asked_by="boss", reason="the tail is missing")
    campaign.assignments.ask_revisit("b", asked_by="boss", annotator="anna")
    assert q.offer(FIRST, IMAGES, "ben").image_id == "c"
    assert q.offer(FIRST, IMAGES, "anna").image_id == "b"
    assert q.offer(FIRST, IMAGES, "anna").image_id == "a"  # c is with ben
    submit(campaign, "c", "ben")
    open_wishes = campaign.assignments.revisits()
    assert [(wish.image_id, wish.annotator) for wish in open_wishes] == [("b", "anna")]
    assert [wish.closed_by for wish in campaign.assignments.revisits(only_open=False)] == ["ben", None]


def test_a_rejected_label_trains_nothing_and_goes_back_to_its_annotator_first(campaign: Campaign) -> None:
    q = queue(campaign)
    label = submit(campaign, "b", "anna")
    assert [one.id for one in campaign.training_labels()] == [label]
    with pytest.raises(BadRequestError, match="comment"):
        campaign.reviews.review(label, ReviewState.REJECTED, reviewer="boss")
    campaign.reviews.review(label, ReviewState.REJECTED, reviewer="boss", comment="wrong side")
    assert campaign.training_labels() == []
    assert campaign.labels_since_last_training() == 0
    assert [q.offer(FIRST, IMAGES, "ben").image_id for _ in range(2)] == ["a", "c"]
    again = q.offer(FIRST, IMAGES, "anna")
    assert (again.image_id, again.revisit) == ("b", "wrong side")
    campaign.assignments.release("b")
    assert q.offer(FIRST, IMAGES, "ben").image_id == "b"  # nothing else is left, and work goes on
    new = submit(campaign, "b", "anna")
    assert [one.id for one in campaign.training_labels()] == [new]
    assert campaign.assignments.revisits() == []


def test_a_rejection_does_not_bring_back_what_the_label_had_replaced(campaign: Campaign) -> None:
    q = queue(campaign)
    first, second = submit(campaign, "b", "anna"), submit(campaign, "b", "anna")
    campaign.reviews.review(second, ReviewState.REJECTED, reviewer="boss", comment="redo")
    assert campaign.training_labels() == []
    assert (q.offer(FIRST, IMAGES, "anna").image_id, campaign.labels_since_last_training()) == ("b", 0)
    campaign.reviews.review(
        first, ReviewState.APPROVED, reviewer="boss"
    )  # somebody looked at it and wants it
    assert [one.id for one in campaign.training_labels()] == [first]


def test_a_rejection_leaves_other_structures_and_other_annotators_alone(campaign: Campaign) -> None:
    def draw(annotator: str, *structures: str) -> int:
        drawn = {name: "present" for name in structures}
        return campaign.record_label("b", "final", "b.nii.gz", "0", annotator, drawn).id

    both, by_ben, liver = draw("anna", "liver", "spleen"), draw("ben", "liver"), draw("anna", "liver")
    campaign.reviews.review(liver, ReviewState.REJECTED, reviewer="boss", comment="redo")
    taken = {one.id: set(one.annotated) for one in campaign.training_labels()}
    assert taken == {both: {"spleen"}, by_ben: {"liver"}}
    state = campaign.assignments.states()["b"]
    assert state.labelled == {"anna": {"spleen"}, "ben": {"liver"}}


def test_a_word_taken_back_counts_again(campaign: Campaign) -> None:
    label = submit(campaign, "a", "anna")
    campaign.reviews.review(label, ReviewState.REJECTED, reviewer="boss", comment="no")
    campaign.reviews.review(label, ReviewState.APPROVED, reviewer="boss")
    assert campaign.reviews.all()[label].state is ReviewState.APPROVED
    assert campaign.assignments.revisits() == []
    assert queue(campaign).offer(FIRST, ["a"], "anna").image_id is None
    with pytest.raises(NotFoundError):
        campaign.reviews.review(99, ReviewState.APPROVED, reviewer="boss")


def test_the_latest_approved_label_trains_a_structure_else_the_latest(campaign: Campaign) -> None:
    first = submit(campaign, "a", "anna", liver="present", spleen="present")
    second = submit(campaign, "a", "ben", liver="present")
    assert {one.id: set(one.annotated) for one in campaign.training_labels()} == {
        first: {"spleen"},
        second: {"liver"},
    }
    campaign.reviews.review(first, ReviewState.APPROVED, reviewer="boss")
    assert {one.id: set(one.annotated) for one in campaign.training_labels()} == {first: {"liver", "spleen"}}
    assert label_to_review(campaign.labels(latest=False), "a").id == second
    assert label_to_review(campaign.labels(latest=False), "a", "anna").id == first
    with pytest.raises(NotFoundError):
        label_to_review(campaign.labels(latest=False), "b")


def test_images_that_serve_only_full_quotas_come_last(campaign: Campaign) -> None:
    q = queue(campaign, Wish(("liver", "spleen")), (Quota("liver", 1),))
    submit(campaign, "a", "x", spleen="present")
    submit(campaign, "c", "x", liver="present")
    assert q.full_quotas() == {"liver": True}
    assert [q.offer(FIRST, IMAGES, "anna").image_id for _ in range(3)] == ["b", "c", "a"]
    campaign.assignments.release("a")
    assert "quotas" in q.offer(FIRST, ["a"], "ben").reason


def test_another_process_is_noticed(campaign: Campaign, tmp_path: Path, clock: Clock) -> None:
    q = queue(campaign)
    assert q.offer(FIRST, IMAGES, "anna").image_id == "a"
    with Campaign(tmp_path / "c.sqlite", clock=clock) as other:
        assert queue(other).offer(FIRST, IMAGES, "ben").image_id == "b"
        submit(other, "c", "ben")
        assert q.offer(FIRST, IMAGES, "carl").image_id is None
        other.assignments.release("b")
        assert q.offer(FIRST, IMAGES, "carl").image_id == "b"
        other.quarantine("a", "broken")
        other.sync_images([*IMAGES, "d"])
        clock.now += 61
        assert q.offer(FIRST, [*IMAGES, "d"], "dora").image_id == "b"
        assert q.offer(FIRST, [*IMAGES, "d"], "dora").image_id == "d"


def test_an_order_made_beside_the_offers_takes_over(campaign: Campaign) -> None:
    q = Queue(campaign, lease_s=60, seed=0, serving_version=lambda: "v1", order_later=True)
    assert q.offer(FIRST, ["a", "b"], "anna").image_id == "a"
    campaign.sync_images([*IMAGES, "0"])
    offers = [q.offer(FIRST, [*IMAGES, "0"], f"annotator {n}").image_id for n in range(3)]
    assert sorted(offers, key=str) == ["0", "b", "c"]  # each once, whichever order they went by


@pytest.mark.parametrize(
    ("state", "wish", "takes"),
    [
        (ImageState("a"), Wish(), True),
        (ImageState("a", usable=False), Wish(), False),
        (ImageState("a", skipped_by=frozenset({"anna"})), Wish(), False),
        (ImageState("a", leases={"ben": 11.0}), Wish(), False),
        (ImageState("a", leases={"ben": 10.0}), Wish(), True),
        (ImageState("a", leases={"ben": 11.0}), Wish(labels_per_image=2), True),
        (ImageState("a", labelled={"ben": frozenset({"liver"})}), Wish(), False),
        (ImageState("a", labelled={"ben": frozenset({"liver"})}), Wish(("liver", "spleen")), True),
        (ImageState("a", labelled={"ben": frozenset({"liver"})}), Wish(labels_per_image=2), True),
        (ImageState("a", labelled={"anna": frozenset({"liver"})}), Wish(labels_per_image=2), False),
        (ImageState("a", labelled={"anna": frozenset({"liver"})}), Wish(("liver",), 2), False),
        (
            ImageState("a", labelled={"anna": frozenset()}, revisits=(OpenRevisit(1, "anna", ""),)),
            Wish(),
            True,
        ),
        (
            ImageState("a", labelled={"anna": frozenset()}, revisits=(OpenRevisit(1, "ben", ""),)),
            Wish(),
            False,
        ),
    ],
)
def test_who_may_take_an_image(state: ImageState, wish: Wish, takes: bool) -> None:
    assert state.may_take("anna", wish, 10.0) is takes
