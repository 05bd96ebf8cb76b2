"""``make serve``: the server on a folder of images, or on a copy of the sample campaign."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hermes.config import SETTINGS, Settings, from_conf
from hermes.errors import BadRequestError, HermesError
from hermes.labelled import IMAGE_SUFFIXES
from hermes.pacs import dicomweb_of
from hermes.phantoms import dataset

PROJECT = Path(__file__).resolve().parents[2]
APP = PROJECT / "apps" / "hermes"
SAMPLE = PROJECT / "sample-data" / "campaign"
SAMPLE_DATASET = "PhantomAbdomenCT"
CAMPAIGNS = PROJECT / "campaigns"
_KNOWN = frozenset(setting.name for setting in SETTINGS)
_PAIR = re.compile(r"(\w+)=(.*?)(?=\s+\w+=|\s*$)", re.DOTALL)


def parse_conf(text: str) -> dict[str, str]:
    """``"structures=liver,left kidney labels_per_round=5"`` as a dictionary; values may hold spaces.

    Raises:
        BadRequestError: something stands in front of the first ``key=``, or a key comes twice.
    """
    text = text.strip()
    if text and not re.match(r"\w+=", text):
        msg = f'Expected CONF="key=value key=value ...", got {text!r}.'
        raise BadRequestError(msg)
    pairs: list[tuple[str, str]] = []
    for match in _PAIR.finditer(text):
        key, value = match.group(1), match.group(2).strip()
        # In quotas "kidney=40" may be the last word of a structure and its number.
        if pairs and pairs[-1][0] == "quotas" and key not in _KNOWN:
            pairs[-1] = ("quotas", f"{pairs[-1][1]} {key}={value}")
        else:
            pairs.append((key, value))
    twice = sorted({k for k, _ in pairs if [p[0] for p in pairs].count(k) > 1})
    if twice:
        msg = f"Expected each key of CONF once, got {twice} more than once."
        raise BadRequestError(msg)
    return dict(pairs)


def sample_campaign(directory: Path) -> Path:
    """A working copy of the sample images in ``directory``, made when it is not there."""
    if not directory.is_dir():
        unfinished = directory.with_name(f"{directory.name}.{os.getpid()}.tmp")
        shutil.copytree(SAMPLE, unfinished)
        unfinished.replace(directory)
    return directory


def resolve_studies(studies: str) -> str:
    """The folder or DICOMweb URL that STUDIES names; the word ``pacs`` stands for what `make pacs` has started.

    Raises:
        PacsError: it does not run.
    """
    return dicomweb_of(CAMPAIGNS / "pacs") if studies == "pacs" else studies


def check_port(host: str, port: int) -> None:
    """Nothing, if the port is free.

    Raises:
        HermesError: another program listens there.
    """
    if not 0 <= port <= 65535:
        msg = f"Expected a PORT from 0 to 65535, got {port}."
        raise BadRequestError(msg)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            msg = f"Expected {host}:{port} to be free, got: {error.strerror}. Choose another: make serve PORT={port + 1}"
            raise HermesError(msg) from error


def check_settings(settings: Settings) -> None:
    """Nothing, if the settings can be right; what only the network can tell comes later.

    Raises:
        BadRequestError: a model that is not there, or a structure named twice.
    """
    if settings.model is not None and not (settings.model / "manifest.json").is_file():
        msg = f"Expected `model` to be a directory with a manifest.json, got {str(settings.model)!r}."
        raise BadRequestError(msg)
    twice = sorted({name for name in settings.structures if settings.structures.count(name) > 1})
    if twice:
        msg = f"Expected every structure once in `structures`, got {twice} twice."
        raise BadRequestError(msg)


def check_studies(folder: Path) -> None:
    """Nothing, if a campaign can be kept in the folder; a word of warning if there is nothing to label in it.

    Raises:
        BadRequestError: it is no folder, or not writable.
    """
    if not folder.is_dir():
        msg = f"Expected STUDIES to be a folder of images or a DICOMweb URL, got {str(folder)!r}."
        raise BadRequestError(msg)
    if not os.access(folder, os.W_OK):
        msg = f"Expected a folder that can be written to, since labels are stored in it, got {str(folder)!r}. Copy it."
        raise BadRequestError(msg)
    if not any(p.name.endswith(IMAGE_SUFFIXES) for p in folder.iterdir()):
        sys.stderr.write(
            f"make serve: there is no image ({', '.join(IMAGE_SUFFIXES)}) directly in {folder}. "
            "Images that are put there later are found; DICOM is served from a DICOMweb URL.\n"
        )


def with_hosts(conf: Mapping[str, str], host: str) -> dict[str, str]:
    """``conf`` with the name of the server, where only this machine can reach it.

    A server that is reached from elsewhere may have names that nobody told it; it accepts any unless it was told.
    """
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host.lower() == "localhost"
    return {"allowed_hosts": host, **conf} if local else dict(conf)


def server_arguments(studies: str, host: str, port: int, conf: Mapping[str, str]) -> list[str]:
    """Arguments of ``monailabel`` for our ASGI app."""
    pairs = [part for key, value in conf.items() for part in ("--conf", key, value)]
    arguments = ["start_server", "--app", str(APP), "--studies", studies, "--host", host, "--port", str(port)]
    return [*arguments, "--uvicorn_app", "hermes.adapters.server:app", *pairs]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server until it is stopped; 2 when the arguments are wrong."""
    parser = argparse.ArgumentParser(prog="hermes.serve", description=__doc__)
    parser.add_argument(
        "--studies",
        default="",
        help="folder of images, DICOMweb URL, or pacs (see `make pacs`); empty: the sample campaign",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--conf", default="", help='"key=value key=value ...", see apps/hermes/README.md')
    given = parser.parse_args(arguments)
    try:
        conf = parse_conf(given.conf)
        check_settings(from_conf(conf))
        check_port(given.host, given.port)
        studies = resolve_studies(given.studies or str(sample_campaign(CAMPAIGNS / "sample")))
        if not given.studies:
            conf.setdefault("structures", ",".join(dataset(SAMPLE_DATASET).demonstration))
        if "://" not in studies:
            check_studies(Path(studies))
    except HermesError as error:
        sys.stderr.write(f"make serve: {error}\n")
        return 2
    sys.stderr.write(
        f"Hermes starts on http://{given.host}:{given.port} with {studies} (about 10 seconds) ...\n"
    )
    _start(server_arguments(studies, given.host, given.port, with_hosts(conf, given.host)))
    return 0


def _start(arguments: list[str]) -> None:
    # MONAI Label's own experiment tracking refuses its default file store; curves are kept by the campaign.
    os.environ.setdefault("MONAI_LABEL_TRACKING_ENABLED", "false")
    # Training and inferences share the cores. Threads that spin while they wait take them from each other
    # (docs/BENCHMARKS.md); has to be set before torch is loaded, here and in the training process.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    from monailabel.main import Main  # seconds of imports: only when everything else is right

    sys.argv = ["monailabel", *arguments]
    Main().run()


if __name__ == "__main__":
    sys.exit(main())
