"""What rounds of a simulated campaign keep of what the model knows, and who answers for it."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.playing import ORGANS, untrained, with_organs

from hermes.campaign.records import ReviewState
from hermes.checkpoint import LearnedIn, Manifest, load_checkpoint, read_manifest, save_checkpoint
from hermes.config import from_conf
from hermes.errors import NothingToTrainError
from hermes.labels.space import LabelSpace, Task
from hermes.model import NetworkConfig, build_network
from hermes.publish import Serving
from hermes.records import NewStructure
from hermes.rounds import round as rounds
from hermes.rounds.gate import Verdict
from hermes.rounds.recipe import by_rarity
from hermes.rounds.round import _Start
from hermes.rounds.teachers import choose_teachers
from hermes.training.cases import TrainingCase
from hermes.training.recipe import Recipe
from hermes.transforms.preparation import PreparationSpec
from hermes.types import CaseId, Modality
from hermes.workspace import Workspace


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


@pytest.mark.parametrize(
    ("conf", "options", "covered", "asked"),
    [
        ({}, {}, {0, 1}, []),  # nothing that it names is left without a label
        ({"keep": "all"}, {}, None, [(1, 2)]),
        ({}, {"keep": "all"}, None, [(1, 2)]),
        ({}, {"keep": "all", "distil": 0.0}, None, []),
        ({"keep": "all"}, {"keep": "named"}, {0, 1}, []),
    ],
)
def test_what_a_round_keeps(
    play: Any, tmp_path: Path, monkeypatch: Any, conf: Any, options: Any, covered: Any, asked: Any
) -> None:
    """``all`` asks every image for whatever the model knows: there is none in MR here that could keep the brain."""
    net = build_network(NetworkConfig("hermes-c", 8, tasks=3))
    modalities = {"liver": (Modality.CT,), "heart": (Modality.CT,), "brain": (Modality.T1,)}
    tasks = LabelSpace(tuple(Task(name, "Test", its) for name, its in modalities.items()))
    manifest = Manifest(net.config, tasks, PreparationSpec(spacing_mm=4.0), (32, 32, 32))
    save_checkpoint(tmp_path / "base", net, manifest)
    campaign = play(holdout_share="0", structures="liver", **conf)
    seen: list[Any] = []
    untrained(monkeypatch)
    fake = rounds.train

    def train(net: Any, cases: Any, recipe: Any, *, teachers: Any, **more: Any) -> Any:
        seen.append((cases[0].covered, [rows for _, rows in teachers]))
        return fake(net, cases, recipe, **more)

    monkeypatch.setattr(rounds, "train", train)
    campaign.submit("a", second="my organ")
    campaign.run(**{"keep": campaign.workspace.settings.keep, **options})
    assert seen == [(covered, asked)]


def test_a_round_can_forget_only_what_its_images_could_show() -> None:
    """A campaign in CT alone is not a gentle one because the model draws the same structures in MR."""
    manifest: Any = SimpleNamespace(learned_rows=frozenset(range(5)))

    def forgotten(*cases: tuple[set[int] | None, tuple[int, ...]]) -> tuple[int, ...]:
        voxels = np.zeros((1, 1, 1))
        made = [
            TrainingCase(CaseId("x"), voxels, voxels, dict.fromkeys(rows), None, covered=covered)
            for covered, rows in cases
        ]
        none: Any = None
        return _Start(none, manifest, none, none, (), made, [], (), frozenset({0, 1, 2, 3})).may_be_forgotten

    ct, mr = {0, 1, 4}, {2, 3}
    assert forgotten((ct, (0, 1))) == ()
    assert forgotten((ct, (0, 1)), (ct, (0,))) == (1,)
    assert forgotten((ct, (0, 1)), (mr, (2,))) == (3,)
    assert forgotten((ct, (0, 1)), (mr, (2, 3))) == ()
    assert forgotten((None, (0, 1))) == (2, 3)


def test_what_few_images_draw_is_drawn_more_often() -> None:
    voxels = np.zeros((1, 1, 1))

    def case(name: str, *drawn: int, absent: tuple[int, ...] = ()) -> TrainingCase:
        annotated = {row: row + 1 for row in drawn} | dict.fromkeys(absent)
        return TrainingCase(CaseId(name), voxels, voxels, annotated, Modality.CT)

    alike = [case(name, 0, 1) for name in "abc"]
    assert {c.weight for c in by_rarity(alike, {0, 1})} == {1.0}
    five = [*alike, case("d", 0, 1, 2), case("e", absent=(0, 2))]
    weights = [c.weight for c in by_rarity(five, {0, 1, 2})]
    assert weights == pytest.approx([math.sqrt(5 / 4)] * 3 + [math.sqrt(5), 1.0])
    assert [c.weight for c in by_rarity(five, {2})] == pytest.approx([1.0] * 3 + [math.sqrt(5), 1.0])


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
        ({}, {"campaign": 2.0, "kept": 2.0}),  # half of the draws, of three images
        ({"replay": 0.25}, {"campaign": 2.0, "kept": 0.75 * math.sqrt(4 / 3)}),
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
    assert [datasets for datasets, _ in seen] == [{"campaign"}, {"kept"} if weights else {"campaign"}]
    assert [drawn for _, drawn in seen] == [{}, pytest.approx(weights)]


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
