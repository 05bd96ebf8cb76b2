"""Model versions of a campaign and the pointer to the one that answers.

::

    models/
      v0001-3f2a9c/        immutable: model.safetensors + manifest.json
      v0002-81be04/
      current              one line: the name of the serving version

The pointer is replaced by ``rename``, so a reader sees the old version or the new one, never a mixture.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hermes.errors import CheckpointError, NotFoundError

_POINTER = "current"
_VERSION = re.compile(r"v(\d{4,})-[0-9a-f]{6}")


@dataclass(frozen=True)
class Serving:
    """The version that answers now: its name and its directory."""

    name: str
    directory: Path


class VersionStore:
    """The versions below one directory, beginning with a model that lies elsewhere (the ``base``)."""

    def __init__(self, directory: Path, *, base: Path) -> None:
        """Versions in ``directory`` (made when missing); until one is published ``base`` answers."""
        self.directory = directory
        self.base = base
        directory.mkdir(parents=True, exist_ok=True)

    def names(self) -> list[str]:
        """Names of all versions on disk, oldest first."""
        found = [m for p in self.directory.iterdir() if (m := _VERSION.fullmatch(p.name))]
        return [m.string for m in sorted(found, key=lambda m: (int(m.group(1)), m.string))]

    def new_name(self, weights_sha256: str) -> str:
        """The next free name, ``v<number>-<first digits of the weights' hash>``."""
        numbers = [int(m.group(1)) for name in self.names() if (m := _VERSION.fullmatch(name))]
        return f"v{max(numbers, default=0) + 1:04d}-{weights_sha256[:6]}"

    def path(self, name: str) -> Path:
        """Directory of a version.

        Raises:
            NotFoundError: there is no such version.
        """
        if not _VERSION.fullmatch(name) or not (self.directory / name / "manifest.json").is_file():
            msg = f"Expected one of the versions {self.names()}, got {name!r}."
            raise NotFoundError(msg)
        return self.directory / name

    def directory_of(self, name: str) -> Path:
        """Directory of a version, or of the base.

        Raises:
            NotFoundError: there is no such version.
        """
        return self.base if name == self.base.name and name not in self.names() else self.path(name)

    def serving(self) -> Serving:
        """The version that answers now.

        Raises:
            CheckpointError: the pointer names a version that is not there.
        """
        try:
            name = (self.directory / _POINTER).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return Serving(self.base.name, self.base)
        try:
            return Serving(name, self.path(name))
        except NotFoundError as error:
            msg = (
                f"The pointer {self.directory / _POINTER} names version {name!r}, which is not there. "
                f"Restore it, or write one of {self.names()} into the pointer."
            )
            raise CheckpointError(msg) from error

    def publish(self, name: str) -> None:
        """Let version ``name`` answer from now on; going back to an older one, or to the base, is the same call.

        Raises:
            NotFoundError: there is no such version.
        """
        if self.directory_of(name) == self.base:
            (self.directory / _POINTER).unlink(missing_ok=True)
            flush_folder(self.directory)
            return
        write_atomically(self.directory / _POINTER, f"{name}\n")


def write_atomically(path: Path, text: str) -> None:
    """Replace the file by ``text``: after a crash it holds the old text or the new one, on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    Path(name).replace(path)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Nothing; what was renamed or removed in the folder is on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
