"""A real PACS, a real server and a real browser: Orthanc, Hermes on it, and OHIF in headless Chromium."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
import torch

from hermes import pacs
from hermes.campaign.campaign import Campaign
from hermes.checkpoint import Manifest, save_checkpoint
from hermes.demo import running
from hermes.labels.space import LabelSpace, Task
from hermes.model import NetworkConfig, build_network
from hermes.phantoms import PhantomCase
from hermes.phantoms.dicom import series_uid
from hermes.transforms.preparation import PreparationSpec

from .images import ORIENTATIONS, STRUCTURES, make_image, write

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox", "--disable-gpu-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip
"""A browser without a graphics card, and without calls to anywhere else."""
READY_MS = 90_000


def missing_parts() -> str | None:
    """What keeps these tests from running here."""
    if CHROMIUM is None:
        return "Chromium is not installed. `make parts` installs it."
    if find_spec("playwright") is None:
        return "Playwright is not installed. `make install` installs it."
    return pacs.how_to_install()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = missing_parts()
    for item in items:
        if missing is not None and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=missing))


@dataclass(frozen=True)
class Site:
    """A hospital: its PACS, the server on it, and the images that both know."""

    address: str
    orthanc: pacs.Orthanc
    cases: dict[str, PhantomCase]
    directory: Path

    def get(self, path: str) -> Any:
        answer = requests.get(f"{self.address}{path}", timeout=60)
        answer.raise_for_status()
        return answer.json()

    def campaign(self) -> Campaign:
        found = list(self.directory.rglob("campaign.sqlite"))
        assert len(found) == 1
        return Campaign(found[0])

    def series(self, **filters: str) -> list[dict[str, Any]]:
        answer = requests.get(f"{self.orthanc.dicomweb}/series", params=filters, timeout=60)
        answer.raise_for_status()
        return answer.json() if answer.content else []  # type: ignore[no-any-return]

    def viewer(self, orientation: str) -> str:
        series = series_uid(self.cases[orientation])
        study = self.series(SeriesInstanceUID=series)[0]["0020000D"]["Value"][0]
        return f"{self.address}/ohif/monai-label?StudyInstanceUIDs={study}"


def wait_for(condition: Any, seconds: float = 60.0) -> Any:
    """What ``condition`` gives once it is true."""
    ends = time.monotonic() + seconds
    while True:
        found = condition()
        if found or time.monotonic() > ends:
            assert found, "it did not come true in time"
            return found
        time.sleep(0.2)


def tiny_model(directory: Path) -> Path:
    torch.manual_seed(0)
    tasks = tuple(Task(name, "Test") for name in STRUCTURES)
    net = build_network(NetworkConfig("hermes-c", 8, tasks=len(tasks)))
    manifest = Manifest(
        net.config, LabelSpace(tasks), PreparationSpec(spacing_mm=6.0), (32, 32, 32), version="tiny"
    )
    save_checkpoint(directory, net, manifest)
    return directory


@contextmanager
def running_server(studies: str, directory: Path, **conf: str) -> Iterator[str]:
    """`make serve` with the app of this folder, and its campaign in ``directory``."""
    port = pacs.free_port()
    settings = {
        "structures": ",".join(STRUCTURES), "model": str(tiny_model(directory / "tiny")), "labels_per_round": "0",
        "train_steps_per_round": "2", "train_patch_voxels": "32,32,32", "score_images_per_round": "0",
        "holdout_share": "0", "campaign_dir": str(directory / "campaign"), **conf,
    }  # fmt: skip
    text = " ".join(f"{key}={value}" for key, value in settings.items())
    code = "import sys, pathlib, hermes.serve as serve; serve.APP = pathlib.Path(sys.argv.pop(1)); sys.exit(serve.main())"
    app = shutil.copytree(Path(__file__).parent / "app", directory / "app")
    options = ["--port", str(port), "--studies", studies, "--conf", text]
    with running([sys.executable, "-c", code, str(app), *options], port, directory / "server.log") as address:
        yield address


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    cases = {orientation: make_image(orientation) for orientation in ORIENTATIONS}
    with pacs.running_orthanc(directory / "orthanc") as orthanc:
        for case in cases.values():
            pacs.store(orthanc.dicomweb, write(case, directory / "dicom"))
        with running_server(orthanc.dicomweb, directory, labels_per_round="1") as address:
            yield Site(address, orthanc, cases, directory)


@pytest.fixture(scope="module")  # while it is there an event loop runs in this thread: asyncio.run fails
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def window(browser: Browser) -> Iterator[BrowserContext]:
    """One profile for all tests: the viewer's 20 MB of script are read and compiled once."""
    context = browser.new_context(viewport={"width": 1200, "height": 760})
    yield context
    context.close()


@pytest.fixture
def page(window: BrowserContext, site: Site, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A tab of an annotator whom nobody knows yet; its last picture goes to the folder HERMES_SCREENSHOTS."""
    window.clear_cookies()
    opened = window.new_page()
    opened.goto(f"{site.address}/ohif/hermes/hermes.css")  # a page of the same origin that runs no script
    opened.evaluate("localStorage.clear()")
    yield opened
    folder = os.environ.get("HERMES_SCREENSHOTS")
    if folder:
        opened.screenshot(path=Path(folder) / f"{request.node.name}.png")
    opened.close()
