"""A PACS for those who have none: Orthanc with its DICOMweb plugin on this machine, and sample studies in it.

``make pacs`` starts it in the background and ``make serve STUDIES=pacs`` labels what it holds. The tests start
theirs with :func:`running_orthanc`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import requests

from hermes.errors import BadRequestError, HermesError, PacsError
from hermes.phantoms import make_case
from hermes.phantoms.cases import case_name
from hermes.phantoms.dicom import write_dicom_series

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
DEFAULT_PORT = 8042
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
_POLL_S = 0.05
_REQUEST_TIMEOUT_S = 60.0
_BATCH_BYTES = 64 << 20
_STATE = "orthanc.pid.json"
_NOBODY: Mapping[str, str] = MappingProxyType({})
SAMPLES = (
    ("PhantomAbdomenCT", 1), ("PhantomAbdomenCT", 2), ("PhantomAbdomenCT", 3), ("PhantomAbdomenCT", 4),
    ("PhantomAbdomenMR", 1), ("PhantomAbdomenMR", 2), ("PhantomPET", 1), ("PhantomCineMR", 1),
)  # fmt: skip
"""Phantoms (dataset, seed) that ``make pacs`` stores: CT, MR, PET and cine."""


def how_to_install() -> str | None:
    """None where Orthanc and its plugin are installed, else a sentence that says how to get them."""
    if _orthanc_program() is not None and PLUGIN.is_file():
        return None
    return "Orthanc with its DICOMweb plugin is not installed. `make parts` installs it."


def _orthanc_program() -> str | None:
    return shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")


class Orthanc:
    """One Orthanc with its database in a directory.

    Attributes:
        url: ``http://127.0.0.1:PORT``.
        dicomweb: root of its DICOMweb services.
        auth: a (user, password) that it accepts, or None where it asks for none.
        log: what it printed.
    """

    def __init__(self, directory: Path, port: int, users: Mapping[str, str] = _NOBODY) -> None:
        """Describe it; nothing is started."""
        self.directory, self.port = directory.resolve(), port
        self.url = f"http://127.0.0.1:{port}"
        self.dicomweb = f"{self.url}/dicom-web"
        self.auth: tuple[str, str] | None = next(iter(users.items()), None)
        self.log = self.directory / "orthanc.log"
        self._users = dict(users)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process that this object started."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start it and wait until it answers; the same database and port as before.

        Raises:
            PacsError: it is not installed, the port is taken, or it ends while starting.
        """
        missing = how_to_install()
        if missing is not None:
            raise PacsError(missing)
        _check_port(self.port)
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "orthanc.json"
        config.write_text(json.dumps(self.configuration(), indent=1), encoding="utf-8")
        with self.log.open("ab") as stream:
            self._process = subprocess.Popen(
                [str(_orthanc_program()), str(config)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,  # Ctrl-C in the terminal of a server is not meant for the PACS
            )
        self._wait_until_up()

    def stop(self) -> None:
        """End it and wait until it has written everything; nothing, if it does not run."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def configuration(self) -> dict[str, object]:
        """What Orthanc reads: on this machine only, DICOMweb with case-insensitive search."""
        # Orthanc 1.10 listens on every interface whatever is written; RemoteAccessAllowed refuses the others.
        return {
            "Name": "Hermes sample PACS",
            "StorageDirectory": str(self.directory / "db"),
            "IndexDirectory": str(self.directory / "db"),
            "HttpPort": self.port,
            "HttpBindAddresses": ["127.0.0.1"],
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": bool(self._users),
            "RegisteredUsers": self._users,
            "DicomServerEnabled": False,
            "KeepAlive": True,
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {
                "Enable": True,
                "Root": "/dicom-web/",
                "StudiesMetadata": "Full",
                "SeriesMetadata": "Full",
                "QidoCaseSensitive": False,
            },
        }

    def _wait_until_up(self) -> None:
        assert self._process is not None  # `start` made it
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                msg = f"Orthanc ended with status {self._process.returncode} while starting. Its log: {self.log}"
                raise PacsError(msg)
            if is_up(self.url, self.auth):
                return
            time.sleep(_POLL_S)
        self.stop()
        msg = f"Expected Orthanc to answer within {START_TIMEOUT_S:.0f} s, it did not. Its log: {self.log}"
        raise PacsError(msg)


@contextmanager
def running_orthanc(
    directory: Path, *, port: int | None = None, users: Mapping[str, str] = _NOBODY
) -> Iterator[Orthanc]:
    """An Orthanc with its database in ``directory``, until the block ends.

    Args:
        directory: made when missing; what an earlier one stored there is there again.
        port: on this machine; None: a free one.
        users: name -> password; empty: nobody is asked.

    Raises:
        PacsError: see `Orthanc.start`.
    """
    orthanc = Orthanc(directory, port or free_port(), users)
    orthanc.start()
    try:
        yield orthanc
    finally:
        orthanc.stop()


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _check_port(port: int) -> None:
    if not 0 < port <= 65535:
        msg = f"Expected a port from 1 to 65535, got {port}."
        raise BadRequestError(msg)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError as error:
            msg = f"Expected port {port} to be free, got: {error.strerror}. Choose another: make pacs PACS_PORT={port + 1}"
            raise PacsError(msg) from error


def is_up(url: str, auth: tuple[str, str] | None = None) -> bool:
    """Whether an Orthanc answers there."""
    with requests.Session() as session:
        session.trust_env = False  # this machine is never behind a proxy
        try:
            return session.get(f"{url}/system", auth=auth, timeout=5).ok
        except requests.RequestException:
            return False


def store(dicomweb_url: str, files: Iterable[Path], auth: tuple[str, str] | None = None) -> int:
    """Store DICOM files over DICOMweb (STOW-RS); how many. What is there already is not stored twice.

    Raises:
        PacsError: the PACS cannot be reached, or refuses a file.
    """
    stored = 0
    with requests.Session() as session:
        session.auth = auth
        for batch in _batches(files):
            try:
                _store_batch(session, f"{dicomweb_url.rstrip('/')}/studies", batch)
            except requests.RequestException as error:
                msg = f"Expected to store {len(batch)} DICOM files, got {type(error).__name__}. Is the PACS running?"
                raise PacsError(msg) from error
            stored += len(batch)
    return stored


def _batches(files: Iterable[Path]) -> Iterator[list[Path]]:
    batch: list[Path] = []
    size = 0
    for file in files:
        batch.append(file)
        size += file.stat().st_size
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _store_batch(session: requests.Session, url: str, batch: Sequence[Path]) -> None:
    boundary = uuid.uuid4().hex
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = b"".join(head + file.read_bytes() + b"\r\n" for file in batch) + f"--{boundary}--\r\n".encode()
    headers = {
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        "Accept": "application/dicom+json",
    }
    answer = session.post(url, data=body, headers=headers, timeout=_REQUEST_TIMEOUT_S)
    if not answer.ok:
        msg = (
            f"The PACS refused {len(batch)} DICOM files with status {answer.status_code}: {answer.text[:200]}"
        )
        raise PacsError(msg)
    failed = answer.json().get("00081198", {}).get("Value", [])
    if failed:
        msg = f"The PACS refused {len(failed)} of {len(batch)} DICOM files. Its log says why."
        raise PacsError(msg)


def store_samples(orthanc: Orthanc) -> int:
    """Store the sample studies that are not there yet; number of studies added."""
    added = 0
    for dataset, seed in SAMPLES:
        if _has_patient(orthanc, case_name(dataset, seed)):
            continue
        case = make_case(dataset, seed)
        with tempfile.TemporaryDirectory() as directory:
            store(orthanc.dicomweb, write_dicom_series(case, Path(directory)), orthanc.auth)
        added += 1
    return added


def _has_patient(orthanc: Orthanc, patient: str) -> bool:
    with requests.Session() as session:
        session.trust_env, session.auth = False, orthanc.auth
        found = session.get(
            f"{orthanc.dicomweb}/studies", params={"PatientID": patient}, timeout=_REQUEST_TIMEOUT_S
        )
        found.raise_for_status()
        return found.status_code == requests.codes.ok and bool(found.json())


def running_in(directory: Path) -> Orthanc | None:
    """The PACS that `make pacs` started in this directory, if it answers."""
    state = _read_state(directory)
    if state is None:
        return None
    orthanc = Orthanc(directory, state["port"])
    return orthanc if is_up(orthanc.url) else None


def dicomweb_of(directory: Path) -> str:
    """DICOMweb address of the PACS in ``directory``: what ``STUDIES=pacs`` stands for.

    Raises:
        PacsError: it does not run.
    """
    orthanc = running_in(directory)
    if orthanc is None:
        msg = "Expected the sample PACS to run for STUDIES=pacs, it does not. Start it with: make pacs"
        raise PacsError(msg)
    return orthanc.dicomweb


def start_in_background(directory: Path, port: int) -> Orthanc:
    """The PACS of ``directory``, started unless it runs already; it outlives this program.

    Raises:
        PacsError: see `Orthanc.start`; or it runs on another port.
    """
    running = running_in(directory)
    if running is not None:
        if running.port != port:
            msg = f"Expected port {port}, the PACS of {directory} runs on {running.port}. Stop it first: make pacs-stop"
            raise PacsError(msg)
        return running
    orthanc = Orthanc(directory, port)
    orthanc.start()
    (directory / _STATE).write_text(json.dumps({"pid": orthanc.pid, "port": port}), encoding="utf-8")
    return orthanc


def stop_in_background(directory: Path) -> bool:
    """End the PACS that `start_in_background` started; whether there was one."""
    state = _read_state(directory)
    if state is None:
        return False
    (directory / _STATE).unlink()
    if not _is_ours(state["pid"], directory):
        return False
    os.kill(state["pid"], signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while _is_ours(state["pid"], directory) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return True


def _read_state(directory: Path) -> dict[str, int] | None:
    try:
        state = json.loads((directory / _STATE).read_text(encoding="utf-8"))
        return {"pid": int(state["pid"]), "port": int(state["port"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_ours(pid: int, directory: Path) -> bool:
    """Whether the process is the Orthanc of this directory: a number may have been given to another one."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return str(directory.resolve()).encode() in command


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m hermes.pacs start|stop --directory DIR [--port N] [--empty]``; 2 when that is not possible."""
    parser = argparse.ArgumentParser(prog="hermes.pacs", description=__doc__)
    parser.add_argument("action", choices=("start", "stop"))
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument("--empty", action="store_true", help="store no sample studies")
    given = parser.parse_args(arguments)
    try:
        said = _stop(given.directory) if given.action == "stop" else _start(given)
    except HermesError as error:
        sys.stderr.write(f"make pacs: {error}\n")
        return 2
    sys.stdout.write(f"{said}\n")
    return 0


def _stop(directory: Path) -> str:
    return "The PACS is stopped." if stop_in_background(directory) else "No PACS was running."


def _start(given: argparse.Namespace) -> str:
    orthanc = start_in_background(given.directory, given.port)
    added = 0 if given.empty else store_samples(orthanc)
    return (
        f"The PACS runs on {orthanc.url} (DICOMweb: {orthanc.dicomweb}), {added} sample studies added.\n"
        "Label them: make serve STUDIES=pacs. Stop the PACS: make pacs-stop"
    )


if __name__ == "__main__":
    sys.exit(main())
