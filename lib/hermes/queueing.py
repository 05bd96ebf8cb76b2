"""Which image an annotator gets next, and whose it is for a while."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hermes.campaign.campaign import Campaign
from hermes.strategies import Candidate, Strategy
from hermes.types import CaseId

UNCERTAINTY_METHOD = "uncertainty"


@dataclass(frozen=True)
class Offer:
    """An image to label, or the reason why there is none."""

    image_id: CaseId | None
    reason: str


class Queue:
    """Offers unlabelled images; an offered one is reserved for its annotator."""

    def __init__(
        self, campaign: Campaign, *, lease_s: float, seed: int, serving_version: Callable[[], str]
    ) -> None:
        """Offer images of ``campaign``.

        Args:
            campaign: whose labels, scores and leases count.
            lease_s: how long an image stays reserved, in seconds; 0 reserves nothing.
            seed: of strategies that draw lots.
            serving_version: name of the version whose scores count.
        """
        self._campaign, self._lease_s, self._seed, self._serving = campaign, lease_s, seed, serving_version

    def offer(self, strategy: Strategy, images: Sequence[CaseId], annotator: str) -> Offer:
        """The next image for ``annotator`` out of ``images``."""
        labelled = self._campaign.labelled_ids()
        broken = {i.id: i.quarantined_reason for i in self._campaign.images() if i.quarantined_reason}
        open_images = [i for i in images if i not in labelled and i not in broken]
        if not open_images:
            left_out = f" {len(broken)} could not be read and are left out." if broken else ""
            return Offer(
                None, f"All {len(labelled)} readable images are labelled: nothing is left to offer.{left_out}"
            )
        leases = self._campaign.active_leases()
        free = [i for i in open_images if i not in leases or leases[i].annotator == annotator]
        if not free:
            return Offer(
                None,
                f"The last {len(open_images)} unlabelled images are with other annotators now. Ask again later.",
            )
        scores = self._campaign.get_scores(UNCERTAINTY_METHOD, self._serving())
        # An image that this annotator was offered before and has not labelled comes behind all others.
        candidates = [Candidate(i, scores.get(i, {}), leased=i in leases) for i in free]
        for image_id in strategy.rank(candidates, seed=self._seed):
            if self._lease_s <= 0 or self._campaign.lease(image_id, annotator, self._lease_s):
                return Offer(image_id, f"strategy {strategy.name!r} among {len(free)} images")
        return Offer(None, "All unlabelled images were taken by other annotators just now. Ask again.")
