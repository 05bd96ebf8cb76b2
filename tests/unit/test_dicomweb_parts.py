"""Multipart answers, however they are cut into chunks."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes.adapters.dicomweb.parts import Parts

BOUNDARY = "b0und"
CONTENT_TYPE = f'multipart/related; type="application/dicom"; boundary="{BOUNDARY}"'


def message(bodies: list[bytes], *, preamble: bytes = b"") -> bytes:
    parts = b"".join(
        b"--" + BOUNDARY.encode() + b"\r\nContent-Type: application/dicom\r\n\r\n" + body + b"\r\n"
        for body in bodies
    )
    return preamble + parts + b"--" + BOUNDARY.encode() + b"--\r\n"


def read(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(folder.iterdir())]


@settings(deadline=None, max_examples=60)
@given(
    bodies=st.lists(st.binary(min_size=1, max_size=60), max_size=4),
    cut=st.integers(min_value=1, max_value=40),
    preamble=st.sampled_from([b"", b"hello\r\n"]),
)
def test_parts_come_out_as_they_went_in(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[bytes], cut: int, preamble: bytes
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    bodies = [body + b"\r\n--b0un" for body in bodies]  # a beginning of a delimiter is no delimiter
    whole = message(bodies, preamble=preamble)
    parts = Parts(CONTENT_TYPE, folder)
    for start in range(0, len(whole), cut):
        parts.feed(whole[start : start + cut])
    assert parts.finish() == len(bodies)
    assert read(folder) == bodies


@pytest.mark.parametrize("missing", [1, 8, 30])
def test_an_answer_that_broke_off_is_no_answer(tmp_path: Path, missing: int) -> None:
    whole = message([b"first", b"second" * 20]).rstrip(b"\r\n")
    parts = Parts(CONTENT_TYPE, tmp_path)
    parts.feed(whole[:-missing])
    with pytest.raises(ValueError, match="got a part"):
        parts.finish()


def test_another_kind_of_answer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multipart"):
        Parts("text/html", tmp_path)
