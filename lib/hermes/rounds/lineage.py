"""What the serving version, and the versions that it came from, were taught: which labels, for which rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from hermes.checkpoint import Manifest, UsedCase, read_manifest
from hermes.errors import HermesError
from hermes.publish import Serving, VersionStore
from hermes.training.cases import TrainingCase

LabelKey = tuple[int, str]
"""Number of a label in the database and SHA-256 of its file: the number alone may be another campaign's."""


def label_key(used: UsedCase | None) -> LabelKey | None:
    """What the label of a case is known by; None: it came from no campaign."""
    if used is None or used.label_id is None or used.label_sha256 is None:
        return None
    return used.label_id, used.label_sha256


@dataclass(frozen=True)
class Lineage:
    """The serving version and its ancestors, newest first, as far back as their manifests can be read.

    Attributes:
        versions: name and manifest of each.
    """

    versions: tuple[tuple[str, Manifest], ...]

    @classmethod
    def of(cls, store: VersionStore, serving: Serving, manifest: Manifest) -> Lineage:
        """The lineage of what answers now."""
        return cls(tuple(_back_from(store, serving.name, manifest)))

    @cached_property
    def taught(self) -> dict[int, set[LabelKey]]:
        """Row -> the labels that any of the versions was taught it by."""
        return _by_row(used for _, manifest in self.versions for used in manifest.trained_on)

    @cached_property
    def labels(self) -> set[LabelKey]:
        """The labels that any of the versions was taught something by."""
        return {label for labels in self.taught.values() for label in labels}

    @cached_property
    def last(self) -> dict[int, set[LabelKey]]:
        """Row -> the labels by which the version was taught that learned it last."""
        own = {name: _by_row(manifest.trained_on) for name, manifest in self.versions}
        (serving, manifest), *_ = self.versions
        found = dict(own[serving])
        for one in manifest.learned_in:
            found.update({row: own.get(one.version, {}).get(row, set()) for row in one.rows})
        return found

    def rehearsed(self, cases: Sequence[TrainingCase], valid: Collection[LabelKey]) -> tuple[int, ...]:
        """Learned rows about which no case says anything new, if others say something new.

        A row is told something new by a label that taught it to no version, and by the loss of a label: what was learned
        from one that was rejected since is not worth keeping.

        Args:
            cases: of a round.
            valid: the labels that count now.
        """
        known, new = set[int](), set[int]()
        for case in cases:
            label = label_key(case.source)
            for row in case.annotated:
                (known if label in self.taught.get(row, ()) else new).add(row)
        withdrawn = {row for row in known if self.last.get(row, set()).difference(valid)}
        kept = known - new - withdrawn
        return tuple(sorted(kept & self.versions[0][1].learned_rows)) if new or withdrawn else ()


def _back_from(store: VersionStore, name: str, manifest: Manifest) -> Iterator[tuple[str, Manifest]]:
    seen = {name}
    yield name, manifest
    while manifest.parent is not None and manifest.parent not in seen:
        name = manifest.parent
        seen.add(name)
        try:
            manifest = read_manifest(store.directory_of(name))
        except HermesError:  # gone or damaged: what only it was taught counts as new
            return
        yield name, manifest


def _by_row(used: Iterable[UsedCase]) -> dict[int, set[LabelKey]]:
    found: dict[int, set[LabelKey]] = defaultdict(set)
    for case in used:
        label = label_key(case)
        if label is not None:
            for row in case.rows:
                found[row].add(label)
    return found
