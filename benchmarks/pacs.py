"""A campaign on a real PACS (Orthanc): how soon its lists are right, what an outage costs, many annotators at once.

    python benchmarks/pacs.py lists [--series 200]
    python benchmarks/pacs.py latency [--seconds 10]
    python benchmarks/pacs.py outage [--seconds 60]
    python benchmarks/pacs.py annotators [--annotators 8] [--minutes 5]
    python benchmarks/pacs.py series [--data FOLDER] [--out TABLE.md]

Orthanc is started for the run (``make parts`` installs it). ``lists`` runs the datastore in this process, everything
else a whole server with a small untrained network.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import requests
import torch
from pydicom.uid import generate_uid

from hermes.campaign.campaign import Campaign
from hermes.checkpoint import Manifest, save_checkpoint
from hermes.demo import running_server
from hermes.dicom import write_segmentation
from hermes.labels.space import LabelSpace, Task
from hermes.model import NetworkConfig, build_network
from hermes.pacs import Orthanc, running_orthanc, store
from hermes.phantoms import PhantomCase, make_case
from hermes.phantoms.dicom import series_uid, write_dicom_series
from hermes.records import LabelMap
from hermes.transforms.preparation import PreparationSpec
from hermes.transforms.reading import read_volume
from hermes.transforms.writing import write_label_map

STRUCTURES = ("liver", "spleen")
APP = Path(__file__).resolve().parents[1] / "apps" / "hermes"
SLICES = 8


def tiny_model(directory: Path, *, spacing_mm: float = 9.0) -> Path:
    """A real, small, untrained network."""
    torch.manual_seed(0)
    space = LabelSpace(tuple(Task(name, "Test") for name in STRUCTURES))
    net = build_network(NetworkConfig("hermes-c", 8, tasks=len(STRUCTURES)))
    spec = PreparationSpec(spacing_mm=spacing_mm)
    save_checkpoint(directory, net, Manifest(net.config, space, spec, (32, 32, 32), version="tiny"))
    return directory


def thin(case: PhantomCase) -> PhantomCase:
    """The middle slices of a phantom."""
    start = (case.labels.shape[0] - SLICES) // 2
    affine = case.affine.copy()
    affine[:3, 3] += start * affine[:3, 2]
    part = slice(start, start + SLICES)
    return replace(case, image=case.image[part], labels=case.labels[part], affine=affine)


def fill(orthanc: Orthanc, count: int, root: Path) -> dict[str, PhantomCase]:
    """``count`` small CT series of as many patients in the PACS."""
    base = make_case("PhantomAbdomenCT", 3, size="tiny", plain_axes=True)
    cases = {}
    for number in range(count):
        case = replace(thin(base), name=f"Patient{number:04d}")
        store(orthanc.dicomweb, write_dicom_series(case, root / case.name))
        cases[series_uid(case)] = case
    return cases


def until(condition: Callable[[], Any], seconds: float = 300) -> float:
    """Seconds until the condition holds."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > seconds:
            raise TimeoutError
        time.sleep(0.02)
    return time.monotonic() - begin


def conf(model: Path, directory: Path, **more: str) -> dict[str, str]:
    """Settings of the campaigns here."""
    return {
        "structures": ",".join(STRUCTURES), "model": str(model), "campaign_dir": str(directory), "holdout_share": "0",
        "labels_per_round": "0", "score_images_per_round": "0", **more,
    }  # fmt: skip


def label_file(case: PhantomCase, root: Path, uid: str) -> tuple[Path, list[dict[str, Any]]]:
    """The truth of a phantom on its series, and what its values mean."""
    volume = read_volume(root / case.name)
    values = {v: n for v, n in case.names.items() if n in STRUCTURES}
    drawn = np.where(np.isin(case.labels, list(values)), case.labels, 0).astype(np.uint8)
    path = write_label_map(LabelMap(drawn, volume.grid, {}), root / f"label-{uid}.nii.gz")
    return path, [{"name": name, "idx": value} for value, name in values.items()]


# ------------------------------------------------------------------------------------------------ lists


def lists(count: int, root: Path) -> None:
    """HTTP calls per refresh and seconds until the lists are right, with ``count`` labelled series."""
    from hermes.adapters.build import build

    with running_orthanc(root / "orthanc") as orthanc:
        begin = time.monotonic()
        cases = fill(orthanc, count + 2, root / "dicom")
        labelled = list(cases)[:count]
        for uid in labelled:
            case = cases[uid]
            headers = [
                pydicom.dcmread(f, stop_before_pixels=True)
                for f in sorted((root / "dicom" / case.name).iterdir())
            ]
            seg = write_segmentation(
                {"liver": case.labels == 1}, headers, algorithm_type="MANUAL", annotator="bert"
            )
            seg.Manufacturer = "Somebody else"
            seg.save_as(root / "seg.dcm", write_like_original=False)
            store(orthanc.dicomweb, [root / "seg.dcm"])
        print(f"PACS with {len(cases)} series and {count} SEG made in {time.monotonic() - begin:.0f} s")
        parts = build(str(APP), orthanc.dicomweb, conf(tiny_model(root / "model"), root / "campaign"))
        parts.dicomweb(orthanc.dicomweb)
        pacs = parts.pacs
        assert pacs is not None
        begin = time.monotonic()
        pacs.start(lambda: None)
        took = until(lambda: pacs.store.status()["completed"] == count, 1200)
        print(
            f"all {count} foreign labels read and {len(cases)} series inspected: {took:.1f} s, {pacs.client.calls} calls"
        )
        until(lambda: pacs.state()["waiting_to_be_inspected"] == 0)
        pacs.index.current(max_age_s=0, patience_s=60)
        for what, change in (("nothing changed", False), ("full list", True)):
            calls, begin = pacs.client.calls, time.monotonic()
            if change:
                pacs.index._full_at = -float("inf")
            pacs.index.current(max_age_s=0, patience_s=60)
            print(f"refresh, {what}: {pacs.client.calls - calls} calls, {time.monotonic() - begin:.2f} s")
        first, second = list(cases)[count:]
        file, info = label_file(cases[first], root / "dicom", first)
        begin = time.monotonic()
        pacs.store.save_label(first, str(file), "final", {"label_info": info, "label_values": "idx"})
        assert pacs.store.status()["completed"] == count + 1
        print(f"submit, answered and counted: {time.monotonic() - begin:.2f} s")
        took = until(lambda: pacs.store.status()["pacs"]["uploads"]["done"] == 1)
        print(f"... and stored in the PACS: {took:.2f} s later")
        case = cases[second]
        headers = [
            pydicom.dcmread(f, stop_before_pixels=True)
            for f in sorted((root / "dicom" / case.name).iterdir())
        ]
        seg = write_segmentation(
            {"liver": case.labels == 1}, headers, algorithm_type="MANUAL", annotator="bert"
        )
        seg.Manufacturer = "Somebody else"
        pacs.client.store(seg)
        print(
            f"foreign SEG stored -> counted: {until(lambda: pacs.store.status()['completed'] == count + 2):.2f} s"
        )
        where = requests.post(f"{orthanc.url}/tools/lookup", data=seg.SOPInstanceUID, timeout=30).json()[0][
            "ID"
        ]
        requests.delete(f"{orthanc.url}/instances/{where}", timeout=30)
        print(
            f"SEG deleted -> not counted: {until(lambda: pacs.store.status()['completed'] == count + 1):.2f} s"
        )
        case = replace(case, name="Newcomer")
        store(orthanc.dicomweb, write_dicom_series(case, root / "dicom" / "Newcomer"))
        print(f"new study -> listed: {until(lambda: series_uid(case) in pacs.store.list_images()):.2f} s")
        pacs.stop()


# ------------------------------------------------------------------------------------------------ server


@contextmanager
def served(
    root: Path, count: int, *, spacing_mm: float = 9.0, **more: str
) -> Iterator[tuple[str, Orthanc, dict[str, PhantomCase]]]:
    """A server on an Orthanc with ``count`` series."""
    with running_orthanc(root / "orthanc") as orthanc:
        cases = fill(orthanc, count, root / "dicom")
        settings = conf(tiny_model(root / "model", spacing_mm=spacing_mm), root / "campaign", **more)
        with running_server(orthanc.dicomweb, settings, root / "server.log") as address:  # type: ignore[arg-type]
            yield address, orthanc, cases


def send(address: str, uid: str, file: Path, info: list[dict[str, Any]], client: str) -> requests.Response:
    """Submit a label."""
    params = {"label_info": info, "label_values": "idx", "client_id": client}
    with file.open("rb") as stream:
        return requests.put(
            f"{address}/datastore/label", params={"image": uid}, data={"params": json.dumps(params)},
            files={"label": (file.name, stream)}, timeout=300,
        )  # fmt: skip


def latency(seconds: float, root: Path) -> None:
    """How long ``/info/`` and ``/activelearning`` take while inferences run one after the other."""
    with served(root, 4, spacing_mm=2.0) as (address, _, cases):
        ended = threading.Event()
        took: list[float] = []

        def infer() -> None:
            while not ended.is_set():
                for uid in cases:
                    begin = time.monotonic()
                    requests.post(
                        f"{address}/infer/hermes", params={"image": uid, "output": "json"}, timeout=600
                    )
                    took.append(time.monotonic() - begin)

        def measure() -> dict[str, list[float]]:
            found: dict[str, list[float]] = {"/info/": [], "/activelearning/first": []}
            stop = time.monotonic() + seconds
            while time.monotonic() < stop:
                for path, times in found.items():
                    begin = time.monotonic()
                    answer = (
                        requests.get(address + path, timeout=60)
                        if path == "/info/"
                        else requests.post(address + path, json={"client_id": "x"}, timeout=60)
                    )
                    assert answer.ok, answer.text
                    times.append(time.monotonic() - begin)
                    time.sleep(0.05)
            return found

        measure_idle = measure()
        thread = threading.Thread(target=infer)
        thread.start()
        until(lambda: len(took) >= 1, 600)
        busy = measure()
        ended.set()
        thread.join()
        print(f"inference: {statistics.median(took):.2f} s each")
        for path in busy:
            for name, times in (("idle", measure_idle[path]), ("while inferring", busy[path])):
                times.sort()
                print(
                    f"{path} {name}: median {1000 * statistics.median(times):.0f} ms, "
                    f"p95 {1000 * times[int(0.95 * len(times))]:.0f} ms, worst {1000 * times[-1]:.0f} ms, {len(times)} calls"
                )


def outage(seconds: float, root: Path) -> None:
    """Labels submitted while the PACS is down for a time."""
    with served(root, 6) as (address, orthanc, cases):
        files = {uid: label_file(case, root / "dicom", uid) for uid, case in cases.items()}
        for uid in cases:  # annotators have opened their images
            assert requests.get(f"{address}/datastore/image", params={"image": uid}, timeout=60).ok
        orthanc.stop()
        stopped = time.monotonic()
        statuses = Counter(
            send(address, uid, *files[uid], f"a{n}").status_code for n, uid in enumerate(cases)
        )
        print(f"submitted while the PACS is down: {dict(statuses)}")
        time.sleep(max(0.0, seconds - (time.monotonic() - stopped)))
        orthanc.start()

        def uploads() -> dict[str, int]:
            found: dict[str, int] = requests.get(f"{address}/info/", timeout=60).json()["datastore"]["pacs"][
                "uploads"
            ]
            return found

        took = until(lambda: uploads()["done"] == len(cases), 900)
        found = requests.get(
            f"{orthanc.dicomweb}/instances",
            params={"Modality": "SEG"},
            headers={"Accept": "application/dicom+json"},
            timeout=60,
        ).json()
        print(
            f"PACS back after {seconds:.0f} s: all {len(cases)} labels stored {took:.1f} s later, {len(found)} SEG there"
        )


def annotators(count: int, minutes: float, root: Path) -> None:
    """Annotators who take, segment and submit images for some minutes: errors, lost labels, double assignments."""
    images = max(60, int(count * minutes * 30))
    with served(root, images) as (address, orthanc, cases):
        files = {uid: label_file(case, root / "dicom", uid) for uid, case in cases.items()}
        until(lambda: requests.get(f"{address}/info/", timeout=60).json()["datastore"]["total"] == images)
        ends = time.monotonic() + 60 * minutes
        errors: Counter[str] = Counter()
        given: list[str] = []
        done: list[str] = []
        times: dict[str, list[float]] = {"next sample": [], "infer": [], "submit": []}
        lock = threading.Lock()

        def call(what: str, request: Callable[[], requests.Response]) -> requests.Response | None:
            begin = time.monotonic()
            try:
                answer = request()
            except requests.RequestException as error:
                with lock:
                    errors[f"{what}: {type(error).__name__}"] += 1
                return None
            with lock:
                times[what].append(time.monotonic() - begin)
                if not answer.ok:
                    errors[f"{what}: {answer.status_code} {answer.text[:80]}"] += 1
            return answer if answer.ok else None

        def work(name: str) -> None:
            while time.monotonic() < ends:
                answer = call(
                    "next sample",
                    lambda: requests.post(
                        f"{address}/activelearning/uncertainty", json={"client_id": name}, timeout=300
                    ),
                )
                uid = answer.json().get("id") if answer is not None else None
                if uid is None:
                    return
                with lock:
                    given.append(uid)
                call(
                    "infer",
                    lambda uid=uid: requests.post(
                        f"{address}/infer/hermes", params={"image": uid, "output": "image"}, timeout=300
                    ),
                )
                if call("submit", lambda uid=uid: send(address, uid, *files[uid], name)) is not None:
                    with lock:
                        done.append(uid)

        threads = [threading.Thread(target=work, args=(f"annotator-{n}",)) for n in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = until(
            lambda: (
                requests.get(f"{address}/info/", timeout=60).json()["datastore"]["pacs"]["uploads"]["done"]
                >= len(done)
            ),
            900,
        )
        found = requests.get(
            f"{orthanc.dicomweb}/instances",
            params={"Modality": "SEG"},
            headers={"Accept": "application/dicom+json"},
            timeout=120,
        ).json()
        with Campaign(root / "campaign" / "campaign.sqlite") as campaign:
            recorded = Counter(label.image_id for label in campaign.labels(latest=False))
        double = sum(n - 1 for n in Counter(given).values())
        lost = len(set(done) - set(recorded))
        print(
            f"{count} annotators, {minutes:g} min: {len(done)} labels, errors {dict(errors)}, "
            f"lost {lost}, assigned twice {double}"
        )
        print(f"in the PACS: {len(found)} SEG, the last one {took:.1f} s after the last submission")
        for what, spent in times.items():
            spent.sort()
            print(
                f"{what}: median {statistics.median(spent):.2f} s, p95 {spent[int(0.95 * len(spent))]:.2f} s"
            )


# ------------------------------------------------------------------------------------------------ series


def series(data: Path, out: Path | None, root: Path) -> None:
    """What becomes of real series: stored in the PACS, listed, segmented, or refused with which reason."""
    import sys

    sys.path.insert(0, str(Path(__file__).parent))
    from dicom_series import series_below

    named = {
        name: files for part in ("dicom_awkward", "pet_headneck_qin")
        for name, files in ((f"{part}/{n}", f) for n, f in series_below(data / part).items())
    }  # fmt: skip
    rows = []
    with running_orthanc(root / "orthanc") as orthanc:
        stored: dict[str, tuple[str, str, str]] = {}
        for number, (name, files) in enumerate(named.items()):
            stored[name] = _store_copy(orthanc, files, root / "in" / str(number))
        settings = conf(tiny_model(root / "model"), root / "campaign")
        with running_server(orthanc.dicomweb, settings, root / "server.log") as address:  # type: ignore[arg-type]
            until(
                lambda: (
                    requests.get(f"{address}/hermes/pacs", timeout=60).json()["waiting_to_be_inspected"] == 0
                )
            )
            time.sleep(2.0)
            for name, (uid, refused, modality) in stored.items():
                rows.append((name, len(named[name]), *_outcome(address, uid, refused, modality)))
            assert requests.get(f"{address}/info/", timeout=60).ok
            offered = set()
            for number in range(len(stored) + 1):
                answer = requests.post(
                    f"{address}/activelearning/first", json={"client_id": f"c{number}"}, timeout=60
                ).json()
                offered.add(answer.get("id"))
            left_out = {
                entry["image"] for entry in requests.get(f"{address}/hermes/quarantine", timeout=60).json()
            }
            assert not offered & left_out
    lines = ["| series | files | outcome | what came out, or why not |", "|---|---|---|---|"]
    lines += [f"| {name} | {count} | {result} | {told} |" for name, count, result, told in rows]
    counts = Counter(row[2] for row in rows)
    lines += [
        "",
        ", ".join(f"{n} {what}" for what, n in sorted(counts.items())) + "; the server answered to the end",
    ]
    text = "\n".join(lines) + "\n"
    if out:
        out.write_text(text, encoding="utf-8")
    print(text)


def _store_copy(orthanc: Orthanc, files: list[Path], folder: Path) -> tuple[str, str, str]:
    """(series UID in the PACS, why the PACS refused it, modality); copies of one image get UIDs of their own."""
    folder.mkdir(parents=True)
    uid, study, modality, refused = generate_uid(), generate_uid(), "", ""
    for number, file in enumerate(files):
        target = folder / f"{number:04d}.dcm"
        try:
            data = pydicom.dcmread(file)
            data.SeriesInstanceUID, data.StudyInstanceUID, data.SOPInstanceUID = uid, study, generate_uid()
            data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
            modality = str(data.get("Modality", ""))
            data.save_as(target, write_like_original=True)
            store(orthanc.dicomweb, [target])
        except Exception as error:  # noqa: BLE001  # whatever keeps a file from being stored is the outcome
            refused = f"{type(error).__name__}: {str(error)[:120]}"
    return uid, refused, modality


def _outcome(address: str, uid: str, refused: str, modality: str) -> tuple[str, str]:
    if refused:
        return "not stored", f"it cannot be stored in the PACS as it is ({refused.splitlines()[0]})"
    if modality not in ("CT", "MR", "PT"):
        return "not listed", f"modality {modality or 'unknown'}"
    objects = requests.get(f"{address}/datastore/", params={"output": "all"}, timeout=60).json()["objects"]
    images = [name for name in objects if name.split("~")[0] == uid]
    told = []
    kinds = set()
    for image in images:
        answer = requests.post(
            f"{address}/infer/hermes", params={"image": image, "output": "json"}, timeout=300
        )
        kinds.add(answer.status_code)
        if answer.ok:
            read = answer.json()
            told.append(f"segmented as {read['modality'] or 'modality unknown'} ({read['modality_source']})")
        else:
            told.append(answer.json()["detail"].replace("|", "/"))
    if not images:
        return "not listed", "the PACS does not list it"
    if any(kind >= 500 for kind in kinds):
        return "failed", "; ".join(told)
    result = "segmented" if kinds == {200} else "refused" if 200 not in kinds else "in part"
    several = f"{len(images)} volumes: " if len(images) > 1 else ""
    return result, several + "; ".join(dict.fromkeys(told))


def main() -> None:
    """Runs one measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("lists", "latency", "outage", "annotators", "series"))
    parser.add_argument("--series", type=int, default=200)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--annotators", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=5.0)
    default = os.environ.get("HERMES_TEST_DATA", str(Path(__file__).parents[2] / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        if given.what == "lists":
            lists(given.series, root)
        elif given.what == "latency":
            latency(given.seconds or 10.0, root)
        elif given.what == "outage":
            outage(given.seconds or 60.0, root)
        elif given.what == "annotators":
            annotators(given.annotators, given.minutes, root)
        else:
            series(given.data, given.out, root)


if __name__ == "__main__":
    main()
