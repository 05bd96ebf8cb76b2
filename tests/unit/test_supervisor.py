from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hermes.adapters.supervisor import training_due
from hermes.campaign.campaign import Campaign

DEAD_PID = 2**22 - 1  # beyond what Linux hands out by default


@pytest.fixture
def campaign(tmp_path: Path) -> Iterator[Campaign]:
    with Campaign(tmp_path / "c.sqlite") as opened:
        yield opened


def label(campaign: Campaign, *images: str) -> list[int]:
    return [campaign.record_label(i, "final", "p", "0" * 64, "a", {"liver": "present"}).id for i in images]


def test_a_full_round_is_due(campaign: Campaign) -> None:
    label(campaign, "a")
    assert not training_due(campaign, 2)
    label(campaign, "b")
    assert training_due(campaign, 2)
    assert not training_due(campaign, 0)


def test_correcting_one_image_twice_is_one_new_label(campaign: Campaign) -> None:
    label(campaign, "a", "a")
    assert not training_due(campaign, 2)


def test_not_due_after_it_was_done(campaign: Campaign) -> None:
    run = campaign.start_run(label(campaign, "a", "b"))
    campaign.finish_run(run.id, version=None, steps=1)
    assert not training_due(campaign, 2)
    label(campaign, "c", "d")
    assert training_due(campaign, 2)


@pytest.mark.parametrize("how", ["failed", "stopped"])
def test_a_failed_or_stopped_round_waits_for_more_labels(campaign: Campaign, how: str) -> None:
    run = campaign.start_run(label(campaign, "a", "b"))
    if how == "failed":
        campaign.fail_run(run.id, "disk full")
    else:
        campaign.stop_run(run.id)
    assert not training_due(campaign, 2)
    label(campaign, "c")
    assert not training_due(campaign, 2)
    label(campaign, "d")
    assert training_due(campaign, 2)


def test_a_round_that_died_with_its_server_is_tried_again(campaign: Campaign) -> None:
    campaign.start_run(label(campaign, "a", "b"), pid=DEAD_PID)
    assert campaign.current_run() is None
    assert training_due(campaign, 2)
