"""``hermes simulate``: strategies compared on a labelled dataset; what it does is imported when it is asked for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hermes.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hermes.simulation import Area

DONE = 0


def add_simulate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of all commands."""
    about = "play labelling campaigns on a labelled dataset, to compare strategies"
    command = commands.add_parser("simulate", help=about, description=about[0].upper() + about[1:] + ".")
    command.add_argument("data", type=Path, metavar="DATA", help="folder with images/ and labels/")
    command.add_argument(
        "--strategy", required=True, help="names separated by commas; with random among them, gains are told"
    )
    command.add_argument("--seeds", type=int, default=3, help="campaigns per strategy; default: 3")
    command.add_argument("--budget", type=int, required=True, metavar="N", help="labels of a campaign")
    command.add_argument("--round", type=int, required=True, metavar="K", help="labels between two trainings")
    command.add_argument(
        "--model", default="", metavar="DIR", help="to begin with; default: the starter model"
    )
    command.add_argument("--structures", default="", help="names of the label values, separated by commas")
    command.add_argument(
        "--test-share", type=float, default=0.25, help="part of the patients to measure on; default: 0.25"
    )
    command.add_argument(
        "--conf", default="", help='further settings as the server has them, "key=value key=value"'
    )
    command.add_argument("--first-seed", type=int, default=0, help="default: 0")
    command.add_argument("--keep", action="store_true", help="keep the campaigns' directories")
    command.add_argument("-o", "--out", type=Path, default=Path("simulation"), help="default: simulation")
    command.set_defaults(run=_simulate)


def _simulate(given: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from hermes import simulation
    from hermes.serve import APP, parse_conf

    conf = dict(parse_conf(given.conf))
    if given.model:
        conf["model"] = str(Path(given.model).absolute())
    names = tuple(name.strip() for name in given.strategy.split(",") if name.strip())
    if not given.data.is_dir():
        msg = f"Expected a folder with images/ and labels/, there is none at {str(given.data)!r}."
        raise BadRequestError(msg)
    structures = [name.strip() for name in given.structures.split(",") if name.strip()]
    plan = simulation.Plan(
        names, given.seeds, given.budget, given.round, given.test_share, given.first_seed, conf, given.keep
    )
    split = simulation.split_cases(given.data, given.test_share, structures)
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=simulation.campaigns_to_play(plan, given.out))

        def ended() -> None:
            bar.advance(task)
            if not console.is_terminal:  # a log gets a line per campaign
                done = bar.tasks[task]
                sys.stderr.write(f"campaign {done.completed:.0f} of {done.total:.0f} played\n")

        rows = simulation.simulate(
            split, plan, given.out, starter=APP / "starter", ended=ended,
            progress=lambda what: bar.update(task, description=what),
        )  # fmt: skip
    shown = [row for row in rows if row.strategy in names]
    title = f"{len(split.pool)} images to label, {len(split.test)} measured on"
    simulation.draw_curves(shown, given.out / "curves.png", title=title)
    _write_table(simulation.areas_of(shown))
    sys.stdout.write(f"Rows: {given.out / 'results.csv'}; curves: {given.out / 'curves.png'}\n")
    return DONE


def _write_table(found: Sequence[Area]) -> None:
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    def spread(values: Sequence[float]) -> str:
        if not values:
            return ""
        return f"{np.mean(values):.4f} ± {np.std(values, ddof=1) if len(values) > 1 else 0.0:.4f}"

    columns = (
        "strategy",
        "seeds",
        "area under the curve",
        "last Dice",
        "area beyond random",
        "better than random",
    )
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for area in found:
        better = f"{sum(gain > 0 for gain in area.gains)} of {len(area.gains)} seeds" if area.gains else ""
        table.add_row(
            area.strategy, str(len(area.seeds)), spread(area.areas), spread(area.finals), spread(area.gains), better
        )  # fmt: skip
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)
