"""Rounds of a simulated campaign: what is trained on, what is measured, what is published."""

from __future__ import annotations

import hashlib
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hermes.campaign.records import ReviewState, RunState, VersionState
from hermes.checkpoint import LearnedIn, Manifest, UsedCase, load_checkpoint, read_manifest, save_checkpoint
from hermes.config import from_conf
from hermes.errors import CancelledError, ConflictError, NotFoundError, NothingToTrainError
from hermes.geometry import Grid
from hermes.labels.space import LabelSpace, Task
from hermes.model import NetworkConfig, build_network
from hermes.publish import Serving
from hermes.records import LabelMap, NewStructure
from hermes.rounds import Ahead, RoundOptions, preflight_of, require_labels, run_round
from hermes.rounds import round as rounds
from hermes.rounds.gate import Verdict
from hermes.rounds.teachers import choose_teachers
from hermes.submission import Submission
from hermes.training.recipe import Recipe
from hermes.training.report import TrainingResult
from hermes.transforms.preparation import PreparationSpec
from hermes.transforms.writing import write_label_map
from hermes.types import Modality
from hermes.workspace import Workspace

GRID = Grid((32, 32, 32), np.diag([4.0, 4.0, 4.0, 1.0]))


class Play:
    """A campaign on synthetic images: a bright ball is the liver, a darker one the spleen."""

    def __init__(self, folder: Path, **conf: str) -> None:
        torch.manual_seed(0)
        self.folder = folder
        tasks = (Task("liver", "Test"), Task("spleen", "Test"))
        net = build_network(NetworkConfig("hermes-c", 8, tasks=2))
        base = folder / "base"
        if not base.exists():
            manifest = Manifest(net.config, LabelSpace(tasks), PreparationSpec(spacing_mm=4.0), (32, 32, 32))
            save_checkpoint(base, net, manifest)
        settings = {
            "modality": "CT", "train_steps_per_round": "2", "train_patch_voxels": "32,32,32", "train_batch_size": "1",
            "device": "cpu", **conf,
        }  # fmt: skip
        self.workspace = Workspace(from_conf(settings), str(folder / "studies"), starter=base)

    def path(self, image: str) -> Path:
        path = self.folder / f"{image}.nii.gz"
        if not path.exists():
            array, _ = self._drawn(image)
            write_label_map(LabelMap(array.astype(np.uint8), GRID, {}), path)
        return path

    def _drawn(self, image: str) -> tuple[Any, Any]:
        rng = np.random.default_rng(zlib.crc32(image.encode()))
        z, y, x = np.indices((32, 32, 32))
        labels = np.zeros((32, 32, 32), np.uint8)
        for value, radius in ((1, 7), (2, 5)):
            c = rng.integers(8, 24, 3)
            labels[(z - c[0]) ** 2 + (y - c[1]) ** 2 + (x - c[2]) ** 2 < radius**2] = value
        array = rng.normal(30, 5, labels.shape) + 80 * (labels == 1) + 40 * (labels == 2)
        return np.clip(array, 0, 255), labels

    def submit(
        self, image: str, *, absent: tuple[str, ...] = (), first: str = "liver", second: str = "spleen",
        patient: str | None = None, author: str = "ann",
    ) -> int:  # fmt: skip
        self.path(image)
        _, labels = self._drawn(image)
        names = {1: first, 2: second}
        for name in absent:
            value = next(v for v, n in names.items() if n == name)
            labels[labels == value] = 0
            del names[value]
        annotated = {n: "present" for n in names.values()} | {n: "absent" for n in absent}
        file = self.workspace.archive.write(image, Submission(LabelMap(labels, GRID, names), annotated))
        reference = self.workspace.archive.reference(file)
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        return self.workspace.campaign.record_label(
            image, "final", reference, sha256, author, annotated, patient=patient
        ).id

    def run(self, **options: Any) -> Any:
        return run_round(self.workspace, self.path, options=RoundOptions(**{"steps": 2, **options}))


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Callable[..., Play]]:
    opened: list[Play] = []

    def start(**conf: str) -> Play:
        opened.append(Play(tmp_path, **conf))
        return opened[-1]

    yield start
    for one in opened:
        one.workspace.campaign.close()


def holds_out(workspace: Workspace, wanted: bool) -> Iterator[str]:
    """Names of patients that the campaign holds out, or not."""
    rule = workspace.campaign._holdout
    return (f"case{n}" for n in range(10_000) if rule.holds_out(f"case{n}") is wanted)


def untrained(monkeypatch: pytest.MonkeyPatch, change: float = 0.0) -> list[list[str]]:
    """Replaces training by a change of the weights; the case ids that each round would have trained on."""
    seen: list[list[str]] = []

    def train(net: Any, cases: Any, recipe: Any, **_: Any) -> TrainingResult:
        seen.append([case.case_id for case in cases])
        with torch.no_grad():
            for value in net.parameters():
                value.add_(
                    change * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(seen)))
                )
        return TrainingResult(net, recipe.steps, [1.0] * recipe.steps, 0.1)

    monkeypatch.setattr(rounds, "train", train)
    return seen


def perfect(campaign: Play, shown: tuple[int, ...] = (1, 2)) -> Any:
    """A predictor that answers with the truth, or with these structures of it."""

    class Predictor:
        def predict(self, path: Path, rows: Any, **_: Any) -> Any:
            _, labels = campaign._drawn(path.name.removesuffix(".nii.gz"))
            array = np.where(np.isin(labels, shown), labels, 0).astype(np.uint8)
            return SimpleNamespace(label_map=LabelMap(array, GRID, {1: "liver", 2: "spleen"}))

    return Predictor()


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


def test_the_serving_model_teaches_what_it_knows(play: Any, monkeypatch: Any) -> None:
    campaign = play(holdout_share="0")
    workspace = campaign.workspace
    workspace.add_structures([NewStructure("my organ", "liver")])
    campaign.submit("a", second="my organ")
    seen: list[Any] = []
    untrained(monkeypatch)
    fake = rounds.train

    def train(net: Any, cases: Any, recipe: Any, *, teachers: Any, **more: Any) -> Any:
        gentle = recipe.learning_rate < Recipe.for_cpu().learning_rate
        seen.append((recipe.distil_weight, [(net.config.tasks, rows) for net, rows in teachers], gentle))
        return fake(net, cases, recipe, **more)

    monkeypatch.setattr(rounds, "train", train)
    campaign.run(distil=0.0)
    workspace.rollback("base")
    campaign.run(distil=0.5)
    # Row 0 is annotated in every case, "my organ" is what nobody has learned yet.
    assert seen == [(0.0, [], False), (0.5, [(2, (1,))], True)]


def test_what_got_no_new_label_is_rehearsed(play: Any, monkeypatch: Any) -> None:
    campaign = play(holdout_share="0")
    campaign.workspace.add_structures([NewStructure("my organ", "liver")])
    seen: list[Any] = []
    untrained(monkeypatch)
    fake = rounds.train

    def train(net: Any, cases: Any, recipe: Any, *, teachers: Any, **more: Any) -> Any:
        seen.append((recipe.rehearsed_rows, [row for _, rows in teachers for row in rows]))
        return fake(net, cases, recipe, **more)

    monkeypatch.setattr(rounds, "train", train)
    campaign.submit("a")
    campaign.run()
    campaign.submit("b", second="my organ")
    campaign.run()  # the liver is labelled anew, the spleen is not
    campaign.run()  # nothing is new: the labels are to be learned, not what was made of them
    campaign.workspace.rollback("base")
    campaign.submit("c", second="my organ")
    campaign.run()  # the spleen's label is an old one, but not to the model that serves again
    assert [rehearsed for rehearsed, _ in seen] == [(), (1,), (), ()]
    assert 1 in seen[1][1]


def test_who_learned_a_structure_last_answers_for_it(play: Any, monkeypatch: Any) -> None:
    campaign = play(holdout_share="0")
    workspace = campaign.workspace
    workspace.add_structures([NewStructure("my organ", "liver")])
    liver, spleen, organ = 0, 1, 2
    asked: list[Any] = []
    untrained(monkeypatch)
    choose = rounds.choose_teachers

    def spied(*given: Any) -> Any:
        found = choose(*given)
        asked.append({one.version: one.rows for one in found})
        return found

    monkeypatch.setattr(rounds, "choose_teachers", spied)

    def learned_in() -> dict[str, tuple[int, ...]]:
        return {one.version: one.rows for one in workspace.load_serving()[2].learned_in}

    campaign.submit("a")
    first = campaign.run().version
    assert learned_in() == {}
    campaign.submit("b", second="my organ")
    second = campaign.run().version  # the spleen is rehearsed, the liver is labelled anew
    assert learned_in() == {first: (spleen,)}
    campaign.submit("c", second="my organ")
    third = campaign.run().version
    assert learned_in() == {first: (spleen,)}
    assert asked == [{first: (spleen,)}, {second: (organ,), first: (spleen,)}]

    (workspace.versions.directory / first / "model.safetensors").write_bytes(b"damaged")
    campaign.submit("d", second="my organ")
    fourth = campaign.run().version
    assert asked[2] == {third: (spleen, organ)}
    assert learned_in() == {first: (spleen,)}  # whoever answered, the labels were learned there
    campaign.submit("e")
    campaign.run()  # now the spleen is labelled anew, and the organ is rehearsed
    assert learned_in() == {fourth: (organ,)}
    assert liver not in {row for one in asked for rows in one.values() for row in rows}


def test_a_base_of_other_weights_does_not_answer(play: Any, tmp_path: Path, monkeypatch: Any) -> None:
    campaign = play(holdout_share="0")
    workspace = campaign.workspace
    workspace.add_structures([NewStructure("my organ", "liver")])
    untrained(monkeypatch)
    campaign.submit("a", second="my organ")
    campaign.run()
    serving, _, manifest = workspace.load_serving()
    assert [(one.version, one.rows) for one in manifest.learned_in] == [("base", (1,))]
    chosen = choose_teachers(workspace.versions, serving, manifest, (1, 2), {2})
    assert [(one.version, one.rows) for one in chosen] == [(serving.name, (2,)), ("base", (1,))]

    net, old = load_checkpoint(tmp_path / "base")
    shutil.rmtree(tmp_path / "base")
    torch.nn.init.zeros_(next(net.parameters()))
    save_checkpoint(tmp_path / "base", net, old)
    chosen = choose_teachers(workspace.versions, serving, manifest, (1, 2), {2})
    assert [(one.version, one.rows) for one in chosen] == [(serving.name, (1, 2))]


def test_four_teachers_at_most(play: Any) -> None:
    workspace = play().workspace
    net = build_network(NetworkConfig("hermes-c", 8, tasks=15))
    tasks = LabelSpace(tuple(Task(f"organ {row}", "Test") for row in range(15)))
    manifest = Manifest(net.config, tasks, PreparationSpec(spacing_mm=4.0), (32, 32, 32))
    names = [f"v{number:04d}-abcdef" for number in range(1, 7)]
    for name in names:
        stored = save_checkpoint(workspace.versions.directory / name, net, replace(manifest, version=name))
    *earlier, last = names
    rows = dict(zip(earlier, [(0,), (1, 2), (3, 4, 5), (6, 7, 8, 9), (10, 11, 12, 13, 14)], strict=True))
    learned = tuple(LearnedIn(n, stored.sha256, r) for n, r in rows.items())
    manifest = replace(stored, learned_in=learned)
    asked = range(15)
    chosen = choose_teachers(
        workspace.versions, Serving(last, workspace.versions.path(last)), manifest, asked, ()
    )
    assert (
        {one.version: one.rows for one in chosen}
        == {
            last: rows[names[0]] + rows[names[1]],  # what the fewest structures were learned in
            **{name: rows[name] for name in names[2:5]},
        }
    )


def test_a_version_that_never_learned_a_structure_does_not_answer_for_it(play: Any) -> None:
    workspace = play().workspace
    net, manifest = load_checkpoint(workspace.versions.base)
    names = ("v0001-abcdef", "v0002-abcdef")
    for name in names:
        stored = save_checkpoint(
            workspace.versions.directory / name, net, replace(manifest, trained_rows=(0,))
        )
    serving = Serving(names[1], workspace.versions.path(names[1]))
    for rows, teacher in (((0,), names[0]), ((0, 1), names[1])):
        kept = replace(stored, learned_in=(LearnedIn(names[0], stored.sha256, rows),))
        chosen = choose_teachers(workspace.versions, serving, kept, rows, ())
        assert [(one.version, one.rows) for one in chosen] == [(teacher, rows)]


def test_an_image_may_be_asked_only_for_what_its_modality_shows(
    play: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    net = build_network(NetworkConfig("hermes-c", 8, tasks=3))
    modalities = {"liver": (Modality.CT,), "heart": (Modality.CT,), "brain": (Modality.T1,)}
    tasks = LabelSpace(tuple(Task(name, "Test", its) for name, its in modalities.items()))
    manifest = Manifest(net.config, tasks, PreparationSpec(spacing_mm=4.0), (32, 32, 32))
    save_checkpoint(tmp_path / "base", net, manifest)
    campaign = play(holdout_share="0", structures="liver")
    covered: list[Any] = []
    untrained(monkeypatch)
    fake = rounds.train

    def train(net: Any, cases: Any, recipe: Any, **more: Any) -> Any:
        covered.extend(case.covered for case in cases)
        return fake(net, cases, recipe, **more)

    monkeypatch.setattr(rounds, "train", train)
    campaign.submit("a")
    campaign.run()
    assert covered == [{0, 1}]


def test_curves_are_written_where_asked_for(play: Any) -> None:
    campaign = play(holdout_share="0", tensorboard="true")
    campaign.submit("a")
    campaign.run()
    folder = campaign.workspace.directory / "logs" / "tensorboard" / "run-0001"
    assert [file.stat().st_size > 0 for file in folder.iterdir()] == [True]
    assert not (campaign.workspace.directory / "logs" / "mlflow").exists()


def test_replay_weighs_earlier_cases(play: Any, monkeypatch: Any) -> None:
    campaign = play(holdout_share="0")
    seen: list[Any] = []
    untrained(monkeypatch)
    fake = rounds.train

    def train(net: Any, cases: Any, recipe: Any, **more: Any) -> Any:
        seen.append(({c.case_id: c.dataset for c in cases}, dict(recipe.dataset_weights)))
        return fake(net, cases, recipe, **more)

    monkeypatch.setattr(rounds, "train", train)
    for image in "ab":
        campaign.submit(image)
    campaign.run()
    campaign.submit("c")
    campaign.run(replay=0.5)
    campaign.submit("d")
    campaign.run(replay=0.0)
    with pytest.raises(NothingToTrainError, match="replay"):
        campaign.run(replay=0.0)
    assert seen == [
        ({"a": "campaign", "b": "campaign"}, {}),
        ({"a": "earlier", "b": "earlier", "c": "campaign"}, {"campaign": 1.0, "earlier": 1.0}),
        ({"d": "campaign"}, {}),
    ]


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, {"campaign": 1.0, "kept": 1.0}),  # half of the draws, of three images
        ({"replay": 0.25}, {"campaign": 1.0, "kept": 0.75}),
        ({"distil": 0.0}, {}),  # nothing holds what is not drawn
    ],
)
def test_what_is_only_kept_does_not_drown_what_is_new(
    play: Any, monkeypatch: Any, options: dict[str, float], weights: dict[str, float]
) -> None:
    campaign = play(holdout_share="0")
    campaign.workspace.add_structures([NewStructure("my organ", "liver"), NewStructure("my lesion", None)])
    seen: list[Any] = []
    untrained(monkeypatch)
    fake = rounds.train

    def train(net: Any, cases: Any, recipe: Any, **more: Any) -> Any:
        seen.append(({c.dataset for c in cases if c.case_id != "d"}, dict(recipe.dataset_weights)))
        return fake(net, cases, recipe, **more)

    monkeypatch.setattr(rounds, "train", train)
    for image in "abc":
        campaign.submit(image)
    campaign.run()
    campaign.submit("d", first="my organ", second="my lesion")
    campaign.run(**options)
    assert seen == [({"campaign"}, {}), ({"kept"} if weights else {"campaign"}, weights)]


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


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Rounds that train nothing; of each the rehearsed rows and the datasets of its cases."""
    seen: list[Any] = []
    untrained(monkeypatch)
    fake = rounds.train

    def train(net: Any, cases: Any, recipe: Any, **more: Any) -> Any:
        seen.append((recipe.rehearsed_rows, {case.case_id: case.dataset for case in cases}))
        return fake(net, cases, recipe, **more)

    monkeypatch.setattr(rounds, "train", train)
    return seen


def with_organs(play: Any, **conf: str) -> Play:
    """A campaign whose rows are liver, spleen, my organ, my lesion."""
    campaign: Play = play(**{"holdout_share": "0", **conf})
    campaign.workspace.add_structures([NewStructure("my organ", "liver"), NewStructure("my lesion", None)])
    return campaign


ORGANS = {"first": "my organ", "second": "my lesion"}


def test_labels_that_a_round_of_new_rows_passed_by_are_not_known(play: Any, spied: list[Any]) -> None:
    campaign = with_organs(play)
    campaign.submit("a")
    campaign.run()
    campaign.submit("a")  # corrected
    campaign.submit("b", **ORGANS)
    report = campaign.run(mode="priors")
    assert report.cases == 1
    version = report.version
    taught = read_manifest(campaign.workspace.versions.path(version)).trained_on
    assert [(used.case_id, used.rows) for used in taught] == [("b", (2, 3))]
    campaign.submit("c", **ORGANS)
    campaign.run()
    assert spied[1] == ((), {"b": "campaign"})  # nothing else has a row that learns
    assert spied[2] == ((), {"a": "campaign", "b": "campaign", "c": "campaign"})


def test_a_structure_is_known_by_the_label_that_taught_it(play: Any, spied: list[Any]) -> None:
    campaign = with_organs(play)
    campaign.submit("a", author="anna")
    later = campaign.submit("a", author="ben", second="my organ")
    campaign.run()  # ben's liver and organ, anna's spleen
    campaign.workspace.campaign.reviews.review(later, ReviewState.REJECTED, reviewer="chief", comment="wrong")
    campaign.submit("b", **ORGANS)
    campaign.run()
    assert spied[1][0] == (1,)  # anna's liver has taught nobody


def test_labels_of_another_campaign_are_not_known(play: Any, spied: list[Any], tmp_path: Path) -> None:
    first = with_organs(play)
    first.submit("a")
    base = first.workspace.versions.path(first.run().version)
    settings = {
        "modality": "CT",
        "train_steps_per_round": "2",
        "train_patch_voxels": "32,32,32",
        "holdout_share": "0",
    }
    second = with_organs(play)
    second.folder = tmp_path / "second"
    second.folder.mkdir()
    second.workspace = Workspace(from_conf(settings), str(second.folder / "studies"), starter=base)
    second.submit("other")
    second.submit("b", first="my organ")
    second.run()
    assert spied[1] == ((), {"other": "campaign", "b": "campaign"})


def test_what_was_learned_long_ago_is_still_known(play: Any, spied: list[Any]) -> None:
    campaign = with_organs(play)
    campaign.submit("a")
    campaign.submit("b")
    campaign.run()
    campaign.submit("c")
    campaign.run(replay=0.0)
    campaign.submit("d", **ORGANS)
    campaign.run()
    assert spied[1][1].keys() == {"c"}
    assert spied[2] == ((0, 1), {"a": "kept", "b": "kept", "c": "kept", "d": "campaign"})


def test_what_a_rejected_label_taught_is_not_kept(play: Any, spied: list[Any]) -> None:
    campaign = with_organs(play)
    campaign.submit("a")
    bad = campaign.submit("b")
    campaign.run()
    campaign.workspace.campaign.reviews.review(bad, ReviewState.REJECTED, reviewer="chief", comment="wrong")
    campaign.submit("c", **ORGANS)
    campaign.run()
    campaign.submit("d", **ORGANS)
    campaign.run()
    assert [rehearsed for rehearsed, _ in spied] == [(), (), (0, 1)]


def test_labels_of_a_refused_version_are_trained_on_again(
    play: Any, spied: list[Any], monkeypatch: Any
) -> None:
    campaign = play(holdout_share="0")
    campaign.submit("a")
    monkeypatch.setattr(rounds._Round, "_judge", lambda *_: (Verdict("refused", "bad"), (), []))
    campaign.run()
    campaign.run(replay=0.0)
    campaign.submit("b")
    campaign.run(replay=0.1)
    assert [cases for _, cases in spied] == [{"a": "campaign"}] * 2 + [{"a": "campaign", "b": "campaign"}]


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
