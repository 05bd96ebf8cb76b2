"""The report: right for an empty campaign, safe for any name, and its figures are arithmetic."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from hermes.campaign.agreements import OfferedDice
from hermes.campaign.facts import ImageFacts
from hermes.campaign.records import ReviewState, VersionState
from hermes.checkpoint import Manifest, save_checkpoint
from hermes.cli import main
from hermes.config import from_conf
from hermes.geometry import Grid
from hermes.labels.space import LabelSpace, Task
from hermes.model import NetworkConfig, build_network
from hermes.records import LabelMap
from hermes.report import html_report, summarise
from hermes.report.pairs import surface_distances_mm
from hermes.report.stopping import advice
from hermes.submission import Submission
from hermes.transforms.preparation import PreparationSpec
from hermes.workspace import Workspace

EVIL = '<script>alert("$x_1$")</script>'
GRID = Grid((12, 12, 12), np.diag([2.0, 2.0, 2.0, 1.0]))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = build_network(NetworkConfig("hermes-c", 8, tasks=2))
    directory = tmp_path_factory.mktemp("model") / "tiny"
    space = LabelSpace((Task("liver", "Test"), Task("spleen", "Test")))
    torch.manual_seed(0)
    save_checkpoint(
        directory, net, Manifest(net.config, space, PreparationSpec(9.0), (32, 32, 32), version="tiny")
    )
    return directory


@pytest.fixture
def open_campaign(tmp_path: Path, model: Path) -> Callable[..., Workspace]:
    def opened(**conf: str) -> Workspace:
        return Workspace(from_conf({"model": str(model), **conf}), str(tmp_path / "studies"), starter=model)

    return opened


def cube(start: int, side: int = 4) -> np.ndarray:
    array = np.zeros(GRID.shape, np.uint8)
    array[start : start + side, 2:6, 2:6] = 1
    return array


def submit(workspace: Workspace, image: str, annotator: str, drawn: np.ndarray, **annotated: str) -> int:
    about = annotated or {"liver": "present"}
    path = workspace.archive.write(image, Submission(LabelMap(drawn, GRID, {1: "liver"}), about))
    reference = workspace.archive.reference(path)
    return workspace.campaign.record_label(image, "final", reference, "0" * 64, annotator, about).id


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href") and tag != "use"]


def test_an_empty_campaign_has_a_report(open_campaign: Callable[..., Workspace]) -> None:
    summary = summarise(open_campaign())
    page = Page(html_report(summary))
    assert not summary.advice.stop
    assert "svg" not in page.tags
    assert page.tags.count("h2") == 8


def test_figures_and_pictures_of_a_campaign(open_campaign: Callable[..., Workspace]) -> None:
    workspace = open_campaign(labels_per_image="2", quotas="liver=1", structures=f"liver,spleen,{EVIL[1:7]}")
    campaign = workspace.campaign
    campaign.sync_images(["a", "b", EVIL])
    campaign.assignments.take("a", EVIL, 60, workspace.wish())
    one = submit(workspace, "a", EVIL, cube(2))
    submit(workspace, "a", "ben", cube(3))
    submit(workspace, "b", "ben", cube(0, 0), liver="absent")
    campaign.reviews.review(one, ReviewState.APPROVED, reviewer=EVIL)
    campaign.assignments.skip(EVIL, EVIL, EVIL)
    campaign.agreements.put_offered(one, "v1", {"liver": 0.5})
    for number, state in enumerate((VersionState.PUBLISHED, VersionState.REFUSED)):
        report = {
            "cases": 3,
            "gate": {"state": "passed", "mean_before": 0.1, "mean_after": 0.5, "reason": EVIL},
        }
        campaign.record_version(f"v{number}", f"v{number}", metrics={"report": report}, state=state)
    summary = summarise(workspace)
    assert [(row.structure, row.drawn, row.absent, row.quota) for row in summary.coverage][:2] == [
        ("liver", 1, 1, 1),
        ("spleen", 0, 0, None),
    ]
    anna, ben = summary.annotators
    assert (anna.name, anna.labels, anna.skips, anna.approved, ben.labels, ben.images) == (
        EVIL,
        1,
        1,
        1,
        2,
        2,
    )
    assert anna.median_s is not None
    assert ben.median_s is None
    [pair] = summary.pairs  # cubes of 4 x 4 x 4 voxels of 2 mm, one voxel apart along z
    assert (pair.first, pair.second, pair.structure, pair.images) == (EVIL, "ben", "liver", 1)
    assert pair.dice == pytest.approx(0.75)
    assert pair.hausdorff95_mm == pytest.approx(2.0)
    assert pair.mean_distance_mm is not None
    assert 0 < pair.mean_distance_mm < 2
    assert campaign.agreements.pairs() != {}  # kept: not measured again
    assert [(row.structure, row.submissions, row.mean) for row in summary.offered] == [("liver", 1, 0.5)]
    page = Page(html_report(summary))
    assert page.tags.count("svg") == 4
    assert "script" not in page.tags
    assert page.links == []
    assert summary.advice.stop  # its only quota is full


def test_waiting_images_of_unusual_volumes_are_listed(open_campaign: Callable[..., Workspace]) -> None:
    workspace = open_campaign()
    campaign = workspace.campaign
    names = [f"case {n}" for n in range(12)]
    campaign.sync_images([*names, EVIL, "done", "tiny liver"])
    volumes = {name: {"liver": 1500.0 + 40 * (n % 5), "spleen": 200.0} for n, name in enumerate(names)}
    volumes |= {
        EVIL: {"liver": 6000.0, "spleen": 205.0},
        "done": {"liver": 9000.0},
        "tiny liver": {"liver": 15.0, "spleen": 200.0},
    }
    for name, by_structure in volumes.items():
        campaign.facts.put(workspace.versions.serving().name, name, ImageFacts({"volume_ml": by_structure}))
        campaign.facts.put("another version", name, ImageFacts({"volume_ml": {"liver": 1.0}}))
    submit(workspace, "done", "anna", cube(2))
    found = summarise(workspace).unusual
    assert [(one.image_id, one.structure, one.volume_ml) for one in found] == [
        ("tiny liver", "liver", 15.0),
        (EVIL, "liver", 6000.0),
    ]
    assert all(1500 <= one.usual_ml <= 1660 and one.deviation > 10 for one in found)
    page = html_report(summarise(workspace))
    assert "tiny liver" in page
    assert EVIL not in page  # escaped
    assert len(json.loads(json.dumps(summarise(workspace).to_json()))["unusual"]) == 2


def test_surface_distances_are_in_millimetres() -> None:
    ours, theirs = np.zeros((5, 1, 1), bool), np.zeros((5, 1, 1), bool)
    ours[0], theirs[2:5] = True, True
    there, back = surface_distances_mm(ours, theirs, (2.0, 1.0, 1.0))
    assert there.tolist() == [4.0]
    assert sorted(back.tolist()) == [4.0, 6.0, 8.0]


def offered(values: list[float], structure: str = "liver") -> list[OfferedDice]:
    return [OfferedDice(n, f"{n}", "anna", float(n), structure, "v1", d) for n, d in enumerate(values)]


@pytest.mark.parametrize(
    ("dice", "means", "quotas", "waiting", "stop"),
    [
        (offered([0.96] * 5), [], {}, 9, True),
        (offered([0.5, *[0.96] * 5]), [], {}, 9, True),
        (offered([*[0.96] * 4, 0.9]), [], {}, 9, False),
        (offered([0.96] * 4), [], {}, 9, False),
        (offered([0.96] * 5) + offered([0.96] * 4, "spleen"), [], {}, 9, False),
        (offered([0.96] * 5), [0.5, 0.6, 0.7, 0.8], {}, 9, False),
        (offered([0.96] * 5), [0.8, 0.8, 0.79, 0.801], {}, 9, True),
        (offered([0.5] * 5), [0.8, 0.8, 0.79, 0.801], {}, 9, False),
        ([], [], {}, 9, False),
        ([], [], {}, 0, True),
        ([], [], {"liver": (5, 5), "spleen": (1, 2)}, 9, False),
        ([], [], {"liver": (5, 5), "spleen": (2, 2)}, 9, True),
    ],
)
def test_when_to_stop(
    dice: list[OfferedDice],
    means: list[float],
    quotas: dict[str, tuple[int, int]],
    waiting: int,
    stop: bool,
) -> None:
    said = advice(dice, means, threshold=0.95, last=5, margin=0.005, quotas=quotas, waiting=waiting)
    assert said.stop is stop
    assert len(said.reasons) >= 2


def test_the_commands(
    open_campaign: Callable[..., Workspace], tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = open_campaign()
    workspace.campaign.sync_images(["a", "b"])
    submit(workspace, "a", "anna", cube(2))
    studies, conf = str(tmp_path / "studies"), f"model={model}"
    assert main(["report", studies, "--conf", conf, "-o", str(tmp_path / "r.html")]) == 0
    assert (tmp_path / "r.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert main(["review", studies, "rejected", "a", "--conf", conf]) == 2
    assert main(["review", studies, "rejected", "a", "--comment", "no", "--conf", conf]) == 0
    assert main(["skip", studies, "b", "--annotator", "ben", "--reason", "dark", "--conf", conf]) == 0
    assert main(["revisit", studies, "b", "--reason", "look", "--conf", conf]) == 0
    capsys.readouterr()
    assert main(["review", studies, "--conf", conf]) == 0
    assert "rejected" in capsys.readouterr().out
    out = tmp_path / "out"
    assert main(["export", studies, "-o", str(out), "--conf", conf]) == 0
    assert main(["export", studies, "-o", str(out), "--conf", conf]) == 2
    new = tmp_path / "moved"
    assert main(["import-campaign", str(new), str(out)]) == 0
    assert main(["import-campaign", str(new), str(out)]) == 2
    moved = Workspace(from_conf({"model": str(model)}), str(new), starter=model)
    [label] = moved.campaign.labels()
    assert moved.archive.path(label.path).read_bytes() == workspace.archive.path(label.path).read_bytes()
    assert [skip.annotator for skip in moved.campaign.assignments.skips()] == ["ben"]
    workspace.campaign.withdraw_label("a")
    assert main(["review", studies, "--conf", conf]) == 0
    assert {
        line.split("\t")[3] for line in capsys.readouterr().out.splitlines() if line.startswith("a\t")
    } == {"withdrawn"}
