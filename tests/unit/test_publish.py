from __future__ import annotations

import threading
from pathlib import Path

import pytest

from hermes.errors import CheckpointError, NotFoundError
from hermes.publish import VersionStore, write_atomically


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    base = tmp_path / "base"
    base.mkdir()
    return VersionStore(tmp_path / "models", base=base)


def add(store: VersionStore, digest: str) -> str:
    name = store.new_name(digest)
    (store.directory / name).mkdir()
    (store.directory / name / "manifest.json").write_text("{}")
    return name


def test_base_answers_until_something_is_published(store: VersionStore) -> None:
    assert store.serving().name == "base"
    name = add(store, "abcdef012345")
    assert name == "v0001-abcdef"
    assert store.serving().name == "base"
    store.publish(name)
    assert (store.serving().name, store.serving().directory) == (name, store.directory / name)


def test_going_back_is_publishing_an_older_one(store: VersionStore) -> None:
    first, second = add(store, "a" * 12), add(store, "b" * 12)
    assert store.names() == [first, second]
    store.publish(second)
    store.publish(first)
    assert store.serving().name == first


@pytest.mark.parametrize("name", ["v0009-abcdef", "../base", "", "current"])
def test_unknown_version(store: VersionStore, name: str) -> None:
    with pytest.raises(NotFoundError, match="Expected one of the versions"):
        store.publish(name)
    assert store.serving().name == "base"


def test_dangling_pointer_is_an_error_with_a_way_out(store: VersionStore) -> None:
    write_atomically(store.directory / "current", "v0009-abcdef\n")
    with pytest.raises(CheckpointError, match=r"v0009-abcdef.*pointer"):
        store.serving()


def test_readers_never_see_a_mixture(store: VersionStore) -> None:
    names = [add(store, "a" * 12), add(store, "b" * 12)]
    store.publish(names[0])
    seen: set[str] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(store.serving().name)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for turn in range(200):
        store.publish(names[turn % 2])
    stop.set()
    for reader in readers:
        reader.join()
    assert seen <= set(names)
    assert [p.name for p in store.directory.iterdir() if p.name.startswith(".")] == []


def test_the_base_can_answer_again(store: VersionStore) -> None:
    name = add(store, "a" * 12)
    store.publish(name)
    store.publish("base")
    assert store.serving().directory == store.base
    store.publish("base")
    assert store.serving().name == "base"


def test_versions_are_in_the_order_of_their_numbers(store: VersionStore) -> None:
    for name in ("v10000-aaaaaa", "v9999-bbbbbb", "v0002-cccccc"):
        (store.directory / name).mkdir()
    assert store.names() == ["v0002-cccccc", "v9999-bbbbbb", "v10000-aaaaaa"]
    assert store.new_name("d" * 6) == "v10001-dddddd"
