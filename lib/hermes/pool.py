"""What the serving version says of the images: scores, measures and embeddings for the strategies.

One inference per image and version gives all of them. What a version has found is kept, so that only what changed is
computed: after a publication the images that are likely to be offered first, within budgets of images, minutes and
megabytes; after going back to an earlier version nothing.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hermes.campaign.facts import ImageFacts
from hermes.campaign.records import WHOLE_IMAGE, Score
from hermes.errors import BadImageError, CancelledError, GaveWayError, NotFoundError, PacsError
from hermes.inference.predictor import Predictor, is_wanted
from hermes.labels.catalogue import canonical_key
from hermes.labels.names import split_protocol
from hermes.queueing import UNCERTAINTY_METHOD, PoolFacts
from hermes.records import Prediction
from hermes.resident import ResidentModel
from hermes.scoring.projection import project
from hermes.strategies import COMPARING, Candidate, get_strategy
from hermes.strategies.base import lot
from hermes.types import CaseId
from hermes.workspace import Bindings, Workspace

logger = logging.getLogger(__name__)

OTHER_PROTOCOLS = 2
"""Rows by other protocols that are asked for beside a structure's own, to see whether they disagree."""
MOST_ROWS = 255
POLL_S = 0.02
"""How often it is looked whether a request that was given way to has ended."""


class PoolScorer:
    """Looks at images with the serving version, one inference each, within the campaign's budgets."""

    def __init__(self, workspace: Workspace, resident: ResidentModel) -> None:
        self._workspace, self._resident = workspace, resident
        self._spent_s: tuple[str, float] = ("", 0.0)
        self._complete: tuple[str, int, int, int] | None = None  # when there was nothing to do

    def facts(self, version: str) -> PoolFacts:
        """What a version has found, as a `Queue` takes it; embeddings are of the structures that the campaign labels."""
        found = self._workspace.campaign.facts.of(version)
        wanted = frozenset(self._workspace.bindings().structures)
        embeddings = {name: facts.embedding(wanted) for name, facts in found.items()}
        return PoolFacts(
            scores={name: facts.measures.get("entropy", {}) for name, facts in found.items()},
            measures={name: facts.measures for name, facts in found.items()},
            embeddings={name: vector for name, vector in embeddings.items() if vector is not None},
        )

    def missing(self, images: Collection[CaseId]) -> list[CaseId]:
        """Images that the serving version should still look at, the most useful first.

        Labelled ones come first, where the campaign's strategy compares with them; then the pool, as long as fewer
        than ``score_images_per_round`` of it have been looked at: in turn one that the previous version put in front
        and one that nothing is known of; images that somebody is labelling at the end.
        """
        settings, campaign = self._workspace.settings, self._workspace.campaign
        if not self._workspace.bindings().trained:
            return []
        version = self._workspace.versions.serving().name
        done, comparing = campaign.facts.of(version), settings.strategy in COMPARING
        if len(done) >= settings.score_images_per_round and not comparing:
            return []  # asked every second: the quick way out
        here, labelled = set(images), campaign.labelled_ids()
        state = (version, len(done), len(here), len(labelled))
        if state == self._complete:
            return []
        waiting = [
            i.id for i in campaign.images() if i.id in here and not i.quarantined_reason and i.id not in done
        ]
        known = sorted(i for i in waiting if i in labelled) if comparing else []
        counted = sum(i not in labelled for i in done) if comparing else len(done)
        room = max(0, settings.score_images_per_round - counted)
        found = known + self._by_use([i for i in waiting if i not in labelled], version)[:room]
        self._complete = None if found else state
        return found

    def in_order(self, images: Collection[CaseId]) -> list[CaseId]:
        """Images by how soon the campaign's strategy would offer them, as far as the serving version has seen them."""
        settings, facts = self._workspace.settings, self.facts(self._workspace.versions.serving().name)
        candidates = [
            Candidate(
                i,
                facts.scores.get(i, {}),
                measures=facts.measures.get(i, {}),
                embedding=facts.embeddings.get(i),
            )
            for i in images
        ]
        return get_strategy(settings.strategy).rank(candidates, seed=settings.seed)

    def score(
        self,
        images: Collection[CaseId],
        path_of: Callable[[CaseId], Path],
        *,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[CaseId]:
        """Look at what is missing, yielding each id when all is stored; an unreadable image is quarantined.

        Gives way to every request that waits for the device, before the next window.

        Args:
            images: that the datastore has.
            path_of: id of an image -> its file; `NotFoundError` passes the image by, `PacsError` ends the look.
            should_stop: asked before every image and window.
        """
        version = self._workspace.versions.serving().name
        for image_id in self.missing(images):
            if should_stop() or self._out_of_time(version) or not self._has_room(version):
                return
            begin = time.monotonic()
            try:
                look = self._look(path_of(image_id), should_stop)
            except CancelledError:
                return
            except NotFoundError:
                continue  # removed just now
            except PacsError as error:  # it is down, and so is every other image of it
                logger.info("Image %s cannot be had now: %s", image_id, error)
                return
            except BadImageError as error:
                logger.warning("Image %s is left out of the campaign: %s", image_id, error)
                self._workspace.campaign.quarantine(image_id, str(error))
                continue
            finally:
                self._spend(version, time.monotonic() - begin)
            self._store(image_id, look)
            yield image_id

    # ------------------------------------------------------------------- order

    def _by_use(self, pool: list[CaseId], version: str) -> list[CaseId]:
        settings, campaign = self._workspace.settings, self._workspace.campaign
        before = next((v for v in reversed(campaign.facts.stored_bytes()) if v != version), None)
        earlier = campaign.facts.of(before) if before is not None else {}
        seen = [
            Candidate(i, earlier[i].measures.get("entropy", {}), measures=earlier[i].measures)
            for i in pool
            if i in earlier
        ]
        ranked = get_strategy(settings.strategy).rank(seen, seed=settings.seed)
        unseen = sorted((i for i in pool if i not in earlier), key=lambda i: lot(settings.seed, i))
        turns = itertools.chain.from_iterable(itertools.zip_longest(ranked, unseen))
        held = {lease.image_id for lease in campaign.assignments.leases()}
        return sorted((i for i in turns if i is not None), key=lambda i: i in held)

    # ----------------------------------------------------------------- budgets

    def _has_room(self, version: str) -> bool:
        """Whether more may be stored; facts of other versions are forgotten for it, the oldest first."""
        facts, most = self._workspace.campaign.facts, self._workspace.settings.score_storage_mib * 2**20
        stored = facts.stored_bytes()
        for other in [name for name in stored if name != version]:
            if sum(stored.values()) < most:
                break
            facts.forget(other)
            del stored[other]
        return sum(stored.values()) < most

    def _out_of_time(self, version: str) -> bool:
        most = 60 * self._workspace.settings.score_minutes_per_round
        return most > 0 and self._spent_s[0] == version and self._spent_s[1] >= most

    def _spend(self, version: str, seconds: float) -> None:
        before = self._spent_s[1] if self._spent_s[0] == version else 0.0
        self._spent_s = (version, before + seconds)

    # -------------------------------------------------------------------- look

    def _look(self, path: Path, should_stop: Callable[[], bool]) -> _Look:
        """One inference; tried again after each request that it gave way to.

        Raises:
            CancelledError: ``should_stop`` said so.
            BadImageError: the image cannot be read or used.
        """
        while True:
            bindings, predictor = self._workspace.bindings(), self._resident.predictor()
            there = self._workspace.rows_of_image(path, bindings, predictor.preparation)
            rows = rows_to_ask({name: there[name] for name in bindings.trained}, predictor)
            try:
                prediction = predictor.predict(
                    path,
                    rows,
                    modality=self._workspace.settings.modality,
                    findings=True,
                    background=True,
                    should_stop=should_stop,
                )
                return _Look(prediction, bindings, tuple(rows))
            except GaveWayError:
                while is_wanted(predictor.device):
                    if should_stop():
                        raise
                    time.sleep(POLL_S)

    def _store(self, image_id: CaseId, look: _Look) -> None:
        prediction, found = look.prediction, look.prediction.findings
        assert found is not None  # it was asked for
        names = [name for name in look.names if name in look.bindings.rows]
        kept = {WHOLE_IMAGE, *names}
        measures = {
            measure: {n: round(v, 5) for n, v in values.items() if n in kept and math.isfinite(v)}
            for measure, values in found.measures.items()
        }
        tokens = found.tokens[[look.names.index(name) for name in names]]
        embeddings = project(tokens, [look.bindings.rows[name] for name in names])
        campaign = self._workspace.campaign
        scores = [Score(image_id, WHOLE_IMAGE, prediction.uncertainty)]
        scores += [
            Score(image_id, r.structure, r.uncertainty) for r in prediction.structures if r.structure in kept
        ]
        campaign.put_scores(UNCERTAINTY_METHOD, prediction.model_version, scores)
        campaign.facts.put(prediction.model_version, image_id, ImageFacts(measures, tuple(names), embeddings))


@dataclass(frozen=True, eq=False)
class _Look:
    """An inference, and what it was asked for: the campaign's structures first, then other protocols of them."""

    prediction: Prediction
    bindings: Bindings
    names: tuple[str, ...]


def rows_to_ask(trained: Mapping[str, int], predictor: Predictor) -> dict[str, int]:
    """The structures that the version has learned, and rows that draw one of them by another protocol."""
    rows = dict(trained)
    learned = sorted(predictor.manifest.learned_rows - set(rows.values()))
    tasks = predictor.manifest.label_space.tasks
    for name in trained:
        wanted = canonical_key(split_protocol(name)[0])
        others = [
            row for row in learned if row < len(tasks) and canonical_key(tasks[row].structure) == wanted
        ]
        rows |= {tasks[row].key: row for row in others[:OTHER_PROTOCOLS] if tasks[row].key not in rows}
    return dict(list(rows.items())[:MOST_ROWS])
