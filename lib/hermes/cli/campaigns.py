"""``hermes report``, ``export``, ``import-campaign``, ``review``, ``revisit``, ``skip``: a campaign with its annotators."""

from __future__ import annotations

import argparse
import getpass
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hermes.errors import BadRequestError, ConflictError

if TYPE_CHECKING:
    from hermes.workspace import Workspace

STATE_FILE, LABELS, TABLES = "campaign.json", "labels", "tables"


def add_campaigns(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the parser."""
    report = _command(commands, "report", "write how a campaign stands into one page with pictures")
    report.add_argument("-o", "--out", type=Path, metavar="FILE", help="an .html file")
    report.add_argument("--json", action="store_true", help="print the figures as JSON")
    report.set_defaults(run=_report)
    export = _command(commands, "export", "write the state of a campaign into a JSON file, or into a folder")
    export.add_argument(
        "-o", "--out", required=True, type=Path, metavar="OUT",
        help="a .json file, or a folder for JSON, a CSV file per table, and the label files",
    )  # fmt: skip
    export.set_defaults(run=_export)
    taking = _command(
        commands, "import-campaign", "begin a campaign with the state that `hermes export` wrote"
    )
    taking.add_argument("source", type=Path, metavar="EXPORT", help="the .json file or the folder")
    taking.set_defaults(run=_import)
    _add_review(commands)
    for name, about in (
        ("skip", "give an image back for an annotator; others are offered it"),
        ("revisit", "ask to look at an image again"),
    ):
        command = _command(commands, name, about)
        command.add_argument("image", metavar="IMAGE")
        command.add_argument(
            "--annotator", help="whose skip it is; of revisit: who is to look, default anybody"
        )
        command.add_argument("--reason", default="", help="why")
        command.set_defaults(run=_skip if name == "skip" else _revisit)


def _add_review(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _command(commands, "review", "approve or reject a label; without a state, list the labels")
    command.add_argument("state", nargs="?", choices=("approved", "rejected", "submitted"), metavar="STATE",
                         help="approved, rejected, or submitted to take a word back")  # fmt: skip
    command.add_argument("image", nargs="?", metavar="IMAGE")
    command.add_argument("--annotator", help="whose label; default: the latest")
    command.add_argument("--comment", default="", help="for the annotator; a rejection has one")
    command.add_argument("--json", action="store_true", help="list as JSON")
    command.set_defaults(run=_review)


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, about: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
    command.add_argument(
        "studies", metavar="STUDIES", help="folder or URL of studies, pacs, or the campaign's directory"
    )
    command.add_argument(
        "--conf", default="", help='settings that differ from the server\'s, "key=value key=value"'
    )
    return command


def _open(given: argparse.Namespace) -> Workspace:
    from hermes.cli.versions import find_campaign
    from hermes.serve import APP, parse_conf

    return find_campaign(given.studies, parse_conf(given.conf)).open(starter=APP / "starter")


def _report(given: argparse.Namespace) -> int:
    from hermes.report import html_report, summarise

    if given.out is None and not given.json:
        msg = "Expected -o FILE for a page, or --json."
        raise BadRequestError(msg)
    summary = summarise(_open(given))
    if given.json:
        sys.stdout.write(json.dumps(summary.to_json(), indent=1, ensure_ascii=False) + "\n")
    if given.out is not None:
        given.out.write_text(html_report(summary), encoding="utf-8")
        sys.stderr.write(f"{given.out}: {'may stop' if summary.advice.stop else 'go on'}\n")
    return 0


def _export(given: argparse.Namespace) -> int:
    from hermes.campaign.transfer import write_csv, write_json
    from hermes.cli.versions import DATABASE

    workspace = _open(given)
    database = workspace.directory / DATABASE
    if given.out.suffix == ".json":
        counts = write_json(database, given.out)
    else:
        if given.out.exists() and any(given.out.iterdir()):
            msg = f"Expected an empty folder to export to, {str(given.out)!r} holds something. Name another."
            raise ConflictError(msg)
        given.out.mkdir(parents=True, exist_ok=True)
        counts = write_json(database, given.out / STATE_FILE)
        write_csv(database, given.out / TABLES)
        if workspace.archive.directory.is_dir():
            shutil.copytree(workspace.archive.directory, given.out / LABELS)
    sys.stderr.write(
        f"{given.out}: {counts['images']} images, {counts['labels']} labels, {counts['events']} events\n"
    )
    return 0


def _import(given: argparse.Namespace) -> int:
    from hermes.campaign.transfer import read_json
    from hermes.cli.versions import DATABASE
    from hermes.config import campaign_directory, from_conf
    from hermes.serve import parse_conf, resolve_studies

    directory = campaign_directory(from_conf(parse_conf(given.conf)), resolve_studies(given.studies))
    state = given.source / STATE_FILE if given.source.is_dir() else given.source
    if not state.is_file():
        msg = f"Expected a file or folder of `hermes export`, there is no {str(state)!r}."
        raise BadRequestError(msg)
    if (directory / DATABASE).exists():
        msg = f"Expected no campaign in {str(directory)!r} yet, there is one. Import into a new folder."
        raise ConflictError(msg)
    directory.mkdir(parents=True, exist_ok=True)
    try:
        counts = read_json(state, directory / DATABASE)
    except BaseException:  # what could not be taken in leaves nothing behind
        for left in directory.glob(f"{DATABASE}*"):
            left.unlink()
        raise
    if (given.source / LABELS).is_dir():
        shutil.copytree(given.source / LABELS, directory / LABELS, dirs_exist_ok=True)
    sys.stderr.write(f"{directory}: {counts.get('images', 0)} images, {counts.get('labels', 0)} labels\n")
    return 0


def _review(given: argparse.Namespace) -> int:
    from hermes.campaign.records import ReviewState
    from hermes.campaign.reviews import label_to_review

    workspace = _open(given)
    campaign = workspace.campaign
    labels = campaign.labels(latest=False)
    if given.state is None:
        return _list_labels(workspace, as_json=given.json)
    if given.image is None:
        msg = "Expected the id of an image after the state."
        raise BadRequestError(msg)
    label = label_to_review(labels, given.image, given.annotator)
    campaign.reviews.review(
        label.id,
        ReviewState(given.state),
        reviewer=getpass.getuser(),
        comment=given.comment,
        wish=workspace.wish(),
    )
    sys.stdout.write(f"Version {label.number} of {label.image_id} by {label.annotator}: {given.state}\n")
    return 0


def _list_labels(workspace: Workspace, *, as_json: bool) -> int:
    reviews = workspace.campaign.reviews.all()
    rows = []
    for label in workspace.campaign.labels(latest=False, withdrawn=True):
        review = reviews.get(label.id)
        rows.append(
            {
                "image": label.image_id,
                "version": label.number,
                "annotator": label.annotator,
                "structures": sorted(label.annotated),
                "state": review.state.value if review else "submitted",
                "withdrawn_at": label.withdrawn_at,
                "reviewer": review.reviewer if review else "",
                "comment": review.comment if review else "",
            }
        )
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
        return 0
    for row in rows:
        names = ", ".join(row["structures"])  # type: ignore[arg-type]
        state = row["state"] if row["withdrawn_at"] is None else "withdrawn"
        sys.stdout.write(
            f"{row['image']}\t{row['version']}\t{row['annotator']}\t{state}\t{names}\t{row['comment']}\n"
        )
    return 0


def _skip(given: argparse.Namespace) -> int:
    if not given.annotator:
        msg = "Expected --annotator: whose skip it is."
        raise BadRequestError(msg)
    _open(given).campaign.assignments.skip(given.image, given.annotator, given.reason)
    sys.stdout.write(f"{given.image} is not offered to {given.annotator} any more.\n")
    return 0


def _revisit(given: argparse.Namespace) -> int:
    _open(given).campaign.assignments.ask_revisit(
        given.image, asked_by=getpass.getuser(), annotator=given.annotator, reason=given.reason
    )
    sys.stdout.write(f"{given.image} comes first for {given.annotator or 'everybody'}.\n")
    return 0
