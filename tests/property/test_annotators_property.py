"""However annotators ask, skip, submit and go home: no image with two of them, none lost, work always goes on."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hermes.campaign.campaign import Campaign
from hermes.campaign.openness import Wish
from hermes.campaign.records import ReviewState
from hermes.queueing import Queue
from hermes.strategies import get_strategy

IMAGES = [f"image {n}" for n in range(4)]
ANNOTATORS = ["anna", "ben", "carl"]
LEASE_S = 60.0
WHO, WHICH = st.sampled_from(ANNOTATORS), st.sampled_from(IMAGES)


class Annotators(RuleBasedStateMachine):
    """Two servers on one database, an injected clock, and a model of what must hold."""

    @initialize(labels_per_image=st.integers(1, 2), required=st.booleans())
    def begin(self, labels_per_image: int, required: bool) -> None:
        self.now = 1000.0
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "c.sqlite"
        self.campaigns = [Campaign(path, clock=lambda: self.now) for _ in range(2)]
        self.campaigns[0].sync_images(IMAGES)
        self.wish = Wish(("liver", "spleen") if required else (), labels_per_image)
        self.queues = [
            Queue(
                one,
                lease_s=LEASE_S,
                seed=0,
                serving_version=lambda: "v",
                wish=lambda: self.wish,
                order_later=later,
            )
            for one, later in zip(self.campaigns, (False, True), strict=True)
        ]
        self.held: dict[tuple[str, str], float] = {}
        self.acknowledged: list[int] = []

    def teardown(self) -> None:
        if hasattr(self, "campaigns"):
            for one in self.campaigns:
                one.close()
            self.folder.cleanup()

    @rule(server=st.integers(0, 1), who=WHO, strategy=st.sampled_from(["first", "random"]))
    def ask(self, server: int, who: str, strategy: str) -> None:
        offer = self.queues[server].offer(get_strategy(strategy), IMAGES, who)
        if offer.image_id is None:
            # Nothing is offered only while nothing can be taken.
            states = self.campaigns[0].assignments.states().values()
            assert not [s.image_id for s in states if s.may_take(who, self.wish, self.now)]
            return
        holders = {a for (i, a), until in self.held.items() if i == offer.image_id and until > self.now}
        assert len(holders - {who}) < self.wish.labels_per_image
        assert who not in self.campaigns[0].assignments.states()[offer.image_id].skipped_by
        self.held[offer.image_id, who] = self.now + LEASE_S

    @rule(who=WHO, image=WHICH)
    def renew(self, who: str, image: str) -> None:
        if self.campaigns[0].assignments.renew(image, who, LEASE_S):
            [lease] = [
                one
                for one in self.campaigns[0].assignments.leases()
                if (one.image_id, one.annotator) == (image, who)
            ]
            self.held[image, who] = lease.until

    @rule(
        server=st.integers(0, 1),
        who=WHO,
        image=WHICH,
        structures=st.sets(st.sampled_from(["liver", "spleen"]), min_size=1),
    )
    def submit(self, server: int, who: str, image: str, structures: set[str]) -> None:
        annotated = {name: "present" for name in structures}
        label = self.campaigns[server].record_label(image, "final", "p", "0" * 64, who, annotated)
        self.acknowledged.append(label.id)
        self.held.pop((image, who), None)

    @rule(who=WHO, image=WHICH)
    def skip(self, who: str, image: str) -> None:
        self.campaigns[1].assignments.skip(image, who, "no")
        self.held.pop((image, who), None)

    @precondition(lambda self: self.acknowledged)
    @rule(data=st.data(), state=st.sampled_from(list(ReviewState)))
    def review(self, data: st.DataObject, state: ReviewState) -> None:
        label = data.draw(st.sampled_from(self.acknowledged))
        self.campaigns[0].reviews.review(label, state, reviewer="boss", comment="x", wish=self.wish)

    @rule(image=WHICH, who=st.none() | WHO)
    def revisit(self, image: str, who: str | None) -> None:
        self.campaigns[1].assignments.ask_revisit(image, asked_by="boss", annotator=who)

    @rule(seconds=st.sampled_from([1.0, 30.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def leases_are_those_that_were_given_and_end(self) -> None:
        if not hasattr(self, "campaigns"):
            return
        leases = {(one.image_id, one.annotator): one.until for one in self.campaigns[0].assignments.leases()}
        assert leases == {key: until for key, until in self.held.items() if until > self.now}
        assert all(until <= self.now + LEASE_S for until in leases.values())

    @invariant()
    def no_submission_is_lost(self) -> None:
        if hasattr(self, "campaigns"):
            assert [label.id for label in self.campaigns[1].labels(latest=False)] == sorted(
                self.acknowledged, key=self._place
            )

    def _place(self, label_id: int) -> tuple[str, int]:
        by_id = {label.id: label for label in self.campaigns[0].labels(latest=False)}
        return by_id[label_id].image_id, by_id[label_id].number


Annotators.TestCase.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
TestAnnotators = Annotators.TestCase
