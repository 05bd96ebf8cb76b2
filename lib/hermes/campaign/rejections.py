"""What a rejected label takes with it: the annotator's earlier drawings of the same structures, which it had replaced."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from hermes.types import CaseId, StructureName

Rejected = tuple[CaseId, str, int, Collection[StructureName]]
"""Image, annotator, number of the version, and what it annotated."""


class Rejections:
    """The rejected labels of some images.

    Without this, a rejection would bring back what the annotator had drawn before and had found worth a correction.

    Args:
        rejected: all of them.
    """

    def __init__(self, rejected: Iterable[Rejected]) -> None:
        self._latest: dict[tuple[CaseId, str, StructureName], int] = {}
        for image, annotator, number, structures in rejected:
            for structure in structures:
                key = (image, annotator, structure)
                self._latest[key] = max(number, self._latest.get(key, number))

    def leave(
        self, image: CaseId, annotator: str, number: int, structures: Collection[StructureName]
    ) -> list[StructureName]:
        """Of the structures of a label that was neither rejected nor approved, those that still count."""
        return [s for s in structures if self._latest.get((image, annotator, s), number) <= number]
