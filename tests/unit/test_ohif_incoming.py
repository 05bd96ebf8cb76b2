"""What passes through the proxy on its way to the PACS: kept on disk, and its label objects found."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence

import numpy as np
import pydicom
import pytest

from hermes.adapters.ohif import proxy
from hermes.adapters.ohif.incoming import Spool
from hermes.adapters.ohif.viewer import palette
from hermes.dicom import SourceSeries, write_segmentation
from hermes.labels.catalogue import describe
from hermes.phantoms import make_case
from hermes.phantoms.dicom import write_dicom_series
from hermes.records import LabelMap


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A CT slice, and a SEG of its series."""
    case = make_case("PhantomAbdomenCT", 1, size="tiny", plain_axes=True)
    files = write_dicom_series(case, tmp_path_factory.mktemp("ct"))
    source = SourceSeries.of([pydicom.dcmread(file) for file in files])
    labels = LabelMap(np.where(case.labels == 1, 1, 0), source.grid, {1: "liver"})
    seg = write_segmentation(labels, source, algorithm_type="MANUAL", model_version="v1", annotator="anna")
    stream = io.BytesIO()
    seg.save_as(stream, write_like_original=False)
    return files[0].read_bytes(), stream.getvalue()


def spooled(body: bytes, piece: int) -> Spool:
    spool = Spool()

    async def feed() -> None:
        for start in range(0, len(body), piece):
            await spool.write(body[start : start + piece])
        await spool.finish()

    asyncio.run(feed())
    return spool


def multipart(parts: Sequence[bytes], boundary: str = "x-1") -> tuple[bytes, str]:
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = b"".join(head + part + b"\r\n" for part in parts) + f"--{boundary}--\r\n".encode()
    return body, f'multipart/related; type="application/dicom"; boundary="{boundary}"'


@pytest.mark.parametrize("padding", [0, 2 << 20], ids=["in memory", "on disk"])
def test_label_objects_are_found_among_others(objects: tuple[bytes, bytes], padding: int) -> None:
    image, seg = objects
    body, kind = multipart([image, seg, b"\0" * 128 + b"DICM" + b"\1" * padding, seg])
    spool = spooled(body, 70_001)
    try:
        assert spool.size == len(body)
        found = spool.label_objects(kind)
        assert [dataset.Modality for dataset in found] == ["SEG", "SEG"]
        assert found[0].SegmentSequence[0].SegmentLabel == "liver"

        async def again() -> bytes:
            return b"".join([chunk async for chunk in spool.chunks()])

        assert asyncio.run(again()) == body
    finally:
        spool.close()


@pytest.mark.parametrize(
    "kind", ["text/plain", "multipart/related", 'multipart/form-data; boundary="x-1"', ""]
)
def test_other_bodies_hold_no_labels(objects: tuple[bytes, bytes], kind: str) -> None:
    spool = spooled(multipart([objects[1]])[0], 1 << 16)
    assert spool.label_objects(kind) == []
    spool.close()


def test_a_broken_object_is_left_to_the_pacs(objects: tuple[bytes, bytes]) -> None:
    _, seg = objects
    body, kind = multipart([seg[:700]])
    spool = spooled(body + b"--x-1\r\nno end", 1 << 16)
    found = spool.label_objects(kind)
    assert all("SegmentSequence" not in dataset for dataset in found)
    spool.close()


def test_the_palette_has_the_campaigns_numbers_and_the_catalogues_colours() -> None:
    shown = palette({"spleen": 2, "liver@BCV": 1})
    assert [(entry["name"], entry["value"]) for entry in shown] == [("liver@BCV", 1), ("spleen", 2)]
    assert tuple(shown[0]["colour"]) == describe("liver").colour
    assert [entry["value"] for entry in palette(["b", "a"])] == [1, 2]


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("PatientName=%2Aanna%2A&limit=101", b"PatientName=*anna*&limit=101"),
        ("includefield=00081030%2C00080060", b"includefield=00081030,00080060"),
        ("PatientName=M%C3%BCller+A&x=", b"PatientName=M%C3%BCller%20A&x="),
        ("a=1%262&b=%23", b"a=1%262&b=%23"),
        ("", None),
    ],
)
def test_queries_keep_their_meaning_with_fewer_escapes(given: str, sent: bytes | None) -> None:
    assert proxy._plain_query(given) == sent
