"""MONAI Label's sessions, with archives unpacked only into their own folder."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from monailabel.utils.sessions import Sessions

from hermes.adapters.errors import answers_errors
from hermes.errors import BadRequestError


class HermesSessions(Sessions):  # type: ignore[misc]
    """Sessions whose archives cannot write outside the session."""

    @answers_errors
    def add_session(
        self, data_file: str, expiry: int = 0, uncompress: bool = False, session_id: str | None = None
    ) -> Any:
        """A new session on a file, a folder, or (``uncompress``) what an archive holds."""
        if not uncompress:
            if Path(data_file).is_file() and Path(data_file).stat().st_size == 0:
                msg = "Expected an image, got an empty file."
                raise BadRequestError(msg)
            return super().add_session(data_file, expiry, False, session_id)
        folder = Path(tempfile.mkdtemp())
        try:
            unpack(Path(data_file), folder)
            return super().add_session(str(folder), expiry, False, session_id)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def unpack(archive: Path, folder: Path) -> None:
    """The files of a ZIP or tar archive in ``folder``.

    Raises:
        BadRequestError: no such archive, damaged, or with members that lead outside.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(folder)  # drops "..", drives and leading slashes itself
            return
        with tarfile.open(archive) as packed:
            if hasattr(tarfile, "data_filter"):
                packed.extractall(folder, filter="data")
                return
    except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError, RuntimeError) as error:
        msg = (
            f"Expected a ZIP or tar archive of images whose files stay inside it, got {type(error).__name__}."
        )
        raise BadRequestError(msg) from error
    msg = (
        "Expected a ZIP archive: this Python cannot unpack tar archives safely. Send a ZIP, or update Python."
    )
    raise BadRequestError(msg)
