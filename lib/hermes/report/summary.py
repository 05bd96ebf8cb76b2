"""The figures of a campaign, gathered once for the page, for JSON and for the command line."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from hermes.campaign import events
from hermes.campaign.agreements import OfferedDice, PairAgreement
from hermes.campaign.records import (
    Annotated,
    Counts,
    LabelRecord,
    ReviewRecord,
    ReviewState,
    SkipRecord,
    VersionRecord,
)
from hermes.report.pairs import measure_pairs
from hermes.report.stopping import Advice, advice
from hermes.report.unusual import UnusualVolume, unusual_volumes
from hermes.types import StructureName
from hermes.workspace import Workspace


@dataclass(frozen=True)
class Coverage:
    """In how many images a structure is drawn, and declared absent, by the labels that training takes."""

    structure: StructureName
    drawn: int
    absent: int
    quota: int | None


@dataclass(frozen=True)
class AnnotatorRow:
    """What an annotator did; times are from being given an image to submitting it, in seconds."""

    name: str
    labels: int
    images: int
    skips: int
    approved: int
    rejected: int
    median_s: float | None
    total_s: float | None


@dataclass(frozen=True)
class VersionRow:
    """A version and what the gate said; ``mean`` is its mean Dice on the hold-out."""

    name: str
    state: str
    created_at: float
    cases: int | None
    gate: str
    reason: str
    mean_before: float | None
    mean: float | None


@dataclass(frozen=True)
class PairRow:
    """Two annotators in a structure: mean over the images that both labelled; distances in mm."""

    first: str
    second: str
    structure: StructureName
    images: int
    dice: float
    mean_distance_mm: float | None
    hausdorff95_mm: float | None


@dataclass(frozen=True)
class OfferedRow:
    """A structure: how many submissions could be compared with an offer, mean Dice, and that of the last ones."""

    structure: StructureName
    submissions: int
    mean: float
    mean_of_last: float


@dataclass(frozen=True)
class Summary:
    """All figures of a campaign at one time."""

    made_at: float
    serving: str
    counts: Counts
    holdout_images: int
    waiting: int
    labels_at: tuple[float, ...]
    coverage: tuple[Coverage, ...]
    annotators: tuple[AnnotatorRow, ...]
    versions: tuple[VersionRow, ...]
    offered: tuple[OfferedRow, ...]
    offered_per_label: tuple[tuple[float, float], ...]
    pairs: tuple[PairRow, ...]
    unusual: tuple[UnusualVolume, ...]
    skips: tuple[SkipRecord, ...]
    reviews: Mapping[str, int]
    advice: Advice

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return dataclasses.asdict(self)


def summarise(workspace: Workspace) -> Summary:
    """The figures of a campaign now; pairs of labels that were not compared yet are."""
    campaign, settings = workspace.campaign, workspace.settings
    labels, offered = campaign.labels(latest=False), campaign.agreements.offered()
    reviews, skips = campaign.reviews.all(), campaign.assignments.skips()
    versions = [_version(one) for one in campaign.versions()]
    states, wish = campaign.assignments.states(), workspace.wish()
    waiting = {name for name, state in states.items() if state.usable and not state.complete(wish)}
    coverage = _coverage(workspace)
    means = [one.mean for one in versions if one.mean is not None]
    said = advice(
        offered,
        means,
        threshold=settings.stop_dice,
        last=settings.stop_submissions,
        margin=settings.gate_margin,
        quotas={c.structure: (c.drawn, c.quota) for c in coverage if c.quota is not None},
        waiting=len(waiting) if states else 1,  # an empty campaign has not ended, it has not begun
    )
    return Summary(
        made_at=campaign.now(),
        serving=workspace.versions.serving().name,
        counts=campaign.counts(),
        holdout_images=len(campaign.holdout_ids()),
        waiting=len(waiting),
        labels_at=tuple(sorted(label.submitted_at for label in labels)),
        coverage=coverage,
        annotators=_annotators(workspace, labels, reviews, skips),
        versions=tuple(versions),
        offered=_offered(offered, settings.stop_submissions),
        offered_per_label=_per_label(offered),
        pairs=_pairs(measure_pairs(workspace), labels),
        unusual=unusual_volumes(workspace, waiting),
        skips=tuple(skips),
        reviews=_reviews(labels, reviews),
        advice=said,
    )


def _coverage(workspace: Workspace) -> tuple[Coverage, ...]:
    drawn: Counter[StructureName] = Counter()
    absent: Counter[StructureName] = Counter()
    for label in workspace.campaign.training_labels():
        for name, state in label.annotated.items():
            (drawn if state is Annotated.PRESENT else absent)[name] += 1
    quotas = {quota.structure: quota.images for quota in workspace.quotas()}
    names = dict.fromkeys([*workspace.bindings().structures, *drawn, *absent])
    return tuple(Coverage(name, drawn[name], absent[name], quotas.get(name)) for name in names)


def _annotators(
    workspace: Workspace,
    labels: Sequence[LabelRecord],
    reviews: Mapping[int, ReviewRecord],
    skips: Sequence[SkipRecord],
) -> tuple[AnnotatorRow, ...]:
    seconds: dict[str, list[float]] = {}
    for event in workspace.campaign.events(events.LABEL_SUBMITTED):
        if event.payload.get("seconds") is not None:
            seconds.setdefault(event.payload["annotator"], []).append(event.payload["seconds"])
    rows = []
    for name in sorted({label.annotator for label in labels} | {skip.annotator for skip in skips}):
        own = [label for label in labels if label.annotator == name]
        states = Counter(reviews[label.id].state for label in own if label.id in reviews)
        times = seconds.get(name)
        rows.append(
            AnnotatorRow(
                name,
                len(own),
                len({label.image_id for label in own}),
                sum(skip.annotator == name for skip in skips),
                states[ReviewState.APPROVED],
                states[ReviewState.REJECTED],
                median(times) if times else None,
                sum(times) if times else None,
            )
        )
    return tuple(rows)


def _version(record: VersionRecord) -> VersionRow:
    report = record.metrics.get("report") or {}
    gate = report.get("gate") or {}
    return VersionRow(
        record.name,
        record.state.value,
        record.created_at,
        report.get("cases"),
        str(gate.get("state", "")),
        str(gate.get("reason", "")),
        gate.get("mean_before"),
        gate.get("mean_after"),
    )


def _offered(offered: Sequence[OfferedDice], last: int) -> tuple[OfferedRow, ...]:
    found: dict[StructureName, list[float]] = {}
    for one in offered:
        found.setdefault(one.structure, []).append(one.dice)
    return tuple(OfferedRow(n, len(v), fmean(v), fmean(v[-last:])) for n, v in sorted(found.items()))


def _per_label(offered: Sequence[OfferedDice]) -> tuple[tuple[float, float], ...]:
    """(time, mean Dice over structures) per submission."""
    found: dict[int, tuple[float, list[float]]] = {}
    for one in offered:
        found.setdefault(one.label_id, (one.submitted_at, []))[1].append(one.dice)
    return tuple((at, fmean(values)) for at, values in found.values())


def _pairs(
    measured: Mapping[tuple[int, int], Sequence[PairAgreement]], labels: Sequence[LabelRecord]
) -> tuple[PairRow, ...]:
    who = {label.id: label.annotator for label in labels}
    found: dict[tuple[str, str, StructureName], list[PairAgreement]] = {}
    for (first, second), agreements in measured.items():
        names = sorted((who[first], who[second]))
        for one in agreements:
            found.setdefault((names[0], names[1], one.structure), []).append(one)
    return tuple(
        PairRow(
            *key,
            len(ones),
            fmean(one.dice for one in ones),
            _mean([one.mean_distance_mm for one in ones]),
            _mean([one.hausdorff95_mm for one in ones]),
        )
        for key, ones in sorted(found.items())
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _reviews(labels: Sequence[LabelRecord], reviews: Mapping[int, ReviewRecord]) -> dict[str, int]:
    said = (reviews.get(label.id) for label in labels)
    states = Counter(ReviewState.SUBMITTED if review is None else review.state for review in said)
    return {state.value: states[state] for state in ReviewState}
