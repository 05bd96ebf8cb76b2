"""Who may be offered an image: pure rules over what is known of it.

The same rules decide in memory, where the next image is looked for, and in the transaction that reserves it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from hermes.types import CaseId, StructureName


@dataclass(frozen=True)
class Wish:
    """What the campaign wants of every image.

    Attributes:
        structures: that every image has to have annotated (present or absent); empty: any label will do.
        labels_per_image: how many annotators are to label each image, or each of the structures in it.
    """

    structures: tuple[StructureName, ...] = ()
    labels_per_image: int = 1


@dataclass(frozen=True)
class OpenRevisit:
    """A wish that an image be looked at again.

    Attributes:
        id: of the wish.
        annotator: who is asked; ``None``: anybody.
        reason: why, in words.
        rejected: whether it comes from a rejected label.
    """

    id: int
    annotator: str | None
    reason: str
    rejected: bool = False

    def asks(self, annotator: str) -> bool:
        """Whether the wish is for this annotator."""
        return self.annotator is None or self.annotator == annotator


@dataclass(frozen=True)
class ImageState:
    """What decides whether an image may be offered.

    Attributes:
        image_id: the image.
        usable: in the datastore, and readable as far as is known.
        labelled: annotator -> structures that the annotator's valid labels annotate, rejected ones left out.
        leases: annotator -> until when the image is reserved; those that have run out may be among them.
        skipped_by: who did not want the image.
        present: structures that somebody has drawn.
        revisits: open wishes, the first one first.
    """

    image_id: CaseId
    usable: bool = True
    labelled: Mapping[str, frozenset[StructureName]] = field(default_factory=dict)
    leases: Mapping[str, float] = field(default_factory=dict)
    skipped_by: frozenset[str] = frozenset()
    present: frozenset[StructureName] = frozenset()
    revisits: tuple[OpenRevisit, ...] = ()

    def holders(self, now: float) -> set[str]:
        """Who has the image reserved now."""
        return {annotator for annotator, until in self.leases.items() if until > now}

    def annotated(self) -> frozenset[StructureName]:
        """The structures that somebody has annotated."""
        return frozenset().union(*self.labelled.values())

    def missing(self, wish: Wish) -> tuple[StructureName, ...]:
        """The wished structures that too few annotators have annotated, in the order of the wish."""
        if not self.labelled:
            return wish.structures
        counts = Counter(name for names in self.labelled.values() for name in names)
        return tuple(name for name in wish.structures if counts[name] < wish.labels_per_image)

    def complete(self, wish: Wish) -> bool:
        """Whether nothing more is wished of the image."""
        if wish.structures:
            return not self.missing(wish)
        return len(self.labelled) >= wish.labels_per_image

    def revisit_for(self, annotator: str) -> OpenRevisit | None:
        """The wish that this annotator look again, if there is one."""
        return next((one for one in self.revisits if one.asks(annotator)), None)

    def places(self, annotator: str, wish: Wish) -> int:
        """How many annotators, this one among them, could still label the image; 0 when this one cannot."""
        own = self.labelled.get(annotator)
        if not wish.structures:
            return 0 if own is not None else max(0, wish.labels_per_image - len(self.labelled))
        counts = Counter(name for names in self.labelled.values() for name in names)
        left = [wish.labels_per_image - counts[s] for s in wish.structures if s not in (own or ())]
        return max(0, *left) if left else 0

    def may_take(self, annotator: str, wish: Wish, now: float) -> bool:
        """Whether the image may be reserved for this annotator now."""
        if not self.usable or annotator in self.skipped_by:
            return False
        others = sum(until > now and holder != annotator for holder, until in self.leases.items())
        if others >= wish.labels_per_image:
            return False  # thousands of images are looked through at an offer: the quick way out
        places = self.places(annotator, wish)
        if places == 0 and self.revisit_for(annotator) is not None:
            places = 1
        return others < places

    def held_for_another(self, annotator: str) -> bool:
        """Whether a rejected label waits for somebody else, who is to have the image first."""
        mine = self.revisit_for(annotator)
        return mine is None and any(one.rejected for one in self.revisits)
