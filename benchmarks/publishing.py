"""Publications against concurrent loaders: how many loads fail, or see parts of two versions.

Every version's weights are one number, its own, so that a mixture shows. The publisher writes a version, publishes
it, and now and then goes back to an earlier one; each loader is a process that loads whatever answers, as a server
does, again and again.

    python benchmarks/publishing.py --publications 1000 --loaders 4
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch

from hermes.checkpoint import Manifest, load_checkpoint, save_checkpoint
from hermes.errors import HermesError
from hermes.labels.space import LabelSpace, Task
from hermes.model import NetworkConfig, UniversalNetwork, build_network
from hermes.publish import VersionStore

ROLLBACK_EVERY = 10
"""After so many publications the version before is published again."""


@dataclass(frozen=True)
class Outcome:
    """What the loaders saw."""

    publications: int
    loaders: int
    loads: int
    versions_seen: int
    failed: int
    mixed: int
    seconds: float


def tagged(net: UniversalNetwork, number: int) -> UniversalNetwork:
    """The network with every weight set to ``number``."""
    with torch.no_grad():
        for value in net.state_dict().values():
            value.fill_(number)
    return net


def is_whole(net: UniversalNetwork, manifest: Manifest, name: str) -> bool:
    """Whether all weights carry the tag in the version's note, and the manifest is that version's."""
    tags = {float(v) for value in net.state_dict().values() for v in value.float().unique()}
    return tags == {float(manifest.note)} and manifest.version == name


def load_repeatedly(directory: str, base: str, done: Event, results: Any) -> None:
    """Load what answers until ``done``, and at least once after it; put the counts into ``results``."""
    torch.set_num_threads(1)
    store = VersionStore(Path(directory), base=Path(base))
    loads, failed, mixed, seen, last = 0, 0, 0, set(), False
    while not last:
        last = done.is_set()
        serving = store.serving()
        try:
            net, manifest = load_checkpoint(serving.directory)
        except (HermesError, OSError) as error:
            sys.stderr.write(f"{serving.name}: {error}\n")
            failed += 1
            continue
        loads += 1
        seen.add(serving.name)
        mixed += not is_whole(net, manifest, serving.name)
    results.put((loads, failed, mixed, sorted(seen)))


def publish_repeatedly(
    store: VersionStore, net: UniversalNetwork, manifest: Manifest, publications: int
) -> None:
    """So many publications, most of them of a version that is written just before."""
    names: list[str] = []
    for number in range(1, publications + 1):
        if number % ROLLBACK_EVERY == 0:
            store.publish(names[-2])
            continue
        name = f"v{number:04d}-{number:06x}"
        described = {**manifest.to_json(), "version": name, "note": str(number)}
        save_checkpoint(store.directory / name, tagged(net, number), Manifest.from_json(described))
        store.publish(name)
        names.append(name)


def run(folder: Path, *, publications: int, loaders: int) -> Outcome:
    """Publish while others load; what they saw."""
    net = build_network(NetworkConfig("hermes-c", 8, tasks=1))
    manifest = Manifest(net.config, LabelSpace((Task("liver", "Test"),)), version="base", note="0")
    save_checkpoint(folder / "base", tagged(net, 0), manifest)
    store = VersionStore(folder / "models", base=folder / "base")
    context = multiprocessing.get_context("spawn")
    done, results = context.Event(), context.Queue()
    arguments = (str(store.directory), str(store.base), done, results)
    processes = [context.Process(target=load_repeatedly, args=arguments) for _ in range(loaders)]
    for process in processes:
        process.start()
    started = time.monotonic()
    publish_repeatedly(store, net, manifest, publications)
    seconds = time.monotonic() - started
    done.set()
    found = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    return Outcome(
        publications, loaders, sum(f[0] for f in found), len({name for f in found for name in f[3]}),
        sum(f[1] for f in found), sum(f[2] for f in found), round(seconds, 1),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its numbers as JSON; 1 when a load failed or saw a mixture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--publications", type=int, default=1000)
    parser.add_argument("--loaders", type=int, default=4)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(Path(folder), publications=given.publications, loaders=given.loaders)
    sys.stdout.write(json.dumps(asdict(outcome)) + "\n")
    return 1 if outcome.failed or outcome.mixed else 0


if __name__ == "__main__":
    sys.exit(main())
