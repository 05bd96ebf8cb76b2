"""The campaign with many annotators: next sample, storing scores, simultaneous annotators, expiry, kills.

    python benchmarks/campaign.py process          # in one process: 10,000 images, 100,000 events
    python benchmarks/campaign.py http             # the same against a real server
    python benchmarks/campaign.py kills --times 20 # a worker killed with -9 during 200 operations
    python benchmarks/campaign.py kills --times 20 --http

Images of the HTTP runs are hard links to one phantom; the database is filled directly. Prints one line per measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from hermes.campaign.campaign import Campaign
from hermes.campaign.openness import Wish
from hermes.campaign.records import Score
from hermes.queueing import Queue
from hermes.strategies import get_strategy

ANNOTATORS = [f"annotator-{n}" for n in range(8)]
CONF = {
    "structures": "liver,spleen", "labels_per_round": "0", "score_images_per_round": "0", "holdout_share": "0",
}  # fmt: skip


def percentile(values: list[float], share: float) -> float:
    """In milliseconds."""
    return 1000 * sorted(values)[min(len(values) - 1, int(share * len(values)))]


def say(what: str, **values: Any) -> None:
    """One line of the result."""
    print(
        f"{what}: "
        + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()),
        flush=True,
    )


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what the call gave."""
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


def fill(path: Path, images: list[str], events: int) -> None:
    """Images, and events of long work: 5 % labelled, the rest leases that were given back."""
    with Campaign(path) as campaign:
        campaign.sync_images(images)
        for image in images[: len(images) // 20]:
            campaign.record_label(
                image, "final", f"{image}/0001.nii.gz", "0" * 64, "annotator-0", {"liver": "present"}
            )
    kinds = ("Leased", "LeaseRenewed", "Released")
    with sqlite3.connect(path) as raw:
        there = raw.execute("SELECT count(*) FROM events").fetchone()[0]
        payload = {"annotator": "old", "until": 1.0}
        raw.executemany(
            "INSERT INTO events (at, kind, payload) VALUES (?, ?, ?)",
            (
                (1.0, kinds[n % 3], json.dumps({"image": images[n % len(images)], **payload}))
                for n in range(events - there)
            ),
        )
    raw.close()


def run_annotators(ask: Callable[[str], str | None], calls: int) -> None:
    """Eight annotators at once, and how many images went to two of them."""
    got: dict[str, list[str]] = {name: [] for name in ANNOTATORS}
    seconds: list[float] = []
    problems: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for _ in range(calls):
                took, image = timed(lambda: ask(name))
                seconds.append(took)
                if image is not None:
                    got[name].append(image)
        except BaseException as error:
            problems.append(error)
            raise

    threads = [threading.Thread(target=work, args=(name,)) for name in ANNOTATORS]
    wall, _ = timed(lambda: ([t.start() for t in threads], [t.join() for t in threads]))
    every = [image for images in got.values() for image in images]
    say(
        f"8 annotators x {calls} calls at once", calls=len(seconds), offered=len(every), duplicates=len(every) - len(set(every)),
        errors=len(problems), p50_ms=percentile(seconds, 0.5), p95_ms=percentile(seconds, 0.95), wall_s=wall,
    )  # fmt: skip


def in_process(images: int, events: int, calls: int) -> None:
    """Scores, offers, simultaneous annotators and expiry in this process."""
    with tempfile.TemporaryDirectory() as folder:
        path, names = Path(folder) / "campaign.sqlite", [f"image-{n:05d}" for n in range(images)]
        fill(path, names, events)
        with Campaign(path) as campaign:
            scores = [Score(name, "", n / images) for n, name in enumerate(names)]
            took, _ = timed(lambda: campaign.put_scores("uncertainty", "v1", scores))
            say("storing scores, in process", scores=len(scores), seconds=took)
            measure_offers(campaign, names, calls)
        expiry_in_process(path, names)


def measure_offers(campaign: Campaign, names: list[str], calls: int) -> None:
    """The next sample by three strategies, then eight annotators."""
    for strategy in ("uncertainty", "random", "first"):
        queue = Queue(campaign, lease_s=3600, seed=0, serving_version=lambda: "v1")
        first, _ = timed(lambda q=queue, s=strategy: q.offer(get_strategy(s), names, "warm-up"))
        seconds, cpu = [], time.process_time()
        for n in range(300):
            who = ANNOTATORS[n % 8]
            seconds.append(timed(lambda q=queue, s=strategy, w=who: q.offer(get_strategy(s), names, w))[0])
        say(
            f"next sample, in process, {strategy}",
            cpu_ms=1000 * (time.process_time() - cpu) / len(seconds),
            first_ms=1000 * first,
            p50_ms=percentile(seconds, 0.5),
            p95_ms=percentile(seconds, 0.95),
        )
        clear_leases(campaign)
    queue = Queue(campaign, lease_s=3600, seed=0, serving_version=lambda: "v1")
    strategy = get_strategy("uncertainty")
    run_annotators(lambda name: queue.offer(strategy, names, name).image_id, calls)
    clear_leases(campaign)


def clear_leases(campaign: Campaign) -> None:
    """Give all images back."""
    for lease in campaign.assignments.leases():
        campaign.assignments.release(lease.image_id)


def expiry_in_process(path: Path, names: list[str]) -> None:
    """How long after the limit an image is offered again."""
    with Campaign(path) as campaign:
        queue = Queue(campaign, lease_s=2.0, seed=0, serving_version=lambda: "v1")
        say("expiry, in process", limit_s=2.0, offered_again_after_s=until_offered_again(
            lambda who: queue.offer(get_strategy("first"), names, who).image_id))  # fmt: skip


def until_offered_again(ask: Callable[[str], str | None]) -> float:
    """Seconds from an offer until another annotator gets the same image."""
    image, begin = ask("goes-home"), time.perf_counter()
    n = 0
    while True:
        n += 1
        if ask(f"waits-{n}") == image:
            return time.perf_counter() - begin
        time.sleep(0.05)


# ------------------------------------------------------------------------------------------------ HTTP


def tiny_model(folder: Path) -> Path:
    """A real, small, untrained network."""
    import torch

    from hermes.checkpoint import Manifest, save_checkpoint
    from hermes.labels.space import LabelSpace, Task
    from hermes.model import NetworkConfig, build_network
    from hermes.transforms.preparation import PreparationSpec

    torch.manual_seed(0)
    space = LabelSpace((Task("liver", "Test"), Task("spleen", "Test")))
    net = build_network(NetworkConfig("hermes-c", 8, tasks=2))
    manifest = Manifest(net.config, space, PreparationSpec(spacing_mm=9.0), (32, 32, 32), version="tiny")
    save_checkpoint(folder / "tiny", net, manifest)
    return folder / "tiny"


def make_studies(folder: Path, images: int) -> list[str]:
    """A folder of so many links to one image; their ids."""
    from hermes.phantoms import make_case
    from hermes.phantoms.nifti import write_image

    folder.mkdir()
    image = folder.parent / "image.nii.gz"
    write_image(make_case("PhantomAbdomenCT", 1, size="tiny"), image)
    names = [f"image-{n:05d}" for n in range(images)]
    for name in names:
        os.link(image, folder / f"{name}.nii.gz")
    return names


def over_http(images: int, events: int, calls: int) -> None:
    """The same against a real server."""
    from hermes.demo import running_server

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        names = make_studies(folder / "studies", images)
        (folder / "studies" / ".hermes").mkdir()
        database = folder / "studies" / ".hermes" / "campaign.sqlite"
        fill(database, names, events)
        conf = {**CONF, "model": str(tiny_model(folder)), "strategy": "uncertainty"}
        began = time.perf_counter()
        with running_server(folder / "studies", conf, folder / "log") as address:
            say("server up", seconds=time.perf_counter() - began)
            with Campaign(database) as campaign:
                scores = [Score(name, "", n / images) for n, name in enumerate(names)]
                took, _ = timed(lambda: campaign.put_scores("uncertainty", "tiny", scores))
                say("storing scores, beside the server", scores=len(scores), seconds=took)
            local = threading.local()

            def ask(name: str) -> str | None:
                if not hasattr(local, "session"):
                    local.session = requests.Session()
                answer = local.session.post(
                    f"{address}/activelearning/first", json={"client_id": name}, timeout=60
                )
                answer.raise_for_status()
                found: str | None = answer.json().get("id")
                return found

            ask("warm-up")
            seconds = [timed(lambda w=ANNOTATORS[n % 8]: ask(w))[0] for n in range(300)]
            say("next sample, over HTTP", p50_ms=percentile(seconds, 0.5), p95_ms=percentile(seconds, 0.95))
            run_annotators(ask, calls)
        with running_server(folder / "studies", {**conf, "lease_minutes": "0.05"}, folder / "log") as address:
            say("expiry, over HTTP", limit_s=3.0, offered_again_after_s=until_offered_again(ask))


# ------------------------------------------------------------------------------------------------ kills


def worker(path: Path, acknowledged: Path, seed: int) -> None:
    """200 random operations; what was acknowledged is noted in a file before the next one."""
    rng = random.Random(seed)
    with Campaign(path) as campaign, acknowledged.open("a", encoding="utf-8") as notes:
        images = [image.id for image in campaign.images()]
        queue = Queue(campaign, lease_s=2.0, seed=seed, serving_version=lambda: "v1")
        for _ in range(200):
            who = rng.choice(ANNOTATORS)
            action = rng.random()
            offer = queue.offer(get_strategy("random"), images, who)
            if offer.image_id is None:
                continue
            if action < 0.5:
                label = campaign.record_label(
                    offer.image_id, "final", "p", "0" * 64, who, {"liver": "present"}
                )
                notes.write(f"{label.id}\n")
                notes.flush()
            elif action < 0.6:
                campaign.assignments.skip(offer.image_id, who, "no")
            elif action < 0.7:
                campaign.assignments.ask_revisit(offer.image_id, asked_by=who)


def kill_workers(times: int) -> None:
    """A process that does what the server does, killed."""
    lost = endless = damaged = killed = 0
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as place:
        for turn in range(times):
            path, notes = Path(place) / f"{turn}.sqlite", Path(place) / f"{turn}.txt"
            with Campaign(path) as campaign:
                campaign.sync_images([f"image-{n:03d}" for n in range(200)])
            notes.touch()
            process = subprocess.Popen([sys.executable, __file__, "worker", str(path), str(notes), str(turn)])
            aim = rng.randint(1, 80)
            while process.poll() is None and len(notes.read_text().split()) < aim:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
            good, missing, left = state_after(path, [int(n) for n in notes.read_text().split()], lease_s=2.0)
            damaged, lost, endless = damaged + (not good), lost + missing, endless + left
    say(
        "worker killed with -9", times=times, while_it_worked=killed, lost_submissions=lost,
        endless_leases=endless, damaged_databases=damaged,
    )  # fmt: skip


def state_after(path: Path, acknowledged: list[int], *, lease_s: float) -> tuple[bool, int, int]:
    """(the database is consistent, submissions that were lost, leases that do not end in time)."""
    with sqlite3.connect(path) as raw:
        good = raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        good = good and raw.execute("PRAGMA foreign_key_check").fetchall() == []
        there = {number for (number,) in raw.execute("SELECT id FROM labels WHERE tag = 'final'")}
        noted = {
            json.loads(p)["label"]
            for (p,) in raw.execute("SELECT payload FROM events WHERE kind = 'LabelSubmitted'")
        }
    raw.close()
    with Campaign(path) as campaign:
        far = sum(lease.until > time.time() + lease_s for lease in campaign.assignments.leases())
        images = [image.id for image in campaign.images()]
        later = Campaign(path, clock=lambda: time.time() + lease_s + 1)
        free = later.assignments.leases() == []
        offer = Queue(later, lease_s=lease_s, seed=0, serving_version=lambda: "v").offer(
            get_strategy("first"), images, "new"
        )
        open_images = [
            s for s in later.assignments.states().values() if s.may_take("new", Wish(), later.now())
        ]
        later.close()
    goes_on = offer.image_id is not None or not open_images
    return good and there == noted and goes_on, len(set(acknowledged) - there), far + (not free)


@contextmanager
def server_to_kill(
    studies: Path, conf: dict[str, str], log: Path
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server that is up; killed at the end at the latest."""
    from hermes.demo import server_command

    command, port = server_command(studies, conf)
    with log.open("ab") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            try:
                if requests.get(f"{address}/info/", timeout=30).ok:
                    break
            except requests.ConnectionError:
                time.sleep(0.3)
        yield address, process
    finally:
        process.kill()
        process.wait()


def kill_servers(times: int, minutes: float) -> None:
    """A real server killed during 200 random operations of eight clients, on one campaign that goes on."""
    from hermes.phantoms import make_case
    from hermes.phantoms.nifti import write_labels

    rng, lost, done, damaged, endless, killed, acknowledged = random.Random(0), 0, 0, 0, 0, 0, 0
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        names = make_studies(folder / "studies", 60)
        case, label = make_case("PhantomAbdomenCT", 1, size="tiny"), folder / "label.nii.gz"
        write_labels(case, label)
        values = {name: value for value, name in case.names.items()}
        conf = {**CONF, "model": str(tiny_model(folder)), "lease_minutes": "0.05", "labels_per_image": "8",
                "structures": ",".join(values)}  # fmt: skip
        params = {"label_info": [{"name": name, "idx": value} for name, value in values.items()]}
        database = folder / "studies" / ".hermes" / "campaign.sqlite"
        while done < times and time.monotonic() < end:
            submitted: list[str] = []
            with server_to_kill(folder / "studies", conf, folder / "log") as (address, process):
                stop = rng.randint(5, 60)
                counted = operate(address, names, label, params, rng, process, stop, submitted)
                killed += process.poll() is None or process.returncode == -signal.SIGKILL
            with sqlite3.connect(database) as raw:
                there = [p for (p,) in raw.execute("SELECT path FROM labels WHERE tag = 'final'")]
                per_image = {name: sum(p.startswith(f"{name}/") for p in there) for name in names}
            raw.close()
            for name in names:
                known[name] = known.get(name, 0) + submitted.count(name)
                lost += max(0, known[name] - per_image[name])
            archive = folder / "studies" / ".hermes" / "labels"
            lost += sum(not (archive / p).is_file() for p in there)
            good, _, left = state_after(database, [], lease_s=3.0)
            done, damaged, endless = done + 1, damaged + (not good), endless + left
            acknowledged += len(submitted)
            say(f"kill {done}", operations=counted, acknowledged=len(submitted))
    say(
        "server killed with -9",
        times=done,
        acknowledged=acknowledged,
        lost_submissions=lost,
        endless_leases=endless,
        damaged_databases=damaged,
    )


known: dict[str, int] = {}


def operate(
    address: str, names: list[str], label: Path, params: dict[str, Any], rng: random.Random,
    process: subprocess.Popen[bytes], stop: int, submitted: list[str],
) -> int:  # fmt: skip
    """Random operations of four clients at once; the server is killed after ``stop`` of them."""
    counted = 0
    lock = threading.Lock()

    def client(number: int) -> None:
        nonlocal counted
        own = random.Random(rng.random())
        who = ANNOTATORS[number]
        try:
            for _ in range(50):
                with lock:
                    counted += 1
                    if counted >= stop:
                        process.kill()
                once(own, who)
        except requests.RequestException:
            return  # the server is gone

    def once(own: random.Random, who: str) -> None:
        said = {"client_id": who}
        answer = requests.post(f"{address}/activelearning/random", json=said, timeout=60).json()
        image = answer.get("id") or own.choice(names)
        action = own.random()
        if action < 0.6:
            with label.open("rb") as stream:
                done = requests.put(
                    f"{address}/datastore/label", params={"image": image}, files={"label": (label.name, stream)},
                    data={"params": json.dumps({**params, **said})}, timeout=60,
                )  # fmt: skip
            if done.ok:
                with lock:
                    submitted.append(image)
        elif action < 0.7:
            requests.post(f"{address}/hermes/skip", json={**said, "image": image, "reason": "no"}, timeout=60)
        elif action < 0.8:
            requests.post(f"{address}/hermes/revisit", json={**said, "image": image}, timeout=60)
        elif action < 0.9:
            body = {**said, "image": image, "state": "rejected", "comment": "no"}
            requests.post(f"{address}/hermes/review", json=body, timeout=60)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counted


def main() -> None:
    """Read the arguments and measure."""
    if sys.argv[1:2] == ["worker"]:
        worker(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("process", "http", "kills"))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument(
        "--minutes", type=float, default=120.0, help="no further server is started after this"
    )
    parser.add_argument("--http", action="store_true", help="kill a server instead of a worker process")
    given = parser.parse_args()
    if given.what == "process":
        in_process(given.images, given.events, given.calls)
    elif given.what == "http":
        over_http(given.images, given.events, given.calls)
    elif given.http:
        kill_servers(given.times, given.minutes)
    else:
        kill_workers(given.times)


if __name__ == "__main__":
    main()
