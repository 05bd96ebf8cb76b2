"""What an annotator sees of the work that exists: why an image comes back, and the label that it has, voxel by voxel."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlparse

import numpy as np
import pydicom
import requests
from pydicom.uid import generate_uid

from hermes import pacs
from hermes.phantoms import PhantomCase
from hermes.phantoms.dicom import series_uid

from .conftest import READY_MS, Site, wait_for
from .images import make_image, write
from .test_ohif import click, named, on_screen, open_viewer, same_in_space, truth

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Dialog, Page


def add_image(site: Site, orientation: str, seed: int) -> tuple[PhantomCase, str]:
    """A further series of the PACS, once the campaign has it; its case and its address in the viewer."""
    case = make_image(orientation, seed)
    pacs.store(site.orthanc.dicomweb, write(case, site.directory / "dicom"))
    series = series_uid(case)
    wait_for(lambda: _is_known(site, series))
    study = site.series(SeriesInstanceUID=series)[0]["0020000D"]["Value"][0]
    return case, f"{site.address}/ohif/monai-label?StudyInstanceUIDs={study}"


def _is_known(site: Site, series: str) -> bool:
    site.get("/info/")
    with site.campaign() as campaign:
        return any(one.id == series for one in campaign.images())


def post(site: Site, path: str, body: dict[str, Any]) -> Any:
    answer = requests.post(f"{site.address}{path}", json=body, timeout=60)
    assert answer.ok, answer.text
    return answer.json()


def about(page: Page) -> str:
    return page.locator(".hermes-about").inner_text()


def test_a_rejected_label_comes_back_with_the_comment_and_is_submitted_again(site: Site, page: Page) -> None:
    """Submit, reject through the API, `Next image`: the comment, one's own label as it was, and no wish afterwards."""
    _, address = add_image(site, "reversed", 1)
    open_viewer(page, address, name="carla")
    assert "No label yet" in about(page)
    click(page, "segment")
    before, _, _ = on_screen(page)
    # A correction that neither the model nor the phantom knows: the earlier label must come back with it.
    page.evaluate(
        "for (const { pixels } of window.hermes.slices().slices.slice(2, 5)) pixels.fill(2, 40, 77)"
    )
    drawn, grid, names = on_screen(page)
    assert (drawn != before).any()
    click(page, "submit")
    image = page.evaluate("window.hermes.state.series")
    assert "Label 1 by you" in about(page)
    page.locator(".hermes-load").wait_for()
    post(
        site,
        "/hermes/review",
        {"image": image, "state": "rejected", "comment": "The spleen bleeds out.", "client_id": "dora"},
    )
    page.click(".hermes-next")
    page.wait_for_function(f"location.search.includes('hermesImage={image}')", timeout=READY_MS)
    page.wait_for_selector(".hermes[data-state=ready]", timeout=READY_MS)
    said = page.locator(".hermes [role=status]").inner_text()
    assert "label was rejected: The spleen bleeds out." in said
    assert "3 structures drawn from label 1 by you" in said
    assert "label rejected by dora: The spleen bleeds out." in about(page)
    assert "Reserved for you until" in about(page)
    after, same_grid, same_names = on_screen(page)
    assert same_grid.difference(grid) is None
    assert (named(after, same_names) == named(drawn, names)).all()
    assert page.evaluate("window.hermes.state.unsent") is False  # nothing of it would be lost
    click(page, "submit")
    assert "rejected" not in about(page)
    assert "Label 2 by you" in about(page)
    assert image not in {one["image_id"] for one in site.get("/hermes/revisits")}


def test_a_label_drawn_ahead_is_there_when_the_image_is_opened(site: Site, page: Page) -> None:
    """And that of somebody else comes by a button, in place of what is drawn."""
    case, address = add_image(site, "coronal", 1)
    image = series_uid(case)
    params = {"save_label": True, "label_tag": "original", "output": "json"}
    answer = requests.post(
        f"{site.address}/infer/hermes", params={"image": image, "output": "json"},
        data={"params": json.dumps(params)}, timeout=120,
    )  # fmt: skip
    assert answer.ok, answer.text
    open_viewer(page, address, name="emil")
    array, grid, names = on_screen(page)
    assert same_in_space(named(array, names), grid, truth(case))
    assert "Drawn ahead by" in about(page)
    assert "drew ahead" in page.locator(".hermes [role=status]").inner_text()
    assert page.evaluate("window.hermes.state.modelVersion")
    click(page, "submit")
    # Somebody else: nothing is drawn until the button is clicked, and what is drawn is asked about.
    page.evaluate("localStorage.clear()")
    open_viewer(page, address, name="fritz")
    assert "Label 1 by emil" in about(page)
    empty, _, _ = on_screen(page)
    assert not empty.any()
    page.evaluate("window.hermes.slices().slices[3].pixels.fill(1, 0, 50)")
    page.evaluate("window.hermes.state.unsent = true")
    assert "is not submitted" in click(page, "load", kind="error")
    assert "from label 1 by emil" in click(page, "load")
    again, same_grid, _ = on_screen(page)
    assert same_grid.difference(grid) is None
    assert (again == array).all()
    assert np.unique(again).tolist() == [0, 1, 2, 3]


def test_the_status_says_which_image_and_why_after_next_image(site: Site, page: Page) -> None:
    add_image(site, "axial", 2)
    page.goto(f"{site.address}/ohif/")
    page.wait_for_selector(".hermes-floating .hermes-next", timeout=READY_MS)
    page.fill(".hermes-name input", "gerda")
    page.click(".hermes-next")
    page.wait_for_url("**/monai-label?**", timeout=READY_MS)
    page.wait_for_selector(".hermes[data-state=ready]", timeout=READY_MS)
    said = page.locator(".hermes [role=status]").inner_text()
    offered = parse_qs(urlparse(page.url).query)["hermesImage"][0]
    header = site.series(SeriesInstanceUID=offered)[0]
    assert "offered: strategy" in said
    assert header["00100020"]["Value"][0] in said
    assert "Reserved for you" in about(page)
    post(site, "/hermes/release", {"image": offered, "client_id": "gerda"})


def test_what_there_is_not_is_said(site: Site) -> None:
    image = series_uid(add_image(site, "sagittal", 2)[0])
    told = site.get(f"/hermes/viewer/image?image={image}")
    assert (told["label"], told["reserved"], told["revisits"], told["usable"]) == (None, [], [], True)
    for path in (f"label?image={image}&id=original", f"label?image={image}&id=7000", "image?image=1.2.3"):
        answer = requests.get(f"{site.address}/hermes/viewer/{path}", timeout=60)
        assert answer.status_code == 404, path
        assert answer.json()["detail"].startswith("Expected")


def test_every_volume_of_a_series_opens_as_an_image_of_its_own(site: Site, page: Page) -> None:
    """OHIF would make one stack of two echoes, of which its MONAI Label mode shows nothing."""
    case = make_image("axial", 3)
    files = write(case, site.directory / "dicom")
    for number, file in enumerate(files):
        first, second = pydicom.dcmread(file), pydicom.dcmread(file)
        first.EchoTime, second.EchoTime = "4.6", "92.5"
        first.save_as(file, write_like_original=False)
        second.SOPInstanceUID = second.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        if number > 2:  # the second echo covers less
            second.save_as(file.with_name(f"b{file.name}"), write_like_original=False)
    pacs.store(site.orthanc.dicomweb, sorted(files[0].parent.glob("*.dcm")))
    series = series_uid(case)
    wait_for(lambda: sum(one.startswith(series) for one in _images(site)) == 2)
    images = [one for one in _images(site) if one.startswith(series)]
    wait_for(lambda: all(_is_known(site, one) for one in images))
    study = site.series(SeriesInstanceUID=series)[0]["0020000D"]["Value"][0]
    whole = truth(case)
    slices: dict[str, int] = {}
    for image in images:
        open_viewer(
            page,
            f"{site.address}/ohif/monai-label?StudyInstanceUIDs={study}&hermesImage={image}",
            name="inge",
        )
        click(page, "segment")
        array, grid, names = on_screen(page)
        slices[image] = array.shape[0]
        assert same_in_space(named(array, names), grid, whole)
        assert "Submitted" in click(page, "submit")
    assert sorted(slices.values()) == [len(files) - 3, len(files)]
    with site.campaign() as campaign:
        assert set(slices) <= campaign.labelled_ids()


def _images(site: Site) -> list[str]:
    return list(site.get("/datastore/?output=all")["objects"])


def test_the_browsers_back_arrow_asks_before_drawn_work_is_left(site: Site, page: Page) -> None:
    """Within the viewer that changes no page, so that the browser itself asks nothing."""
    open_viewer(page, site.viewer("sagittal"), name="hans")
    page.evaluate("history.pushState({}, '', `${location.href}&further=1`)")
    page.evaluate("window.hermes.slices().slices[3].pixels.fill(1, 0, 50); window.hermes.state.unsent = true")
    asked: list[str] = []

    def answer(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.dismiss() if len(asked) == 1 else dialog.accept()

    page.on("dialog", answer)
    page.evaluate("history.back()")
    wait_in(page, lambda: len(asked) == 1)
    page.wait_for_function("location.search.includes('further')", timeout=READY_MS)
    assert on_screen(page)[0].any()
    page.evaluate("history.back()")
    page.wait_for_function("!location.search.includes('further')", timeout=READY_MS)
    assert len(asked) == 2
    page.evaluate("window.hermes.state.unsent = false")  # nothing asks when the tab is closed


def wait_in(page: Page, condition: Callable[[], bool]) -> None:
    """Until it is true, while the page's events are heard."""
    for _ in range(100):
        if condition():
            return
        page.wait_for_timeout(100)
    assert condition()
