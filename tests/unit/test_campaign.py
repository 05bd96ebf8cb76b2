"""The campaign database: what goes in comes out, in every process, and nothing is lost."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from hermes.campaign import Annotated, Campaign, Counts, LeaseRecord, RunState, Score, VersionState
from hermes.campaign.openness import Wish
from hermes.campaign.processes import is_alive, process_identity
from hermes.errors import BadRequestError, BusyError, ConflictError, DamagedDatabaseError, NotFoundError


@pytest.fixture
def campaign(tmp_path: Path, clock: Clock) -> Iterator[Campaign]:
    with Campaign(tmp_path / "campaign.db", clock=clock) as opened:
        yield opened


def submit(campaign: Campaign, image_id: str, annotator: str = "ann", tag: str = "final") -> int:
    label = campaign.record_label(
        image_id, tag, f"{image_id}.nii.gz", "0" * 64, annotator, {"liver": "present"}
    )
    return label.id


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_sync_adds_forgets_nothing_and_notices_what_comes_back(campaign: Campaign, clock: Clock) -> None:
    assert campaign.sync_images(["b", "a"]) == (["a", "b"], [])
    clock.now = 2000
    submit(campaign, "b")
    assert campaign.sync_images(["a", "c"]) == (["c"], ["b"])
    assert [(image.id, image.first_seen_at) for image in campaign.images()] == [("a", 1000), ("c", 2000)]
    assert campaign.labelled_ids() == {"b"}
    assert campaign.labels_since_last_training() == 0
    assert campaign.sync_images(["a", "b", "c"]) == (["b"], [])
    assert campaign.labels_since_last_training() == 1
    assert campaign.sync_images(["a", "b", "c"]) == ([], [])
    assert {image.id: image.first_seen_at for image in campaign.images()}["b"] == 1000


def test_images_are_described_and_quarantined(campaign: Campaign) -> None:
    campaign.sync_images(["a"])
    campaign.describe_image("a", content_hash="h")
    campaign.quarantine("a", "not an image")
    (image,) = campaign.images()
    assert (image.content_hash, image.quarantined_reason) == ("h", "not an image")
    submit(campaign, "a")
    assert campaign.labels_since_last_training() == 0
    campaign.quarantine("a", None)
    assert campaign.labels_since_last_training() == 1
    for call in (
        lambda: campaign.describe_image("x", content_hash="h"),
        lambda: campaign.quarantine("x", "y"),
    ):
        with pytest.raises(NotFoundError, match="'x'"):
            call()


def test_label_versions_are_numbered_and_kept(campaign: Campaign, clock: Clock) -> None:
    first = campaign.record_label(
        "a", "final", "p1", "s1", "ann", {"liver": "present", "spleen": "absent"}, "v1"
    )
    clock.now = 1500
    second = campaign.record_label(
        "a", "final", "p2", "s2", "bob", {"liver": Annotated.PRESENT}, source="import"
    )
    other = campaign.record_label("a", "original", "p3", "s3", "model", {})
    assert (first.number, second.number, other.number) == (1, 2, 1)
    assert campaign.labels() == [second]
    assert campaign.labels(latest=False) == [first, second]
    assert campaign.labels("original") == [other]
    assert first.annotated == {"liver": Annotated.PRESENT, "spleen": Annotated.ABSENT}
    assert (first.path, first.sha256, first.annotator, first.submitted_at) == ("p1", "s1", "ann", 1000)
    assert (first.model_version, first.source, second.model_version, second.source) == (
        "v1",
        "annotator",
        None,
        "import",
    )
    assert campaign.labelled_ids() == {"a"}


def test_annotated_is_present_or_absent(campaign: Campaign) -> None:
    with pytest.raises(BadRequestError, match="'present' or 'absent'"):
        campaign.record_label("a", "final", "p", "s", "ann", {"liver": "maybe"})
    assert campaign.labels() == []


def test_a_withdrawn_label_does_not_count_and_its_number_is_not_used_again(campaign: Campaign) -> None:
    submit(campaign, "a")
    assert campaign.withdraw_label("a") == 1
    assert campaign.withdraw_label("a") == 0
    assert campaign.labels() == []
    assert campaign.labelled_ids() == set()
    assert campaign.labels_since_last_training() == 0
    submit(campaign, "a")
    assert [label.number for label in campaign.labels()] == [2]


def test_a_label_is_new_until_a_run_over_it_ends_well(campaign: Campaign) -> None:
    a, b = submit(campaign, "a"), submit(campaign, "b")
    submit(campaign, "c", tag="original")
    assert campaign.labels_since_last_training() == 2
    failed = campaign.start_run([a, b])
    campaign.fail_run(failed.id, "out of memory")
    stopped = campaign.start_run([a, b])
    campaign.stop_run(stopped.id)
    assert campaign.labels_since_last_training() == 2
    run = campaign.start_run([a])
    assert campaign.labels_since_last_training() == 2
    later = submit(campaign, "b")  # arrives while the run is on; replaces a label that no run has used
    done = campaign.finish_run(run.id, version="v2", steps=10)
    assert (done.state, done.version, done.steps, done.label_ids) == (RunState.DONE, "v2", 10, (a,))
    assert campaign.labels_since_last_training() == 1
    campaign.finish_run(campaign.start_run([a, later]).id)
    assert campaign.labels_since_last_training() == 0
    submit(campaign, "a")
    assert campaign.labels_since_last_training() == 1
    assert [r.state.value for r in campaign.runs()] == ["failed", "stopped", "done", "done"]
    assert campaign.runs()[0].reason == "out of memory"


def test_one_run_at_a_time(campaign: Campaign, clock: Clock) -> None:
    run = campaign.start_run([])
    with pytest.raises(BusyError, match=f"run {run.id}"):
        campaign.start_run([])
    clock.now = 1010
    campaign.heartbeat(run.id, 7)
    current = campaign.current_run()
    assert current is not None
    assert (current.id, current.steps, current.heartbeat_at, current.pid) == (run.id, 7, 1010, os.getpid())
    campaign.finish_run(run.id)
    assert campaign.runs()[0].steps == 7
    assert campaign.current_run() is None
    for call in (
        campaign.finish_run,
        lambda i: campaign.heartbeat(i, 8),
        lambda i: campaign.fail_run(i, "x"),
    ):
        with pytest.raises(ConflictError, match="has ended"):
            call(run.id)
        with pytest.raises(NotFoundError):
            call(99)


def test_the_database_itself_refuses_a_second_running_run(campaign: Campaign, tmp_path: Path) -> None:
    campaign.start_run([])
    with sqlite3.connect(tmp_path / "campaign.db") as raw, pytest.raises(sqlite3.IntegrityError):
        raw.execute(
            "INSERT INTO training_runs (state, started_at, heartbeat_at, host, pid, process_identity, steps) "
            "VALUES ('running', 0, 0, '', 1, '', 0)"
        )
    raw.close()


def test_a_run_needs_labels_that_exist(campaign: Campaign) -> None:
    a = submit(campaign, "a")
    with pytest.raises(NotFoundError, match=r"\[77\]"):
        campaign.start_run([a, 77])
    assert campaign.runs() == []


def test_a_run_whose_process_died_is_failed_and_does_not_block(campaign: Campaign) -> None:
    a = submit(campaign, "a")
    orphan = campaign.start_run([a], pid=dead_pid())
    run = campaign.start_run([a])
    first, second = campaign.runs()
    assert (first.id, first.state, first.reason) == (orphan.id, RunState.FAILED, "process died")
    assert (second.id, second.state) == (run.id, RunState.RUNNING)
    campaign.finish_run(run.id)
    campaign.start_run([a], pid=dead_pid())
    assert campaign.current_run() is None


def test_a_silent_run_of_another_host_is_dead_after_a_while(
    campaign: Campaign, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign.start_run([], pid=1)
    monkeypatch.setattr("hermes.campaign.runs.this_host", lambda: "elsewhere")
    clock.now += 600
    assert campaign.current_run() is not None
    clock.now += 600
    assert campaign.current_run() is None


def test_a_process_is_told_from_a_later_one_with_its_number() -> None:
    own = process_identity(os.getpid())
    assert is_alive(os.getpid(), own)
    assert is_alive(os.getpid(), "")
    assert not is_alive(os.getpid(), "another boot:123")
    assert not is_alive(dead_pid(), "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_zombie_is_not_alive() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = process_identity(process.pid)
    assert is_alive(process.pid, identity)
    assert process.stdin is not None
    process.stdin.close()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is left unreaped
    assert not is_alive(process.pid, identity)
    process.wait()


def test_versions_are_recorded_once_and_change_state(campaign: Campaign, clock: Clock) -> None:
    campaign.record_version("v1", Path("m/v1"), metrics={"dice": 0.5}, state=VersionState.PUBLISHED)
    clock.now = 1100
    campaign.record_version("v2", "m/v2", parent="v1")
    with pytest.raises(ConflictError, match="'v1' exists"):
        campaign.record_version("v1", "m/other")
    clock.now = 1200
    v2 = campaign.set_version_state("v2", VersionState.PUBLISHED, {"dice": 0.6})
    assert (v2.parent, v2.created_at, v2.published_at, v2.metrics) == ("v1", 1100, 1200, {"dice": 0.6})
    assert [(v.name, v.state, v.path) for v in campaign.versions()] == [
        ("v1", VersionState.PUBLISHED, "m/v1"),
        ("v2", VersionState.PUBLISHED, "m/v2"),
    ]
    with pytest.raises(NotFoundError):
        campaign.set_version_state("v3", VersionState.REFUSED)


def test_scores_are_kept_per_method_and_version_and_replaced(campaign: Campaign) -> None:
    campaign.sync_images(["a", "b"])
    campaign.put_scores("entropy", "v1", [Score("a", "", 0.1), Score("a", "liver", 0.2), Score("b", "", 0.3)])
    campaign.put_scores("entropy", "v1", [Score("a", "", 0.9)])
    campaign.put_scores("entropy", "v2", [Score("b", "", 0.5)])
    campaign.put_scores("entropy", "v3", [])
    assert campaign.get_scores("entropy", "v1") == {"a": {"": 0.9, "liver": 0.2}, "b": {"": 0.3}}
    assert campaign.get_scores("entropy", "v2") == {"b": {"": 0.5}}
    assert campaign.get_scores("entropy", "v3") == {}
    assert campaign.get_scores("other", "v1") == {}


def test_bad_scores_change_nothing(campaign: Campaign) -> None:
    campaign.sync_images(["a"])
    with pytest.raises(BadRequestError, match="finite"):
        campaign.put_scores("entropy", "v1", [Score("a", "", 0.1), Score("a", "liver", float("nan"))])
    with pytest.raises(NotFoundError, match="'zz'"):
        campaign.put_scores("entropy", "v1", [Score("a", "", 0.1), Score("zz", "", 0.1)])
    assert campaign.get_scores("entropy", "v1") == {}


def test_a_lease_keeps_others_away_until_it_runs_out(campaign: Campaign, clock: Clock) -> None:
    campaign.sync_images(["a", "b"])
    work = campaign.assignments
    assert work.take("a", "ann", 60, Wish()) is not None
    assert work.take("a", "bob", 60, Wish()) is None
    assert work.take("b", "bob", 10, Wish()) is not None
    clock.now += 30
    assert work.take("a", "ann", 60, Wish()) is not None
    assert work.leases() == [LeaseRecord("a", "ann", 1000, 1090)]
    clock.now += 60
    assert work.take("a", "bob", 60, Wish()) is not None
    assert not work.release("a", "eve")
    assert work.release("a", "bob")
    assert work.release("a")  # what had run out
    assert not work.release("a")
    assert work.leases() == []
    assert work.take("zz", "ann", 1, Wish()) is None


def test_events_are_kept_in_order(campaign: Campaign, clock: Clock) -> None:
    first = campaign.log_event("ModelPublished", {"version": "v1"})
    clock.now = 1001
    second = campaign.log_event("LabelSubmitted")
    assert campaign.events() == [first, second]
    assert campaign.events("LabelSubmitted") == [second]
    assert campaign.events(after_id=first.id) == [second]
    assert (first.at, first.payload, second.at) == (1000, {"version": "v1"}, 1001)


def test_counts(campaign: Campaign) -> None:
    assert campaign.counts() == Counts(0, 0, 0, 0, 0, 0, 0, 0)
    campaign.sync_images(["a", "b", "c"])
    campaign.quarantine("c", "broken")
    a = submit(campaign, "a")
    campaign.finish_run(campaign.start_run([a]).id)
    submit(campaign, "a")
    campaign.record_version("v1", "p")
    assert campaign.counts() == Counts(
        images=3,
        labelled=1,
        quarantined=1,
        label_versions=2,
        new_labels=1,
        runs_done=1,
        runs_failed=0,
        versions=1,
    )


def test_everything_is_there_after_reopening(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "deep" / "campaign.db"
    with Campaign(path, clock=clock) as one:
        submit(one, "a")
        labels = one.labels()
    with Campaign(f"sqlite:///{path}", clock=clock) as two:
        assert two.labels() == labels


def damage(database: Path, *, at: int) -> None:
    with closing(sqlite3.connect(database)) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(database.read_bytes())
    content[at:] = b"\xa5" * (len(content) - at)
    database.write_bytes(content)


@pytest.mark.parametrize("at", [0, 100, 4096])
def test_a_damaged_database_is_said_with_the_way_out(tmp_path: Path, at: int) -> None:
    path = tmp_path / "campaign.sqlite"
    with Campaign(path) as campaign:
        campaign.sync_images(["a", "b"])
    damage(path, at=at)
    with pytest.raises(
        DamagedDatabaseError, match=r"campaign\.sqlite is damaged.*backup.*hermes export.*labels"
    ):
        Campaign(path)


def test_damage_that_shows_later_is_said_as_well(campaign: Campaign, tmp_path: Path) -> None:
    campaign.sync_images([str(i) for i in range(200)])
    damage(tmp_path / "campaign.db", at=4096)
    campaign.close()  # what SQLite has in memory is forgotten; the next transaction connects anew
    with pytest.raises(DamagedDatabaseError, match="is damaged"):
        campaign.images()


def test_other_trouble_of_a_database_is_no_damage(campaign: Campaign) -> None:
    with pytest.raises(OperationalError, match="no such table"), campaign._database.read() as session:
        session.execute(text("SELECT * FROM absent"))


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "campaign.db"
    Campaign(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE schema_info SET version = 99")
        raw.execute("DROP TABLE events")
    raw.close()
    with pytest.raises(ConflictError, match="schema 99"):
        Campaign(path)
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT count(*) FROM sqlite_master WHERE name = 'events'").fetchone() == (0,)
    raw.close()


def test_sqlite_runs_as_asked(campaign: Campaign, tmp_path: Path) -> None:
    with campaign._database.read() as session:
        connection = session.connection()
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 30_000


WORKER = """
import sys
from hermes.campaign import Campaign, Score
from hermes.campaign.openness import Wish
from tests.clocks import Clock
path, name = sys.argv[1:]
with Campaign(path) as campaign:
    for turn in range(20):
        campaign.record_label("shared", "final", name, "0", name, {"liver": "present"})
        campaign.sync_images(["shared", *(f"image {i}" for i in range(turn))])
        campaign.put_scores("entropy", "v1", [Score("shared", f"{name} {turn}", turn)])
        campaign.log_event("turn", {"worker": name})
    take = campaign.assignments.take
    print(sum(take(f"image {i}", name, 1e6, Wish()) is not None for i in range(19)))
"""


def test_processes_lose_no_record_of_each_other(tmp_path: Path) -> None:
    path = tmp_path / "campaign.db"  # made by whichever comes first
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(path), f"w{i}"], stdout=subprocess.PIPE, text=True
        )
        for i in range(3)
    ]
    leased = [int(worker.communicate()[0]) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    with Campaign(path) as campaign:
        assert [label.number for label in campaign.labels(latest=False)] == list(range(1, 61))
        assert len(campaign.get_scores("entropy", "v1")["shared"]) == 60
        assert len(campaign.events("turn")) == 60
        assert sum(leased) == len(campaign.assignments.leases()) == 19


def test_threads_lose_no_record_and_start_one_run(campaign: Campaign) -> None:
    outcomes: list[str] = []

    def work(name: str) -> None:
        for _ in range(10):
            campaign.record_label("shared", "final", name, "0", name, {})
            campaign.counts()
        try:
            campaign.start_run([])
            outcomes.append("started")
        except BusyError:
            outcomes.append("busy")

    threads = [threading.Thread(target=work, args=(f"t{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [label.number for label in campaign.labels(latest=False)] == list(range(1, 61))
    assert sorted(outcomes) == ["busy"] * 5 + ["started"]
