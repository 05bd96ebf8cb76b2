"""What the serving version is asked about the pool: in which order, how much, and what is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.playing import Play

from hermes.campaign.facts import ImageFacts
from hermes.errors import BadRequestError, NotFoundError, PacsError
from hermes.pool import PoolScorer
from hermes.queueing import UNCERTAINTY_METHOD
from hermes.records import MEASURES
from hermes.resident import ResidentModel

IMAGES = [f"case{n}" for n in range(6)]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., tuple[Play, PoolScorer]]]:
    opened: list[Play] = []

    def start(**conf: str) -> tuple[Play, PoolScorer]:
        play = Play(tmp_path, holdout_share="0", **conf)
        opened.append(play)
        play.workspace.campaign.sync_images(IMAGES)
        return play, PoolScorer(play.workspace, ResidentModel(play.workspace))

    yield start
    for one in opened:
        one.workspace.campaign.close()


def test_one_look_gives_scores_measures_and_embeddings(started) -> None:
    play, scorer = started()
    assert sorted(scorer.score(IMAGES[:2], play.path)) == IMAGES[:2]
    version = play.workspace.versions.serving().name
    facts = play.workspace.campaign.facts.of(version)
    assert set(facts) == set(IMAGES[:2])
    one = facts[IMAGES[0]]
    assert set(one.measures) <= set(MEASURES)
    assert {"entropy", "margin", "presence", "volume_ml", "modality_surprise"} <= set(one.measures)
    assert one.structures == ("liver", "spleen")
    assert one.embeddings.dtype == np.float16
    assert len(one.embeddings) == 2
    scores = play.workspace.campaign.get_scores(UNCERTAINTY_METHOD, version)
    assert set(scores[IMAGES[0]]) == {"", "liver", "spleen"}
    for_queue = scorer.facts(version)
    assert for_queue.scores[IMAGES[0]][""] == pytest.approx(scores[IMAGES[0]][""], abs=1e-4)
    assert for_queue.embeddings[IMAGES[0]].shape == for_queue.embeddings[IMAGES[1]].shape
    assert not np.allclose(for_queue.embeddings[IMAGES[0]], for_queue.embeddings[IMAGES[1]])


def test_nothing_is_computed_twice_and_only_so_many(started) -> None:
    play, scorer = started(score_images_per_round="2")
    assert len(list(scorer.score(IMAGES, play.path))) == 2
    assert list(scorer.score(IMAGES, play.path)) == []
    assert len(play.workspace.campaign.facts.of("base")) == 2


def test_what_the_last_version_found_uncertain_comes_first(started) -> None:
    play, scorer = started(strategy="uncertainty")
    for image, entropy in (("case1", 0.2), ("case4", 0.9)):
        play.workspace.campaign.facts.put("v0", image, ImageFacts({"entropy": {"": entropy}}))
    order = scorer.missing(IMAGES)
    assert order[0] == "case4"
    assert order[2] == "case1"
    assert sorted(order) == IMAGES
    play.workspace.campaign.quarantine("case4", "cannot be read")
    assert "case4" not in scorer.missing(IMAGES)


def test_labelled_images_are_looked_at_where_a_strategy_compares_with_them(started) -> None:
    play, scorer = started(strategy="coverage", score_images_per_round="1")
    play.submit("case3")
    assert scorer.missing(IMAGES)[0] == "case3"
    assert len(scorer.missing(IMAGES)) == 2
    other, plain = started(strategy="uncertainty", campaign_dir=str(play.folder / "other"))
    other.submit("case3")
    assert "case3" not in plain.missing(IMAGES)


def test_storage_forgets_older_versions_and_then_stops(started) -> None:
    play, scorer = started(score_storage_mib="1")
    facts = play.workspace.campaign.facts
    large = ImageFacts({}, ("liver",) * 5000, np.zeros((5000, 64), np.float16))  # 0.6 MiB each
    facts.put("v0", "case0", large)
    facts.put("v0", "case1", large)
    assert len(list(scorer.score(IMAGES[:1], play.path))) == 1
    assert set(facts.stored_bytes()) == {"base"}
    facts.put("base", "case4", large)
    facts.put("base", "case5", large)
    assert list(scorer.score(IMAGES, play.path)) == []


def test_stops_when_asked_and_quarantines_what_cannot_be_read(started, tmp_path: Path) -> None:
    play, scorer = started()
    assert list(scorer.score(IMAGES, play.path, should_stop=lambda: True)) == []
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no image")
    assert list(scorer.score(["case0"], lambda _: broken)) == []
    assert "case0" not in scorer.missing(IMAGES)


def test_what_cannot_be_had_now_is_not_left_out_of_the_campaign(started) -> None:
    play, scorer = started()
    first, second, *_ = scorer.missing(IMAGES)

    def gone(image_id: str) -> Path:
        if image_id == first:
            msg = "Expected image, it is not there any more."
            raise NotFoundError(msg)
        return play.path(image_id)

    assert next(iter(scorer.score(IMAGES, gone))) == second

    def down(image_id: str) -> Path:
        msg = f"Expected an answer of the PACS for {image_id}."
        raise PacsError(msg)

    assert list(scorer.score(IMAGES, down)) == []
    assert set(scorer.missing(IMAGES)) == {first, *IMAGES} - {second}


def test_facts_are_replaced_and_readers_notice(started) -> None:
    play, _ = started()
    facts = play.workspace.campaign.facts
    vectors = np.array([[1, 2], [3, 4]], np.float16)
    facts.put("v1", "case0", ImageFacts({"margin": {"liver": 0.5}}, ("liver", "spleen"), vectors))
    assert facts.of("v1")["case0"].embedding(["spleen"]).tolist() == [3.0, 4.0]
    assert facts.of("v1")["case0"].embedding() == pytest.approx(np.array([4, 6]) / np.sqrt(2))
    facts.put("v1", "case0", ImageFacts({"margin": {"liver": 0.25}}, ("liver", "spleen"), vectors))
    assert facts.of("v1")["case0"].measures == {"margin": {"liver": 0.25}}
    with pytest.raises(BadRequestError, match="finite"):
        facts.put("v1", "case0", ImageFacts({"margin": {"liver": float("nan")}}))
    with pytest.raises(NotFoundError):
        facts.put("v1", "nobody", ImageFacts({}))
    facts.forget("v1")
    assert facts.of("v1") == {}
