"""The arguments of ``hermes train``; what it does is imported when it is asked for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hermes.errors import BadRequestError, CancelledError

DONE, INTERRUPTED = 0, 130


def add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of all commands."""
    about = "train on the datasets of a manifest and write a model directory"
    command = commands.add_parser("train", help=about, description=about[0].upper() + about[1:] + ".")
    command.add_argument("manifest", type=Path, metavar="MANIFEST.yaml", help="see docs/training.md")
    command.add_argument("-o", "--out", required=True, type=Path, metavar="DIR", help="must not exist")
    command.add_argument("--steps", type=int, metavar="N", help="optimiser steps; default: the manifest's")
    command.add_argument("--resume", action="store_true", help="go on with a run that was stopped or killed")
    command.add_argument("--dry-run", action="store_true", help="stop after the pre-flight table")
    command.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, or auto (default)")
    command.add_argument("--tensorboard", type=Path, metavar="DIR", help="write curves and pictures there")
    command.add_argument("--mlflow", type=Path, metavar="DIR", help="the same for MLflow, in an SQLite store")
    command.set_defaults(run=_train)


def _train(given: argparse.Namespace) -> int:
    from hermes.cli import training  # brings torch, which takes seconds

    if given.steps is not None and given.steps < 1:
        msg = f"Expected --steps of at least 1, got {given.steps}."
        raise BadRequestError(msg)
    wish = training.Wish(
        given.out, given.steps, given.resume, given.device, given.tensorboard, given.mlflow, given.dry_run
    )
    try:
        done = training.run(given.manifest, wish)
    except CancelledError as error:
        sys.stderr.write(f"hermes train: {error} Go on with --resume.\n")
        return INTERRUPTED
    if done is not None:
        sys.stdout.write(f"{given.out}: {len(done.label_space)} tasks, {done.metrics['steps']} steps.\n")
    return DONE
