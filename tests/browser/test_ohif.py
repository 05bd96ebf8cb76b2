"""An annotator's work in OHIF, with real parts: every voxel on screen is known, and every click has a consequence."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlparse

import numpy as np
import pydicom
import requests
from numpy.typing import NDArray

from hermes.dicom import SourceSeries, read_segmentations, write_segmentation
from hermes.geometry import Grid
from hermes.labels.catalogue import describe
from hermes.phantoms import PhantomCase
from hermes.phantoms.dicom import series_uid
from hermes.records import LabelMap
from hermes.transforms.reading import read_label_map

from .conftest import READY_MS, Site, wait_for
from .images import STRUCTURES

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Page

NAMES = {value: name for value, name in enumerate(STRUCTURES, start=1)}

_VOXELS = """() => {
  const { slices, size, grid } = window.hermes.slices();
  const names = Object.fromEntries(Object.values(window.hermes.segmentation().segments).map((s) => [s.segmentIndex, s.label]));
  return { size, grid, names, voxels: slices.map(({ pixels }) => Array.from(pixels)) };
}"""


def open_viewer(page: Page, address: str, name: str = "anna") -> None:
    page.goto(address)
    page.wait_for_selector(".hermes[data-state=ready]", timeout=READY_MS)
    page.wait_for_function("window.hermes.segmentation() && window.hermes.slices()", timeout=READY_MS)
    hide = page.get_by_text("Confirm and Hide")
    if hide.count():
        hide.first.dispatch_event("click")  # a message of the viewer may lie over it
    if page.locator(".hermes-name").is_visible():
        page.fill(".hermes-name input", name)
        page.press(".hermes-name input", "Enter")


def click(page: Page, button: str, kind: str = "good") -> str:
    """Click a button of the panel and wait until it says how that ended."""
    page.evaluate("document.querySelector('.hermes [role=status]').dataset.kind = 'waiting'")
    page.click(f".hermes-{button}")
    page.wait_for_selector(
        ".hermes [role=status][data-kind=good], .hermes [role=status][data-kind=error]", timeout=READY_MS
    )
    said = page.locator(".hermes [role=status]")
    text = said.inner_text()
    assert said.get_attribute("data-kind") == kind, text
    return text


def on_screen(page: Page) -> tuple[NDArray[np.uint8], Grid, dict[int, str]]:
    """The labelmap in the viewer: ``(D, H, W)``, where it lies, and the names of its segments."""
    told: dict[str, Any] = page.evaluate(_VOXELS)
    columns, rows, count = told["size"]
    affine = np.eye(4)
    affine[:3, :3] = np.array(told["grid"]["axes"]).T
    affine[:3, 3] = told["grid"]["origin"]
    array = np.array(told["voxels"], np.uint8).reshape(count, rows, columns)
    return array, Grid(array.shape, affine), {int(k): v for k, v in told["names"].items()}


def named(array: NDArray[Any], names: dict[int, str]) -> NDArray[np.uint8]:
    """The array in this file's numbers, by name."""
    found = np.zeros(array.shape, np.uint8)
    for value, name in names.items():
        if name in STRUCTURES:
            found[array == value] = STRUCTURES.index(name) + 1
    return found


def truth(case: PhantomCase) -> LabelMap:
    return LabelMap(case.labels, Grid(case.labels.shape, case.affine), dict(NAMES))


def at_positions(label: LabelMap, points_mm: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The values of the voxels at (n, 3) LPS positions; 255 outside."""
    inverse = np.linalg.inv(label.grid.affine)
    index = np.rint(points_mm @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)[:, ::-1]
    inside = ((index >= 0) & (index < np.array(label.array.shape))).all(axis=1)
    found = np.full(len(points_mm), 255, np.uint8)
    found[inside] = label.array[tuple(index[inside].T)]
    return found


def same_in_space(array: NDArray[np.uint8], grid: Grid, expected: LabelMap) -> bool:
    """Whether every voxel holds what the expected label holds at the same place in the patient."""
    z, y, x = np.indices(array.shape).reshape(3, -1)
    points = np.stack([x, y, z], axis=1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    return bool((at_positions(expected, points) == array.ravel()).all())


def segment_and_compare(
    page: Page, site: Site, orientation: str
) -> tuple[NDArray[np.uint8], Grid, dict[int, str]]:
    """Segmented by a click, each voxel on screen is the truth at its place in the patient."""
    case = site.cases[orientation]
    assert click(page, "segment").startswith("3 of 3 structures drawn")
    array, grid, names = on_screen(page)
    assert same_in_space(named(array, names), grid, truth(case))
    # The picture is the same image: intensities at the drawn voxels lie in their structure's band.
    intensities = page.evaluate(
        """() => { const all = window.hermes.slices().slices; return all.map(({ image }) =>
        Array.from(window.cornerstone.cache.getImage(image.referencedImageId).getPixelData())) }"""
    )
    shown = np.array(intensities, np.float64).reshape(array.shape)
    drawn = named(array, names)
    for value in (1, 2, 3):
        assert np.abs(shown[drawn == value] - 100.0 * value).max() <= 50
    assert {names[v]: v for v in names} == {
        s["name"]: s["value"] for s in site.get("/hermes/viewer")["structures"]
    }
    return array, grid, names


def test_colours_are_the_campaigns_and_a_refused_label_says_why(site: Site, page: Page) -> None:
    open_viewer(page, site.viewer("sagittal"))
    said = click(page, "submit", kind="error")
    assert (
        said == 'Nothing is drawn. Draw something, or tick "absent" for what was looked for and is not there.'
    )
    segment_and_compare(page, site, "sagittal")
    page.wait_for_timeout(1500)  # MONAI Label's panel paints a second after it connects
    colours = page.evaluate(
        """() => { const one = window.hermes.segmentation(); const found = [];
        for (const id of window.services.viewportGridService.getState().viewports.keys())
          for (const s of Object.values(one.segments))
            found.push([s.label,
              [...window.services.segmentationService.getSegmentColor(id, one.segmentationId, s.segmentIndex)]]);
        return found }"""
    )
    assert len(colours) == 9  # three structures in three views
    for name, colour in colours:
        assert tuple(colour[:3]) == describe(name).colour
    page.evaluate(
        "window.services.segmentationService.setSegmentLabel(window.hermes.segmentation().segmentationId, 2, 'unicorn')"
    )
    assert "unicorn" in click(page, "submit", kind="error")
    with site.campaign() as campaign:
        assert series_uid(site.cases["sagittal"]) not in {label.image_id for label in campaign.labels()}


def test_chosen_structures_are_drawn_and_what_else_is_drawn_stays(site: Site, page: Page) -> None:
    case = site.cases["oblique"]
    open_viewer(page, site.viewer("oblique"))
    page.check(".hermes li[data-name=spleen] > input")
    assert click(page, "segment").startswith("1 of 1 structures drawn")
    array, grid, names = on_screen(page)
    spleen = LabelMap(np.where(case.labels == 2, 2, 0), truth(case).grid, {2: "spleen"})
    assert same_in_space(named(array, names), grid, spleen)
    page.uncheck(".hermes li[data-name=spleen] > input")
    # A spleen drawn by hand where the model sees liver, and liver asked for: the spleen stays.
    column, row, plane = (int(v[0]) for v in np.nonzero(named(array, names) == 0)[::-1])
    page.evaluate(f"window.hermes.slices().slices[{plane}].pixels[{row * array.shape[2] + column}] = 2")
    page.check(".hermes li[data-name=liver] > input")
    click(page, "segment")
    after, _, _ = on_screen(page)
    assert after[plane, row, column] == 2
    page.uncheck(".hermes li[data-name=liver] > input")
    segment_and_compare(page, site, "oblique")


def test_the_stock_panel_is_connected_and_draws_by_name(site: Site, page: Page) -> None:
    """MONAI Label's own `Run` works without its server address being typed, on any port."""
    case = site.cases["reversed"]
    open_viewer(page, site.viewer("reversed"))
    page.locator(".modelSelector button[title='Run Segmentation']").click()
    page.wait_for_function(
        "window.hermes.slices().slices.some(({ pixels }) => pixels.some((v) => v))", timeout=READY_MS
    )
    array, grid, names = on_screen(page)
    assert same_in_space(named(array, names), grid, truth(case))
    segment_and_compare(page, site, "reversed")


def test_an_edited_label_is_submitted_stored_and_trains(site: Site, page: Page, tmp_path: Path) -> None:
    """Next image, segment, correct with OHIF's brush, submit: SEG in the PACS, image labelled, a round begins."""
    before = site.get("/info/")["datastore"]["completed"]
    open_viewer(page, site.viewer("axial"))
    first, _, _ = segment_and_compare(page, site, "axial")
    # OHIF's own brush, with the mouse.
    page.click(".hermes li[data-name='left kidney'] > button")
    page.click(".hermes [data-tool=CircularBrush]")
    page.wait_for_timeout(300)
    box = page.locator(".cornerstone-viewport-element").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 12, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    page.wait_for_timeout(500)
    edited, grid, names = on_screen(page)
    assert (edited != first).any()
    assert set(np.unique(edited[edited != first])) == {3}
    said = click(page, "submit")
    assert "Submitted: liver, spleen, left kidney" in said

    series = series_uid(site.cases["axial"])
    info = site.get("/info/")["datastore"]
    assert info["completed"] == before + 1
    with site.campaign() as campaign:
        label = next(label for label in campaign.labels() if label.image_id == series)
        assert label.annotator == "anna"
        wait_for(campaign.runs)  # labels_per_round is 1: the label has filled a round
    seg = wait_for(lambda: site.series(Modality="SEG", StudyInstanceUID=_study(site, "axial")))
    stored = _read_series(site, seg[0], tmp_path)
    source = [
        pydicom.dcmread(f)
        for f in sorted((site.directory / "dicom" / site.cases["axial"].name).glob("*.dcm"))
    ]
    back = read_segmentations([stored], source, structures=STRUCTURES)
    assert back.grid.difference(grid) is None
    assert (back.label_map({n: v for v, n in NAMES.items()}).array == named(edited, names)).all()
    assert stored.SegmentSequence[0].SegmentAlgorithmType == "SEMIAUTOMATIC"


def test_a_segmentation_exported_by_ohif_itself_is_the_submitted_label(site: Site, page: Page) -> None:
    """OHIF's own dialog stores a SEG through the proxy: it counts at once, and lies in the PACS once."""
    open_viewer(page, site.viewer("coronal"), name="Jörg")
    drawn, grid, names = segment_and_compare(page, site, "coronal")
    page.evaluate(
        """() => { window.commandsManager.runCommand('storeSegmentation', {
        segmentationId: window.hermes.segmentation().segmentationId,
        dataSource: window.extensionManager.getActiveDataSource()[0] }) }"""
    )
    save = page.locator("button:has-text('Save')").last
    save.wait_for(timeout=READY_MS)
    save.click()
    page.wait_for_selector(".hermes [role=status]:has-text('is the submitted label')", timeout=READY_MS)
    series = series_uid(site.cases["coronal"])
    with site.campaign() as campaign:
        label = next(label for label in campaign.labels() if label.image_id == series)
        assert label.annotator == "Jörg"
    found = read_label_map(_archived(site, label.path))
    assert same_in_space(named(drawn, names), grid, LabelMap(found.array, found.grid, dict(NAMES)))
    page.wait_for_timeout(3000)  # longer than the list of the PACS is kept: a second one would come now
    assert len(site.series(Modality="SEG", StudyInstanceUID=_study(site, "coronal"))) == 1
    with site.campaign() as campaign:
        assert len([one for one in campaign.labels(latest=False) if one.image_id == series]) == 1


def test_the_panel_says_what_overlap_has_cost(site: Site, page: Page) -> None:
    """A SEG that is stored through the proxy may hold structures one over the other; a label cannot."""
    case = site.cases["coronal"]
    source = [pydicom.dcmread(f) for f in sorted((site.directory / "dicom" / case.name).glob("*.dcm"))]
    part = np.zeros(SourceSeries.of(source).grid.shape, bool)
    part[1:3, 2:6, 2:6] = True
    seg = write_segmentation({"liver": part, "spleen": part}, source, algorithm_type="MANUAL")
    file = io.BytesIO()
    seg.save_as(file, write_like_original=False)
    body = b"--x\r\nContent-Type: application/dicom\r\n\r\n" + file.getvalue() + b"\r\n--x--\r\n"
    open_viewer(page, site.viewer("coronal"))
    said = page.evaluate(  # right after the panel has heard the answer: something else may be said a moment later
        """(body) => new Promise((done) => {
        const call = new XMLHttpRequest(); call.open('POST', '/proxy/dicom/stow/studies');
        call.setRequestHeader('Content-Type', 'multipart/related; type="application/dicom"; boundary=x');
        call.send(Uint8Array.from(atob(body), (one) => one.charCodeAt(0)));
        call.addEventListener('loadend', () => done(document.querySelector('.hermes [role=status]').textContent)) })""",
        base64.b64encode(body).decode(),
    )
    assert "liver: 32 of 32 voxels lie under spleen, so that nothing of it is left." in said


def test_next_image_opens_what_the_queue_offers_and_skip_gives_it_back(site: Site, page: Page) -> None:
    page.goto(f"{site.address}/ohif/")
    page.wait_for_selector(".hermes-floating .hermes-next", timeout=READY_MS)
    page.fill(".hermes-name input", "berta")
    page.click(".hermes-next")
    page.wait_for_url("**/monai-label?**", timeout=READY_MS)
    offered = parse_qs(urlparse(page.url).query)["hermesImage"][0]
    page.wait_for_selector(".hermes[data-state=ready]", timeout=READY_MS)
    assert page.evaluate("window.hermes.state.series") == offered
    page.click(".hermes-skip")
    page.fill(".hermes-reason", "motion artefact")
    page.click(".hermes-skip")
    page.wait_for_function(f"!location.search.includes('{offered}')", timeout=READY_MS)
    skips = site.get("/hermes/skips")
    assert [(one["image_id"], one["annotator"], one["reason"]) for one in skips] == [
        (offered, "berta", "motion artefact")
    ]


def test_the_panel_leaves_the_viewers_banner_free(site: Site, page: Page) -> None:
    page.set_viewport_size({"width": 1600, "height": 950})
    page.goto(f"{site.address}/ohif/")
    panel, hide = page.locator(".hermes-floating"), page.get_by_text("Confirm and Hide").first
    panel.wait_for(timeout=READY_MS)
    hide.wait_for(timeout=READY_MS)
    raised = panel.bounding_box()
    hide.click(timeout=5000)  # refused by the browser where another element would get the click
    hide.wait_for(state="detached", timeout=READY_MS)
    wait_for(lambda: panel.bounding_box() != raised)
    box = panel.bounding_box()
    assert box is not None
    assert box["y"] + box["height"] == 950 - 12


def test_the_viewer_asks_no_other_server(site: Site, page: Page) -> None:
    """The build asks for fonts elsewhere: blocked before anything leaves, in the worklist and with an image open."""
    sent: set[str] = set()
    page.on("response", lambda answer: sent.add(urlparse(answer.url).netloc))
    tried: dict[str, str | None] = {}
    page.on("requestfailed", lambda request: tried.update({request.url: request.failure}))
    page.goto(f"{site.address}/ohif/")
    page.get_by_text("Bands-axial-0").first.wait_for(timeout=READY_MS)
    open_viewer(page, site.viewer("axial"))
    assert sent - {""} == {urlparse(site.address).netloc}  # blob: and data: have none
    elsewhere = {url: why for url, why in tried.items() if urlparse(url).netloc not in ("", *sent)}
    assert set(elsewhere.values()) <= {"csp"}, elsewhere
    styled = "getComputedStyle(document.querySelector('.hermes')).backgroundColor"
    assert page.evaluate(styled) == "rgb(11, 26, 66)"  # ours is let through


def test_the_worklist_finds_a_patient_and_shows_no_other(site: Site, page: Page) -> None:
    page.goto(f"{site.address}/ohif/")
    page.get_by_text("Bands-axial-0").first.wait_for(timeout=READY_MS)
    page.locator("#root input[type=text]").first.fill("oblique")
    page.get_by_text("Bands-axial-0").first.wait_for(state="detached", timeout=READY_MS)
    assert page.get_by_text("Bands-oblique-0").count() > 0
    open_viewer(page, site.viewer("oblique"))
    studies = requests.get(
        f"{site.address}/proxy/dicom/qido/studies", params={"00100020": "Bands-oblique-0"}, timeout=30
    ).json()
    assert len(studies) == 1
    assert (
        page.get_by_text("02-Jan-2020").count() == 1
    )  # one study in the patient's panel; without the query, five


def _study(site: Site, orientation: str) -> str:
    found = site.series(SeriesInstanceUID=series_uid(site.cases[orientation]))
    return str(found[0]["0020000D"]["Value"][0])


def _read_series(site: Site, series: dict[str, Any], folder: Path) -> Any:
    study, uid = series["0020000D"]["Value"][0], series["0020000E"]["Value"][0]
    answer = requests.get(
        f"{site.orthanc.dicomweb}/studies/{study}/series/{uid}",
        headers={"Accept": "multipart/related"},
        timeout=60,
    )
    part = answer.content.split(b"\r\n\r\n", 1)[1]
    (folder / "seg.dcm").write_bytes(part)
    return pydicom.dcmread(folder / "seg.dcm")


def _archived(site: Site, reference: str) -> Path:
    return next(path for path in site.directory.rglob(reference) if path.is_file())
