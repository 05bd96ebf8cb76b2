"""What a campaign on a few structures costs the others that the model knows.

    python benchmarks/outside.py --structures liver
    python benchmarks/outside.py                     # the five of the sample campaign
    python benchmarks/outside.py --keep all          # the other structures of the model are kept

Rounds on the sample campaign from the starter, in one process and without a hold-out, so that every round counts. Prints
a line of JSON per round: mean Dice of the campaign's structures on the sample campaign's held-out phantoms, and for each
of the starter's phantom datasets that of its structures on unseen phantoms, whether the campaign names them or not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from hermes.config import from_conf
from hermes.demo import sample_dataset
from hermes.inference.predictor import Predictor
from hermes.labelled import Pair
from hermes.records import LabelMap
from hermes.rounds import KEEPS, RoundOptions, run_round
from hermes.scoring.agreement import dice
from hermes.serve import APP
from hermes.starter import measure, phantom_space
from hermes.submission import Submission
from hermes.transforms.reading import read_label_map, read_volume
from hermes.workspace import Workspace

UNSEEN = 2  # phantoms per dataset


def submit(workspace: Workspace, pair: Pair, structures: Sequence[str]) -> None:
    """The true label of an image, with the campaign's structures in it."""
    truth = labelled(pair, structures)
    states = {name: "present" if value in truth.array else "absent" for value, name in truth.names.items()}
    file = workspace.archive.write(pair.case_id, Submission(truth, states))
    sha256 = workspace.cache.content_sha256(file)
    workspace.campaign.record_label(
        pair.case_id, "final", workspace.archive.reference(file), sha256, "a", states
    )


def labelled(pair: Pair, structures: Sequence[str]) -> LabelMap:
    """The true label map of an image, of these structures."""
    truth = read_label_map(pair.label)
    names = {value: name for value, name in pair.names.items() if name in structures}
    return replace(truth, array=np.where(np.isin(truth.array, list(names)), truth.array, 0), names=names)


def inside(predictor: Predictor, workspace: Workspace, held_out: Sequence[Pair]) -> dict[str, float]:
    """Dice of each of the campaign's structures, mean over the held-out phantoms that have it; 0 before it is learned."""
    bindings = workspace.bindings()
    found: dict[str, list[float]] = defaultdict(list)
    for pair in held_out:
        volume, truth = read_volume(pair.image), labelled(pair, bindings.structures)
        rows = {name: bindings.rows[name] for name in bindings.trained}
        prediction = predictor.predict(volume, rows)
        values = {r.structure: r.value for r in prediction.structures}
        for value, name in truth.names.items():
            if value in truth.array:
                drawn = prediction.label_map.array == values.get(name, -1)
                found[name].append(dice(drawn, truth.array == value))
    return means(found)


def outside(predictor: Predictor) -> dict[str, float]:
    """Dice per phantom dataset of the starter, mean over its structures."""
    found: dict[str, list[float]] = defaultdict(list)
    for task, value in measure(predictor, phantom_space(), cases=UNSEEN).items():
        found[task.split("@")[1]].append(value)
    return means(found)


def means(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean of each."""
    return {name: round(float(np.mean(each)), 3) for name, each in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Play rounds, with a line before the first and after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--structures", default="", help="comma separated; default: those of the sample campaign"
    )
    parser.add_argument("--labels", type=int, default=5, help="new ones per round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, help="of each round; default: chosen")
    parser.add_argument("--keep", choices=KEEPS, default="named")
    parser.add_argument("--distil", type=float, help="default: that of the settings")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    played = sample_dataset({})
    names = [s.strip() for s in given.structures.split(",") if s.strip()] or list(played.structures)
    conf = {
        "structures": ",".join(names), "device": "cpu", "holdout_share": "0", "seed": str(given.seed),
        "training_threads": "1", "keep": given.keep, **({} if given.distil is None else {"distil": str(given.distil)}),
    }  # fmt: skip
    images = {pair.case_id: pair.image for pair in played.pool}
    order = np.random.default_rng(given.seed).permutation(len(played.pool))
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(from_conf(conf), folder, starter=APP / "starter")
        options = replace(RoundOptions.of(workspace.settings), steps=given.steps)
        for number in range(given.rounds + 1):
            seconds = 0.0
            if number:
                for place in order[given.labels * (number - 1) : given.labels * number]:
                    submit(workspace, played.pool[int(place)], names)
                seconds = run_round(workspace, images.__getitem__, options=options).train_seconds
            serving, net, manifest = workspace.load_serving()
            predictor = Predictor(net, manifest, device=torch.device("cpu"), version=serving.name)
            line = {
                "structures": ",".join(names), "seed": given.seed, "keep": given.keep, "distil": options.distil,
                "steps": given.steps, "round": number, "labels": given.labels * number, "seconds": round(seconds),
                "inside": inside(predictor, workspace, played.held_out), "outside": outside(predictor),
            }  # fmt: skip
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
