"""Scoring methods as MONAI Label lists and calls them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.scoring import ScoringMethod

from hermes.adapters.images import path_of
from hermes.pool import PoolScorer
from hermes.scoring.agreement import agreement
from hermes.transforms.reading import read_label_map


class UncertaintyScoring(ScoringMethod):  # type: ignore[misc]
    """Scores the unlabelled images with the serving model, for the strategies."""

    def __init__(self, scorer: PoolScorer) -> None:
        self._scorer = scorer
        super().__init__(
            "Mean entropy of the serving model in and around its structures, per unlabelled image"
        )

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """How many images were scored now."""
        scored = self._scorer.score(datastore.list_images(), functools.partial(path_of, datastore))
        return {"scored": sum(1 for _ in scored)}


class AgreementScoring(ScoringMethod):  # type: ignore[misc]
    """Dice between the offered ("original") and the submitted ("final") label of each image that has both."""

    def __init__(self) -> None:
        super().__init__("Dice between offered and submitted labels")

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Image -> structure -> Dice, over the structures that were annotated."""
        result: dict[str, dict[str, float]] = {}
        for image_id in datastore.list_images():
            tags = datastore.get_labels_by_image_id(image_id)
            if {DefaultLabelTag.ORIGINAL.value, DefaultLabelTag.FINAL.value} <= {str(t) for t in tags}:
                result[image_id] = _agreement(datastore, image_id)
        return result


def _agreement(datastore: Datastore, image_id: str) -> dict[str, float]:
    offered, submitted = (
        read_label_map(datastore.get_label_uri(image_id, tag.value))
        for tag in (DefaultLabelTag.ORIGINAL, DefaultLabelTag.FINAL)
    )
    annotated = datastore.get_label_info(image_id, DefaultLabelTag.FINAL.value).get("label_info", [])
    info = datastore.get_label_info(image_id, DefaultLabelTag.ORIGINAL.value)
    named = info.get("params", {}).get("label_names", {})
    scores = agreement(
        replace(offered, names={value: name for name, value in named.items()}),
        replace(submitted, names={entry["idx"]: entry["name"] for entry in annotated}),
        [entry["name"] for entry in annotated if entry["name"] in named],
    )
    return {name: round(score, 4) for name, score in scores.items()}
