"""``hermes``: the command line.

Exit status: 0 all is done, 1 something could not be done, 2 the arguments are wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hermes import __version__
from hermes.cli.campaigns import add_campaigns
from hermes.cli.simulating import add_simulate
from hermes.cli.train_arguments import add_train
from hermes.errors import BadRequestError, ConflictError, HermesError, NotFoundError

if TYPE_CHECKING:
    from rich.console import Console

    from hermes.cli.browsing import Entry
    from hermes.cli.segmenting import Job, Outcome, Progress
    from hermes.cli.versions import Found
    from hermes.workspace import Workspace

DONE, FAILED, WRONG_ARGUMENTS, INTERRUPTED = 0, 1, 2, 130
_WRONG = (BadRequestError, NotFoundError, ConflictError)
PLAIN_WIDTH = 200
"""Columns of a table that goes to a file or a pipe: nothing is cut off there."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    # Before torch is loaded: threads that spin while they wait take the cores from each other (docs/BENCHMARKS.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given = _parser().parse_args(arguments)
    try:
        status: int = given.run(given)
    except HermesError as error:
        sys.stderr.write(f"hermes {given.command}: {error}\n")
        return WRONG_ARGUMENTS if isinstance(error, _WRONG) else FAILED
    except OSError as error:
        sys.stderr.write(f"hermes {given.command}: {error.strerror or error}: {error.filename}\n")
        return FAILED
    except KeyboardInterrupt:
        sys.stderr.write(f"hermes {given.command}: stopped\n")
        return INTERRUPTED
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hermes", description="Universal 3D segmentation with context priors."
    )
    parser.add_argument("--version", action="version", version=f"hermes {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_segment(commands)
    _add_labels(commands)
    _add_import(commands)
    _add_campaign(commands)
    add_campaigns(commands)
    add_train(commands)
    add_simulate(commands)
    return parser


# ------------------------------------------------------------------------------------------------ segment


def _add_segment(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    about = "segment images; each gets a label map on its own grid and a JSON report beside it"
    command = commands.add_parser("segment", help=about, description=about[0].upper() + about[1:] + ".")
    command.add_argument(
        "image",
        nargs="+",
        type=Path,
        metavar="IMAGE",
        help="NIfTI, NRRD or MHA file, DICOM folder, or folder of image files",
    )
    command.add_argument("-o", "--out", required=True, type=Path, help="a file for one image, else a folder")
    command.add_argument(
        "--structures",
        help="names, structure@protocol or groups, separated by commas; default: all that fit the modality",
    )
    command.add_argument("--modality", default="auto", help="CT, PET, T1, T2, cine, or auto (default)")
    command.add_argument(
        "--model", default="", metavar="DIR", help="model directory; default: the starter model"
    )
    command.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, or auto (default)")
    command.add_argument(
        "--spacing", metavar="MM", default="0", help="voxel size the network sees; default: the model's"
    )
    command.add_argument("--frame", type=int, metavar="N", help="time point of 4D images, from 0")
    command.add_argument(
        "--near",
        type=Path,
        metavar="LABELMAP",
        help="segment only around what an earlier or coarse label map draws",
    )
    command.add_argument("--margin", type=float, default=20.0, metavar="MM", help="of --near; default: 20")
    command.add_argument("--uncertainty", action="store_true", help="write NAME_uncertainty beside NAME")
    command.add_argument("--json", action="store_true", help="print the reports as one JSON list")
    command.set_defaults(run=_segment)


def _segment(given: argparse.Namespace) -> int:
    from hermes.cli import segmenting
    from hermes.config import from_conf
    from hermes.serve import APP

    conf = {
        "model": given.model,
        "modality": given.modality,
        "device": given.device,
        "spacing_mm": given.spacing,
    }
    settings = from_conf(conf)
    structures = _names(given.structures)
    jobs = segmenting.plan(given.image, given.out)
    predictor = segmenting.load_predictor(settings, APP / "starter")
    segmenting.check_structures(predictor.manifest, structures)
    region = segmenting.region_near(given.near, given.margin) if given.near else None
    wish = segmenting.Wish(structures, settings.modality, given.frame, region, given.uncertainty)
    outcomes = []
    with _Bar(len(jobs)) as bar:
        for outcome in segmenting.segment_images(predictor, jobs, wish, bar.start):
            outcomes.append(outcome)
            bar.say(_summary(outcome))
    if given.json:
        _write_json([outcome.to_json() for outcome in outcomes])
    return FAILED if any(outcome.report is None for outcome in outcomes) else DONE


def _names(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        msg = f"Expected --structures with names separated by single commas, got {text!r}."
        raise BadRequestError(msg)
    return names


class _Bar:
    """A progress bar on stderr that counts the windows of the current image; without a terminal, lines only."""

    def __init__(self, images: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
                   TextColumn("windows"), TimeRemainingColumn())  # fmt: skip
        self._console = Console(stderr=True)
        self._bars = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._bar = self._bars.add_task("", total=None)
        self._images, self._started = images, 0

    def __enter__(self) -> _Bar:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def start(self, job: Job) -> Progress:
        """Begin an image; what is told of its progress goes to what this returns."""
        self._started += 1
        what = f"{self._started}/{self._images} {job.image.name}"
        self._bars.reset(self._bar, total=None, description=what)
        return lambda done, total: self._bars.update(self._bar, completed=done, total=total)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _summary(outcome: Outcome) -> str:
    report = outcome.report
    if report is None:
        return f"{outcome.job.image}: failed: {outcome.reason}"
    found = sum(result["voxels"] > 0 for result in report["structures"])
    return (
        f"{outcome.job.label_map}: {found} of {len(report['structures'])} structures found "
        f"({report['modality'] or 'modality unknown'}, {report['timings_s']['total']:.1f} s)"
    )


# ------------------------------------------------------------------------------------------------ labels


def _add_labels(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    about = "browse and search what can be segmented"
    command = commands.add_parser("labels", help=about, description=about[0].upper() + about[1:] + ".")
    command.add_argument(
        "query", nargs="*", help="words of a name, synonym, protocol, modality, code or group"
    )
    command.add_argument(
        "--group", help="only this body region: abdomen, thorax, head and neck, heart, brain, tumours, PET"
    )
    command.add_argument(
        "--model", metavar="DIR", type=Path, help="a model's labels; default: the published networks'"
    )
    command.add_argument(
        "--json", action="store_true", help="print a JSON list with everything about each structure"
    )
    command.set_defaults(run=_labels)


def _labels(given: argparse.Namespace) -> int:
    from hermes.cli import browsing
    from hermes.labels.space import published_label_space

    if given.model is None:
        space = published_label_space()
    else:
        from hermes.checkpoint import read_manifest  # brings torch, which takes seconds

        if not given.model.is_dir():
            msg = f"Expected a model directory, there is none at {str(given.model)!r}."
            raise NotFoundError(msg)
        space = read_manifest(given.model).label_space
    query = " ".join(given.query)
    entries = browsing.entries_of(space, given.group)
    found = browsing.search(entries, query)
    if given.json:
        _write_json([entry.to_json() for entry in found])
    elif found:
        _write_table(found)
    if not found:
        where = f" in the group {given.group}" if given.group else ""
        sys.stderr.write(
            f"hermes labels: nothing matches {query!r}{where}.{browsing.suggestion(entries, query)}\n"
        )
    return DONE if found else FAILED


def _write_table(entries: Sequence[Entry]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (
        "structure",
        "protocols",
        "modalities",
        "SNOMED CT",
        "side",
        "colour",
        "groups",
        "synonyms",
    ):
        table.add_column(column, overflow="fold")
    for entry in entries:
        known = entry.structure
        table.add_row(
            Text(entry.name),
            Text(", ".join(entry.protocols)),
            Text(", ".join(m.value for m in entry.modalities) or "any"),
            Text(known.code.value),
            Text(known.laterality.meaning if known.laterality else ""),
            Text("\u25a0 ", style=entry.colour_hex) + Text(entry.colour_hex),
            Text(", ".join(known.groups)),
            Text(", ".join(known.synonyms)),
        )
    console = _console()
    console.print(table)
    tasks = sum(len(entry.tasks) for entry in entries)
    console.print(
        f"{len(entries)} structures, {tasks} tasks. Ask for one as 'structure' or 'structure@protocol'."
    )


# ------------------------------------------------------------------------------------------------ import


def _add_import(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    about = "make a model directory from a checkpoint of the published networks"
    command = commands.add_parser("import", help=about, description=about[0].upper() + about[1:] + ".")
    command.add_argument("file", type=Path, help="checkpoint or state dict (.pth), or .safetensors")
    command.add_argument("-o", "--out", required=True, type=Path, metavar="DIR", help="must not exist")
    command.add_argument(
        "--network", choices=("hermes-r", "hermes-m"), help="default: told by the weights' names"
    )
    command.set_defaults(run=_import)


def _import(given: argparse.Namespace) -> int:
    from hermes.importing import import_published

    done = import_published(given.file, given.out, network=given.network)
    for remark in done.remarks:
        sys.stderr.write(f"hermes import: {remark}\n")
    network = done.manifest.network
    sys.stdout.write(
        f"{done.directory}: {network.name} of width {network.width}, {len(done.manifest.label_space)} tasks.\n"
        f"Segment with it: hermes segment IMAGE -o OUT --model {done.directory}\n"
        f'Serve it: make serve STUDIES=FOLDER CONF="model={done.directory.absolute()}"\n'
    )
    return DONE


# ------------------------------------------------------------------------------------------------ campaign


def _add_campaign(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    abouts = {
        "versions": ("list the versions of a campaign's model, with what the gate said of them", _versions),
        "rollback": ("let an earlier version of the model answer again", _rollback),
        "preflight": (
            "say what a training would find in a campaign's labels; 1 when it would not begin",
            _preflight,
        ),
    }
    for name, (about, run) in abouts.items():
        command = commands.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
        command.add_argument(
            "studies", metavar="STUDIES", help="folder or URL of studies, pacs, or the campaign's directory"
        )
        if name == "rollback":
            command.add_argument(
                "version", nargs="?", metavar="VERSION", help="default: the parent of the serving one"
            )
            command.add_argument("--force", action="store_true", help="also a version that the gate refused")
        else:
            command.add_argument("--json", action="store_true", help="print JSON")
        if name == "preflight":
            command.add_argument(
                "--structures", help="refuse when one of these, separated by commas, is in no case"
            )
        command.add_argument(
            "--conf", default="", help='settings that differ from the server\'s, "key=value key=value"'
        )
        command.set_defaults(run=run)


def _found(given: argparse.Namespace) -> Found:
    from hermes.cli.versions import find_campaign
    from hermes.serve import parse_conf

    return find_campaign(given.studies, parse_conf(given.conf))


def _campaign(given: argparse.Namespace) -> Workspace:
    """The campaign, also where the version that answers is damaged: another can be let answer."""
    from hermes.serve import APP

    return _found(given).open(starter=APP / "starter", check=False)


def _versions(given: argparse.Namespace) -> int:
    from dataclasses import asdict

    from hermes.cli.versions import line_of

    found = _campaign(given).list_versions()
    if given.json:
        _write_json([asdict(version) for version in found])
    else:
        columns = ("version", "state", "parent", "cases", "Dice before", "Dice after", "gate")
        _write_lines(columns, [line_of(version) for version in found])
    return DONE


def _rollback(given: argparse.Namespace) -> int:
    name = _campaign(given).rollback(given.version, force=given.force)
    sys.stdout.write(f"{name} answers from the next inference on; the next round trains from it.\n")
    return DONE


def _preflight(given: argparse.Namespace) -> int:
    from hermes.cli.versions import preflight, structure_line

    try:
        found = preflight(_found(given), _names(given.structures) or ())
    except ConflictError as error:
        sys.stderr.write(f"hermes preflight: {error}\n")
        return FAILED
    if given.json:
        _write_json(found)
        return DONE
    _write_lines(
        ("structure", "cases", "voxels at the model's spacing", "absent in"),
        [structure_line(c) for c in found["structures"]],
    )
    for one in found["skipped"]:
        sys.stdout.write(f"left out: {one['case_id']}: {one['reason']}\n")
    sys.stdout.write(f"{len(found['used'])} cases to train on, {found['holdout_labels']} held out.\n")
    return DONE


def _write_lines(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    _console().print(table)


def _console() -> Console:
    """Of stdout; a file or a pipe has room for whole lines."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)


def _write_json(content: object) -> None:
    sys.stdout.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
