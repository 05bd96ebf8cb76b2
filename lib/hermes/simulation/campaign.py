"""One played campaign: the parts of a server, and an annotator who knows the truth."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from hermes.cache import VolumeCache
from hermes.config import from_conf
from hermes.errors import HermesError
from hermes.labelled import Pair
from hermes.pool import PoolScorer
from hermes.publish import write_atomically
from hermes.queueing import Queue
from hermes.records import LabelMap, Prediction
from hermes.resident import ResidentModel
from hermes.rounds import run_round
from hermes.scoring.agreement import agreement, dice
from hermes.simulation.results import Row
from hermes.strategies import BLIND, get_strategy
from hermes.submission import read_submission
from hermes.transforms.reading import read_label_map
from hermes.types import CaseId, StructureName
from hermes.workspace import Workspace

ANNOTATOR = "simulated"
LEASE_S = 3600.0

Progress: TypeAlias = Callable[[str], None]
"""Told what is being done, once per step of work."""


@dataclass(frozen=True)
class Truth:
    """The true label of a test image, and its path."""

    image: Path
    label_map: LabelMap


class Player:
    """Plays a campaign in a directory; what is there already is gone on with.

    Args:
        directory: of the campaign.
        pool: images to label.
        strategy: name of the one that chooses.
        seed: of the campaign.
        conf: settings; ``structures`` among them.
        starter: model that the campaign begins with, where the settings name none.
        cache: of prepared images, which may be that of other campaigns too.
    """

    def __init__(
        self,
        directory: Path,
        pool: Sequence[Pair],
        strategy: str,
        seed: int,
        conf: Mapping[str, str],
        *,
        starter: Path,
        cache: Path,
    ) -> None:
        given = {
            "holdout_share": "0", "score_images_per_round": str(len(pool)), **conf,
            "campaign_dir": str(directory), "labels_per_round": "0", "strategy": strategy, "seed": str(seed),
        }  # fmt: skip
        self._pool = {pair.case_id: pair for pair in pool}
        self.workspace = Workspace(from_conf(given), str(directory), starter=starter)
        self.workspace.cache = VolumeCache(cache)
        self._resident = ResidentModel(self.workspace)
        self._scorer = PoolScorer(self.workspace, self._resident)
        self._strategy, self._name, self._seed = get_strategy(strategy), strategy, seed
        self._queue = Queue(
            self.workspace.campaign,
            lease_s=LEASE_S,
            seed=seed,
            serving_version=lambda: self.workspace.versions.serving().name,
            facts=self._scorer.facts,
        )
        self.workspace.campaign.sync_images(self._pool)

    def close(self) -> None:
        """Close the database."""
        self.workspace.campaign.close()

    @property
    def knows_something(self) -> bool:
        """Whether the serving version has learned any of the campaign's structures."""
        return bool(self.workspace.bindings().trained)

    def path_of(self, image_id: CaseId) -> Path:
        """The file of an image."""
        return self._pool[image_id].image

    def look(self, progress: Progress) -> None:
        """Score the pool with the serving version, where the strategy asks for it."""
        if self._name in BLIND:
            return
        for image_id in self._scorer.score(list(self._pool), self.path_of):
            progress(f"scored {image_id}")

    def label_next(self) -> CaseId:
        """Label the image that the queue offers: the model's answer is corrected to the truth.

        Raises:
            HermesError: nothing is offered.
        """
        offer = self._queue.offer(self._strategy, list(self._pool), ANNOTATOR)
        if offer.image_id is None:
            msg = f"Expected an image to label, there is none: {offer.reason}"
            raise HermesError(msg)
        pair, campaign = self._pool[offer.image_id], self.workspace.campaign
        truth = read_label_map(pair.label)
        drawn = {int(value) for value in np.unique(truth.array)}
        params = {
            "label_info": [{"name": name, "idx": value} for value, name in pair.names.items()],
            "label_values": "idx",
            "absent": [name for value, name in pair.names.items() if value not in drawn],
        }
        submission = read_submission(
            pair.label, params, image_grid=truth.grid, structures=self.workspace.bindings().structures
        )
        offered = self._predict(pair.image) if self._name not in BLIND else None
        archived = self.workspace.archive.write(offer.image_id, submission)
        label = campaign.record_label(
            offer.image_id, "final", self.workspace.archive.reference(archived),
            hashlib.sha256(archived.read_bytes()).hexdigest(), ANNOTATOR, submission.annotated,
            None if offered is None else offered.model_version,
        )  # fmt: skip
        campaign.assignments.release(offer.image_id, ANNOTATOR)
        if offered is not None:
            names = [r.structure for r in offered.structures]
            agreed = agreement(offered.label_map, submission.label_map, names)
            campaign.agreements.put_offered(label.id, offered.model_version, agreed)
        return offer.image_id

    def train(self) -> None:
        """A round on all labels so far."""
        run_round(self.workspace, self.path_of)

    def measure(self, tests: Sequence[Pair], labels: int, progress: Progress) -> list[Row]:
        """Mean Dice per structure over the test images that have it; 0 for what the model has not learned."""
        found: dict[StructureName, list[float]] = {}
        for pair in tests:
            truth = read_label_map(pair.label)
            truth = replace(truth, names=pair.names)
            predicted = self._predict(pair.image)
            values = {} if predicted is None else {r.structure: r.value for r in predicted.structures}
            for value, name in pair.names.items():
                mask = truth.array == value
                if not mask.any():
                    continue
                ours = np.zeros_like(mask)
                if predicted is not None and name in values:
                    ours = predicted.label_map.array == values[name]
                found.setdefault(name, []).append(dice(ours, mask))
            progress(f"measured {pair.case_id}")
        return [
            Row(self._name, self._seed, labels, name, float(np.mean(values)))
            for name, values in sorted(found.items())
        ]

    def _predict(self, image: Path) -> Prediction | None:
        bindings, predictor = self.workspace.bindings(), self._resident.predictor()
        if not bindings.trained:
            return None
        there = self.workspace.rows_of_image(image, bindings, predictor.preparation)
        rows = {name: there[name] for name in bindings.trained}
        return predictor.predict(image, rows, modality=self.workspace.settings.modality)


def mark(directory: Path, text: str) -> None:
    """Note that a part of a simulation has ended; what is marked is not played again."""
    write_atomically(directory / "done", text)


def is_marked(directory: Path) -> bool:
    """Whether it was marked."""
    return (directory / "done").is_file()
