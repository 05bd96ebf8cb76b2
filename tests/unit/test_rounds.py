"""Rounds of a simulated campaign: what is trained on, what is measured, what is published."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.playing import holds_out, perfect, untrained

from hermes.campaign.records import RunState, VersionState
from hermes.checkpoint import UsedCase, load_checkpoint, read_manifest
from hermes.errors import CancelledError, ConflictError, NotFoundError, NothingToTrainError
from hermes.records import NewStructure
from hermes.rounds import Ahead, RoundOptions, preflight_of, require_labels, run_round
from hermes.rounds import round as rounds
from hermes.training.recipe import Recipe


def test_nothing_of_the_holdout_is_ever_trained_on(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = play(holdout_share="0.3", gate_task_margin="1", gate_margin="1")
    workspace = campaign.workspace
    seen = untrained(monkeypatch)
    monkeypatch.setattr(workspace, "predictor", lambda *_, **__: perfect(campaign))
    rng = np.random.default_rng(1)
    patients = [f"sub-{n}" for n in range(5)]
    images: list[str] = []
    for number in range(10):
        images += [f"{patients[int(rng.integers(5))]}_round{number}-{k}" for k in range(1)]
        workspace.campaign.sync_images(images)
        for image in images[-1:]:
            campaign.submit(image)
        campaign.submit(images[int(rng.integers(len(images)))])  # a correction of an earlier label
        if workspace.campaign.training_ids():
            campaign.run()
    held_out = {image.id for image in workspace.campaign.images() if image.holdout}
    subjects = {image.split("_")[0] for image in held_out}
    trained = {image for cases in seen for image in cases}
    assert len(seen) >= 5
    assert held_out
    assert trained
    assert not {image for image in trained if image.split("_")[0] in subjects}
    for name in workspace.versions.names():
        manifest = read_manifest(workspace.versions.path(name))
        assert not {used.case_id.split("_")[0] for used in manifest.trained_on} & subjects
        assert {used.case_id for used in manifest.held_out} <= held_out
    last = read_manifest(workspace.versions.serving().directory).metrics["report"]
    assert last["holdout_labels"] == len(held_out)
    assert workspace.campaign.labels_since_last_training() == 0


def test_the_manifest_names_labels_and_the_hashes_of_their_files(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = play(holdout_share="0.5", gate_task_margin="1", gate_margin="1")
    workspace = campaign.workspace
    untrained(monkeypatch)
    monkeypatch.setattr(workspace, "predictor", lambda *_, **__: perfect(campaign))
    inside, outside = holds_out(workspace, True), holds_out(workspace, False)
    held, gone, never, seen = next(inside), next(inside), next(inside), next(outside)
    campaign.submit(seen)
    labels = {image: campaign.submit(image) for image in (held, gone, never, seen)}  # the later label counts

    asked: list[str] = []

    def path(image: str) -> Path:
        asked.append(image)
        if image == never or asked.count(gone) > 3:  # once for its hash, once for each of the two versions
            raise NotFoundError(image)
        return campaign.path(image)

    report = run_round(workspace, path, options=RoundOptions(steps=2))
    manifest = read_manifest(workspace.versions.path(report.version))

    drawn = {label.image_id: label.sha256 for label in workspace.campaign.training_labels()}

    def used(image: str, *rows: int) -> UsedCase:
        content = hashlib.sha256(campaign.path(image).read_bytes()).hexdigest()
        return UsedCase(image, content, drawn[image], labels[image], rows)

    assert manifest.trained_on == (used(seen, 0, 1),)
    assert manifest.held_out == (used(held), UsedCase(gone, None, drawn[gone], labels[gone]))
    assert {version.name: version.cases for version in workspace.list_versions()}[report.version] == 1


def test_a_worse_candidate_is_kept_and_not_published(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = play(holdout_share="0.5")
    workspace = campaign.workspace
    inside, outside = holds_out(workspace, True), holds_out(workspace, False)
    held = next(inside)
    label = campaign.submit(held)
    campaign.submit(next(outside))
    untrained(monkeypatch, change=0.5)
    measured: list[str] = []

    def predictor(net: Any, manifest: Any, *, device: Any, version: str) -> Any:
        measured.append(version)
        return perfect(campaign, (1, 2) if version == "base" else (1,))

    monkeypatch.setattr(workspace, "predictor", predictor)
    report = campaign.run()
    assert (report.published, report.verdict.state) == (False, "refused")
    assert "spleen 1.000 -> 0.000" in report.verdict.reason
    assert workspace.versions.serving().name == "base"
    (version,) = workspace.campaign.versions()
    assert (version.name, version.state) == (report.version, VersionState.REFUSED)
    table = [
        {"structure": "liver", "labels": 1, "before": 1.0, "after": 1.0},
        {"structure": "spleen", "labels": 1, "before": 1.0, "after": 0.0},
    ]
    assert version.metrics["report"]["gate"]["table"] == table
    assert read_manifest(workspace.versions.path(version.name)).metrics["report"]["gate"]["table"] == table
    (run,) = workspace.campaign.runs()
    assert (run.state, run.version, run.reason) == (RunState.DONE, report.version, report.verdict.reason)
    assert run.report is not None
    assert run.report["gate"]["table"] == table
    assert label in run.label_ids  # looked at, like the others
    state = workspace.progress.read()
    assert (state["phase"], state["report"]["gate"]["state"]) == ("refused", "refused")
    with pytest.raises(ConflictError, match="force"):
        workspace.publish(report.version)
    # What the serving version reached is not measured again.
    assert measured == [report.version, "base"]
    campaign.submit(next(outside))
    second = campaign.run()
    assert measured[2:] == [second.version]
    workspace.publish(report.version, force=True)
    assert workspace.versions.serving().name == report.version


def test_absent_structures_count_as_false_positives(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = play(holdout_share="0.5")
    workspace = campaign.workspace
    campaign.submit(next(holds_out(workspace, True)), absent=("spleen",))
    campaign.submit(next(holds_out(workspace, False)))
    untrained(monkeypatch)

    def predictor(net: Any, manifest: Any, *, device: Any, version: str) -> Any:
        return perfect(campaign, (1,) if version == "base" else (1, 2))

    monkeypatch.setattr(workspace, "predictor", predictor)
    table = {r.structure: (r.before, r.after) for r in campaign.run().verdict.table}
    assert table == {"liver": (1.0, 1.0), "spleen": (1.0, 0.0)}


def test_a_real_round_is_measured_with_the_real_network(play: Any) -> None:
    campaign = play(holdout_share="0.5", gate_task_margin="1", gate_margin="1")
    workspace = campaign.workspace
    campaign.submit(next(holds_out(workspace, True)))
    campaign.submit(next(holds_out(workspace, False)))
    report = campaign.run()
    assert report.verdict.state == "passed"
    assert {row.structure for row in report.verdict.table} == {"liver", "spleen"}
    assert workspace.versions.serving().name == report.version
    (version,) = workspace.campaign.versions()
    assert version.state is VersionState.PUBLISHED
    assert [e.payload["version"] for e in workspace.campaign.events("ModelPublished")] == [report.version]
    assert not workspace.training_state.exists()


def test_without_held_out_labels_a_candidate_goes_ungated_and_says_so(play: Any, monkeypatch: Any) -> None:
    campaign = play(holdout_share="0")
    campaign.submit("a")
    untrained(monkeypatch)
    report = campaign.run()
    assert (report.published, report.verdict.state) == (True, "ungated")
    metrics = read_manifest(campaign.workspace.versions.serving().directory).metrics
    assert metrics["report"]["gate"]["state"] == "ungated"
    assert campaign.workspace.progress.read()["report"]["gate"]["state"] == "ungated"


def test_held_out_labels_alone_train_nothing(play: Any) -> None:
    campaign = play(holdout_share="0.5")
    campaign.submit(next(holds_out(campaign.workspace, True)))
    with pytest.raises(NothingToTrainError, match="holdout_share"):
        require_labels(campaign.workspace)
    with pytest.raises(NothingToTrainError):
        campaign.run()
    assert campaign.workspace.campaign.runs() == []


def test_rollback_is_one_call_and_the_next_round_begins_there(play: Any, monkeypatch: Any) -> None:
    campaign = play(holdout_share="0")
    workspace = campaign.workspace
    untrained(monkeypatch, change=0.01)
    campaign.submit("a")
    first, second = campaign.run().version, campaign.run().version
    assert read_manifest(workspace.versions.path(second)).parent == first
    assert workspace.rollback() == first
    assert workspace.versions.serving().name == first
    third = campaign.run()
    assert third.parent == first
    assert workspace.rollback("base") == "base"
    assert workspace.versions.serving().directory == workspace.versions.base
    with pytest.raises(ConflictError, match="began with"):
        workspace.rollback()
    with pytest.raises(NotFoundError):
        workspace.rollback("v0099-abcdef")
    assert workspace.rollback(second) == second
    events = [(e.payload["before"], e.payload["version"]) for e in workspace.campaign.events("RolledBack")]
    assert events == [(second, first), (third.version, "base"), ("base", second)]
    listed = {v.name: (v.state, v.parent, v.serving) for v in workspace.list_versions()}
    assert listed == {
        "base": ("base", None, False),
        first: ("published", "base", False),
        second: ("published", first, True),
        third.version: ("published", first, False),
    }


def test_a_version_withdrawn_during_a_round_is_not_followed(play: Any, monkeypatch: Any) -> None:
    campaign = play(holdout_share="0")
    workspace = campaign.workspace
    untrained(monkeypatch, change=0.01)
    campaign.submit("a")
    first = campaign.run().version
    fake = rounds.train

    def train(*args: Any, **more: Any) -> Any:
        workspace.rollback()
        return fake(*args, **more)

    monkeypatch.setattr(rounds, "train", train)
    report = campaign.run()
    assert (report.published, report.parent) == (False, first)
    assert "base was made to answer" in report.verdict.reason
    assert workspace.versions.serving().name == "base"


def test_a_stopped_round_is_gone_on_with(play: Any, monkeypatch: Any) -> None:
    campaign = play(holdout_share="0")
    workspace = campaign.workspace
    campaign.submit("a")
    real, results = rounds.train, []

    def train(*args: Any, on_step: Any, **more: Any) -> Any:
        def then_stop(report: Any) -> None:
            on_step(report)
            if report.step == 3 and not results:
                workspace.stop.make()

        try:
            results.append(real(*args, on_step=then_stop, **more))
        except CancelledError:
            results.append(None)
            raise
        return results[-1]

    monkeypatch.setattr(rounds, "train", train)
    with pytest.raises(CancelledError, match="after 3 of 6"):
        campaign.run(steps=6)
    (run,) = workspace.campaign.runs()
    assert (run.state, run.steps) == (RunState.STOPPED, 3)
    assert (workspace.progress.read()["phase"], workspace.progress.read()["step"]) == ("stopped", 3)
    assert not workspace.stop.made()
    assert workspace.training_state.exists()
    campaign.run(steps=6)
    assert results[-1].resumed_at == 3
    assert not workspace.training_state.exists()


def test_a_stopped_round_begins_anew_when_the_labels_have_changed(play: Any, monkeypatch: Any) -> None:
    campaign = play(holdout_share="0")
    campaign.submit("a")
    real, results = rounds.train, []
    monkeypatch.setattr(rounds, "train", lambda *a, **k: results.append(real(*a, **k)) or results[-1])
    asked = iter([False] * 4 + [True] * 100)
    with pytest.raises(CancelledError):
        run_round(
            campaign.workspace, campaign.path, options=RoundOptions(steps=6), should_stop=lambda: next(asked)
        )
    assert campaign.workspace.training_state.exists()
    campaign.submit("b")
    campaign.run(steps=6)
    assert results[-1].resumed_at == 0


def test_priors_mode_trains_new_rows_only(play: Any) -> None:
    campaign = play(holdout_share="0", structures="liver,spleen@campaign")
    campaign.workspace.campaign.record_label(
        "x", "final", "gone", "0" * 64, "a", {"spleen@campaign": "present"}
    )
    campaign.submit("a")
    with pytest.raises(NothingToTrainError, match="priors"):
        campaign.run(mode="priors")


def test_priors_mode_keeps_the_bits_of_everything_else(play: Any) -> None:
    campaign = play(holdout_share="0")
    workspace = campaign.workspace
    workspace.add_structures([NewStructure("my organ", "liver")])
    campaign.submit("a", second="my organ")
    report = campaign.run(mode="priors")
    assert report.mode == "priors"
    old, _ = load_checkpoint(workspace.versions.base)
    new, manifest = load_checkpoint(workspace.versions.path(report.version))
    assert manifest.learned_rows == {0, 1, 2}
    changed = False
    for (name, before), (_, after) in zip(old.state_dict().items(), new.state_dict().items(), strict=True):
        kept = after[:2] if name.endswith("task_prior") else after
        assert torch.equal(before, kept), name
        changed |= name.endswith("task_prior") and not torch.equal(after[0], after[2])
    assert changed


@pytest.mark.parametrize(("steps", "rate"), [(None, None), (7, 0.5)])
def test_priors_mode_follows_its_own_recipe(play: Any, monkeypatch: Any, steps: Any, rate: Any) -> None:
    campaign = play(
        holdout_share="0", train_steps_per_round="0", **({"learning_rate": str(rate)} if rate else {})
    )
    campaign.workspace.add_structures([NewStructure("my organ", "liver")])
    campaign.submit("a", second="my organ")
    asked: list[Recipe] = []

    def train(_: Any, __: Any, recipe: Recipe, **more: Any) -> Any:
        asked.append(recipe)
        raise CancelledError("enough")

    monkeypatch.setattr(rounds, "train", train)
    for mode in ("full", "priors", "decoder"):
        with pytest.raises(CancelledError):
            campaign.run(mode=mode, steps=steps)
    full, priors, decoder = asked
    assert decoder == replace(full, trainable="decoder")
    assert (full.trainable, priors.trainable, priors.new_rows) == ("all", "priors", (2,))
    if steps is None:  # what takes a fifth of the time; what somebody asks for goes
        assert priors == full.priors_only((2,))
    else:
        assert (priors.steps, priors.learning_rate) == (steps, rate)


def test_curves_are_written_where_asked_for(play: Any) -> None:
    campaign = play(holdout_share="0", tensorboard="true")
    campaign.submit("a")
    campaign.run()
    folder = campaign.workspace.directory / "logs" / "tensorboard" / "run-0001"
    assert [file.stat().st_size > 0 for file in folder.iterdir()] == [True]
    assert not (campaign.workspace.directory / "logs" / "mlflow").exists()


def test_labels_are_prepared_before_their_round(play: Any) -> None:
    campaign = play(holdout_share="0.5")
    workspace = campaign.workspace
    ahead = Ahead(workspace, campaign.path)
    assert ahead.prepare() == 0
    campaign.submit(next(holds_out(workspace, True)))
    campaign.submit(next(holds_out(workspace, False)))
    workspace.campaign.record_label("gone", "final", "gone", "0" * 64, "ann", {"liver": "present"})
    assert ahead.prepare(should_stop=lambda: True) == 0
    assert ahead.prepare() == 2
    entries = sorted((workspace.cache.directory / "entries").iterdir())
    assert len(entries) == 5  # image and label of both, and the image whose label is gone
    assert ahead.prepare() == 0
    campaign.run()
    assert sorted((workspace.cache.directory / "entries").iterdir()) == entries


def test_a_requested_structure_that_nobody_drew_is_refused_before_training(
    play: Any, monkeypatch: Any
) -> None:
    campaign = play(holdout_share="0")
    seen = untrained(monkeypatch)
    campaign.submit("a", absent=("spleen",))
    with pytest.raises(NothingToTrainError, match="nobody has drawn: spleen"):
        campaign.run(structures=("spleen",))
    assert seen == []
    report = campaign.run(structures=("liver",))
    assert [(c["name"], c["cases"], c["absent"]) for c in report.preflight["structures"]] == [
        ("liver", 1, 0),
        ("spleen", 0, 1),
    ]
    options = RoundOptions(structures=("spleen",))
    with pytest.raises(NothingToTrainError):
        preflight_of(campaign.workspace, campaign.path, options)
    found = preflight_of(campaign.workspace, campaign.path, RoundOptions()).to_json()
    assert (found["used"], found["holdout_labels"]) == (["a"], 0)


def test_a_copy_of_a_held_out_image_is_never_trained_on(
    play: Any, spied: list[Any], monkeypatch: Any
) -> None:
    campaign = play(holdout_share="0.5", gate_task_margin="1", gate_margin="1")
    workspace = campaign.workspace
    monkeypatch.setattr(workspace, "predictor", lambda *_, **__: perfect(campaign))
    held, (copy, other) = next(holds_out(workspace, True)), islice(holds_out(workspace, False), 2)
    campaign.submit(held)
    campaign.submit(other)
    campaign.submit(copy)
    shutil.copyfile(campaign.path(held), campaign.path(copy))
    report = campaign.run()
    assert spied[0][1].keys() == {other}
    assert [(one.case_id, "copy" in one.reason) for one in report.skipped] == [(copy, True)]
