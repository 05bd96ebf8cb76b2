"""One pass with real parts: from an empty PACS to a retrained model, annotators played in OHIF and by 3D Slicer's calls.

Orthanc, the server on it and headless Chromium are started; CT phantoms are stored; then, as often as a round needs
labels: Next image, Segment, the label corrected (every voxel set to the phantom's truth), Submit. The last label of the
round comes through the client that 3D Slicer's module uses. Prints the seconds of each stage, and keeps a picture of each
that a browser shows in the folder ``--out``: look at them.

    python benchmarks/pacs_pass.py --out pacs-pass --labels 2 --steps 60
"""

from __future__ import annotations

import argparse
import base64
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import requests
from monailabel.client import MONAILabelClient
from playwright.sync_api import Page, sync_playwright

from hermes import pacs
from hermes.demo import running_server
from hermes.geometry import Grid
from hermes.phantoms import PhantomCase, make_case
from hermes.phantoms.dicom import series_uid, write_dicom_series
from hermes.records import LabelMap
from hermes.transforms.reading import read_label_map, read_volume
from hermes.transforms.writing import write_label_map

STRUCTURES = ("liver", "spleen", "left kidney", "right kidney", "stomach")
FLAGS = [
    "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-quic",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage",
]  # fmt: skip
PATIENCE_S = 600.0

_CORRECT = """([truth, names]) => {
  const bytes = Uint8Array.from(atob(truth), (c) => c.charCodeAt(0));
  const one = window.hermes.segmentation();
  const index = Object.fromEntries(Object.values(one.segments).map((s) => [s.label, s.segmentIndex]));
  const { slices, size } = window.hermes.slices();
  const plane = size[0] * size[1];
  let changed = 0;
  slices.forEach(({ image, pixels }, k) => {
    for (let i = 0; i < plane; i += 1) {
      const wanted = index[names[bytes[k * plane + i]]] ?? 0;
      changed += pixels[i] !== wanted ? 1 : 0;
      pixels[i] = wanted;
    }
    image.voxelManager?.setScalarData?.(pixels);
  });
  window.cornerstoneTools.segmentation.triggerSegmentationEvents.triggerSegmentationDataModified(one.segmentationId);
  return changed;
}"""


class Stages:
    """The seconds of each stage, printed as they come."""

    def __init__(self, out: Path) -> None:
        self.rows: list[tuple[str, float]] = []
        self._out = out

    @contextmanager
    def __call__(self, name: str, page: Page | None = None) -> Iterator[None]:
        """Times the block; with ``page`` a picture of its end is kept."""
        begin = time.perf_counter()
        yield
        self.rows.append((name, time.perf_counter() - begin))
        print(f"{self.rows[-1][1]:8.2f} s  {name}", flush=True)
        if page is not None:
            page.wait_for_timeout(700)
            page.screenshot(path=self._out / f"{len(self.rows):02d}-{name.replace(' ', '-')}.png")


def wait_for(condition: Callable[[], Any]) -> Any:
    """What the condition gives once it is true."""
    ends = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends:
        if found := condition():
            return found
        time.sleep(0.2)
    sys.exit("it did not come true in time")


def click(page: Page, button: str) -> str:
    """Click a button of the panel and wait for what it says."""
    page.evaluate("document.querySelector('.hermes [role=status]').dataset.kind = 'waiting'")
    page.click(f".hermes-{button}")
    said = page.locator(".hermes [role=status][data-kind=good], .hermes [role=status][data-kind=error]")
    said.wait_for(timeout=PATIENCE_S * 1000)
    text = said.inner_text()
    if said.get_attribute("data-kind") == "error":
        sys.exit(text)
    return text


def correct(page: Page, case: PhantomCase) -> int:
    """Set every voxel on screen to the truth; how many changed."""
    truth = base64.b64encode(case.labels.tobytes()).decode()
    names = {str(value): name for value, name in case.names.items() if name in STRUCTURES}
    return int(page.evaluate(_CORRECT, [truth, names]))


def label_one(page: Page, number: int, cases: dict[str, PhantomCase], stages: Stages) -> None:
    """Next image, Segment, correct, Submit."""
    with stages(f"image {number}: next image until the viewer is ready", page):
        before = page.url
        page.click(".hermes-next")
        page.wait_for_url(lambda url: "monai-label" in url and url != before, timeout=PATIENCE_S * 1000)
        page.wait_for_selector(".hermes[data-state=ready]", timeout=PATIENCE_S * 1000)
        page.wait_for_function("window.hermes.segmentation() && window.hermes.slices()")
    hide = page.get_by_text("Confirm and Hide")
    if hide.count():
        hide.first.dispatch_event("click")  # a message of the viewer may lie over it
    with stages(f"image {number}: segment", page):
        print(f"            {click(page, 'segment')}")
    with stages(f"image {number}: corrected by a script", page):
        print(
            f"            {correct(page, cases[page.evaluate('window.hermes.state.series')])} voxels changed"
        )
    with stages(f"image {number}: submit", page):
        print(f"            {click(page, 'submit')}")


def label_as_slicer(
    address: str, number: int, cases: dict[str, PhantomCase], scratch: Path, stages: Stages
) -> None:
    """The calls of 3D Slicer's module for one image."""
    scratch.mkdir()
    client = MONAILabelClient(address, str(scratch), "ben")
    with stages(f"image {number}, as Slicer: next sample"):
        sample = client.next_sample("first", {})
    image, case = sample["id"], cases[sample["id"]]
    with stages(f"image {number}, as Slicer: download"):
        answer = requests.get(f"{address}/datastore/image", params={"image": image}, timeout=PATIENCE_S)
        answer.raise_for_status()
        (scratch / sample["name"]).write_bytes(answer.content)
    with stages(f"image {number}, as Slicer: infer"):
        offered, _ = client.infer("hermes", image, {"result_extension": ".nii.gz"})
    before, grid = read_label_map(offered).array, read_volume(scratch / sample["name"]).grid
    truth = case.labels if grid.matches(Grid(case.labels.shape, case.affine)) else case.labels[::-1]
    names = [(value, name) for value, name in case.names.items() if name in STRUCTURES]
    drawn = np.zeros(truth.shape, np.uint8)
    for number_in_file, (value, _) in enumerate(names, start=1):
        drawn[truth == value] = number_in_file
    file = write_label_map(LabelMap(drawn, grid, {}), scratch / "label.nii.gz")
    info = [{"name": name, "idx": number_in_file} for number_in_file, (_, name) in enumerate(names, start=1)]
    with stages(f"image {number}, as Slicer: submit"):
        client.save_label(image, str(file), params={"label_info": info})
    print(f"            {np.count_nonzero((before > 0) != (drawn > 0))} voxels changed")


def run(out: Path, labels: int, steps: int) -> list[tuple[str, float]]:
    """The whole pass; the seconds of its stages."""
    stages, directory = Stages(out), Path(tempfile.mkdtemp())
    cases = [
        make_case("PhantomAbdomenCT", seed, size="tiny", plain_axes=True) for seed in range(1, labels + 3)
    ]
    known = {series_uid(case): case for case in cases}
    conf = {
        "structures": ",".join(STRUCTURES), "labels_per_round": str(labels), "train_steps_per_round": str(steps),
        "holdout_share": "0", "campaign_dir": str(directory / "campaign"), "score_images_per_round": "0",
    }  # fmt: skip
    orthanc = pacs.Orthanc(directory / "orthanc", pacs.free_port())
    try:
        with stages("Orthanc starts"):
            orthanc.start()
        files = [file for case in cases for file in write_dicom_series(case, directory / case.name)]
        with stages(f"{len(cases)} CT series ({len(files)} images) stored"):
            pacs.store(orthanc.dicomweb, files)
        begin = time.perf_counter()
        with running_server(orthanc.dicomweb, conf, out / "server.log") as address:
            stages.rows.append(("server starts", time.perf_counter() - begin))
            print(f"{stages.rows[-1][1]:8.2f} s  server starts")
            in_browser(address, orthanc, known, labels, stages)
    finally:
        orthanc.stop()
        shutil.rmtree(directory, ignore_errors=True)
    return stages.rows


def in_browser(
    address: str, orthanc: pacs.Orthanc, cases: dict[str, PhantomCase], labels: int, stages: Stages
) -> None:
    """What the annotator does and sees."""

    def viewer() -> dict[str, Any]:
        answer: dict[str, Any] = requests.get(f"{address}/hermes/viewer", timeout=60).json()
        return answer

    def objects() -> int:
        found = requests.get(f"{orthanc.dicomweb}/series", params={"Modality": "SEG"}, timeout=60)
        return len(found.json())

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_context(viewport={"width": 1500, "height": 950}).new_page()
        with stages("worklist", page):
            page.goto(f"{address}/ohif/")
            page.get_by_text("PhantomAbdomenCT_0001").first.wait_for(timeout=PATIENCE_S * 1000)
        page.fill(".hermes-name input", "anna")
        page.press(".hermes-name input", "Enter")
        before = viewer()["serving_version"]
        for number in range(1, labels):
            label_one(page, number, cases, stages)
        with tempfile.TemporaryDirectory() as scratch:
            label_as_slicer(address, labels, cases, Path(scratch) / "slicer", stages)
        with stages("all SEG objects in the PACS"):
            wait_for(lambda: objects() == labels)
        with stages("last submit until the round has ended"):
            ended = wait_for(
                lambda: (now := viewer())["training"]["phase"] in ("published", "refused", "failed") and now
            )
        print(f"            {before} -> {ended['serving_version']} ({ended['training']['phase']})")
        label_one(page, labels + 1, cases, stages)
        browser.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-out/pacs-pass"))
    parser.add_argument("--labels", type=int, default=2, help="labels of a round")
    parser.add_argument("--steps", type=int, default=60, help="training steps of the round")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    rows = run(given.out, given.labels, given.steps)
    print(f"{time.perf_counter() - begin:8.2f} s  in all")
    (given.out / "stages.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
