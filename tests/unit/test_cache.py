import multiprocessing
import pickle
from pathlib import Path

import nibabel
import numpy as np
import pytest

import hermes.cache
from hermes.cache import VolumeCache
from hermes.errors import BadImageError, GeometryMismatchError, NotFoundError
from hermes.geometry import Grid
from hermes.records import Volume
from hermes.transforms.preparation import PreparationSpec
from hermes.types import Modality

SPEC = PreparationSpec(spacing_mm=2.0)


def save(path: Path, seed: int = 0, shape=(20, 22, 18)) -> Path:
    array = np.random.default_rng(seed).normal(0, 100, shape).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.5, 1.0, 3.0, 1.0])), path)
    return path


@pytest.fixture
def preparations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever an image is really prepared."""
    done: list[int] = []
    original = hermes.cache.prepare

    def counted(volume, spec):
        done.append(1)
        return original(volume, spec)

    monkeypatch.setattr(hermes.cache, "prepare", counted)
    return done


def test_the_second_request_prepares_nothing_and_is_the_same(tmp_path, preparations) -> None:
    path = save(tmp_path / "a.nii.gz")
    cache = VolumeCache(tmp_path / "cache")
    first, second = cache.prepared(path, SPEC), cache.prepared(path, SPEC)
    assert len(preparations) == 1
    assert np.array_equal(first.array, second.array)
    assert first.record.to_json() == second.record.to_json()
    lazy = cache.prepared(path, SPEC, lazy=True)
    assert np.array_equal(lazy.array[3:5, :, 2], first.array[3:5, :, 2])
    assert len(preparations) == 1


def test_content_decides_not_the_place(tmp_path, preparations) -> None:
    cache = VolumeCache(tmp_path / "cache")
    path = save(tmp_path / "a.nii.gz")
    copy = tmp_path / "b.nii.gz"
    copy.write_bytes(path.read_bytes())
    cache.prepared(path, SPEC)
    cache.prepared(copy, SPEC)
    assert len(preparations) == 1
    save(path, seed=1)
    cache.prepared(path, SPEC)
    assert len(preparations) == 2


@pytest.mark.parametrize(
    "change", [{"modality": Modality.CT}, {"spec": PreparationSpec(spacing_mm=3.0)}], ids=["modality", "spec"]
)
def test_what_changes_the_array_changes_the_key(tmp_path, preparations, change) -> None:
    cache = VolumeCache(tmp_path / "cache")
    path = save(tmp_path / "a.nii.gz")
    cache.prepared(path, SPEC)
    cache.prepared(path, change.get("spec", SPEC), modality=change.get("modality"))
    assert len(preparations) == 2


def test_a_name_that_states_the_modality_counts(tmp_path) -> None:
    cache = VolumeCache(tmp_path / "cache")
    path = save(tmp_path / "a_t1.nii.gz")
    copy = tmp_path / "a_t2.nii.gz"
    copy.write_bytes(path.read_bytes())
    assert cache.prepared(path, SPEC).record.modality is Modality.T1
    assert cache.prepared(copy, SPEC).record.modality is Modality.T2


def test_volumes_in_memory_are_cached_too(tmp_path, preparations) -> None:
    cache = VolumeCache(tmp_path / "cache")
    grid = Grid((4, 5, 6), np.eye(4))
    volumes = [Volume(np.full(grid.shape, value, np.float32), grid) for value in (1.0, 1.0, 2.0)]
    for volume in volumes:
        cache.prepared(volume, SPEC)
    assert len(preparations) == 2


def test_recent_images_stay_in_memory_up_to_a_limit(tmp_path, preparations, monkeypatch) -> None:
    paths = [save(tmp_path / f"{seed}.nii.gz", seed) for seed in range(2)]
    cache = VolumeCache(tmp_path / "cache")
    first = cache.prepared(paths[0], SPEC)
    assert cache.prepared(paths[0], SPEC) is first
    monkeypatch.setattr(hermes.cache, "RECENT_BYTES", first.array.nbytes)
    cache.prepared(paths[1], SPEC)  # takes the place of the first
    again = cache.prepared(paths[0], SPEC)
    assert again is not first
    assert np.array_equal(again.array, first.array)
    assert len(preparations) == 2
    cache.clear()
    assert cache.prepared(paths[0], SPEC) is not again  # what was removed is not remembered


def test_least_recently_used_goes_first(tmp_path, preparations, monkeypatch) -> None:
    monkeypatch.setattr(hermes.cache, "TOUCH_AFTER_S", -1.0)
    paths = [save(tmp_path / f"{seed}.nii.gz", seed) for seed in range(3)]
    cache = VolumeCache(tmp_path / "cache")
    cache.prepared(paths[0], SPEC)
    cache.limit_bytes = int(2.5 * cache.size_bytes())
    cache.prepared(paths[1], SPEC)
    cache.prepared(paths[0], SPEC)  # used again
    cache.prepared(paths[2], SPEC)  # evicts 1
    assert cache.size_bytes() <= cache.limit_bytes
    cache.prepared(paths[0], SPEC)
    assert len(preparations) == 3
    cache.prepared(paths[1], SPEC)
    assert len(preparations) == 4


def test_a_lazy_array_never_gives_zeros_for_an_evicted_entry(tmp_path) -> None:
    cache = VolumeCache(tmp_path / "cache")
    lazy = cache.prepared(save(tmp_path / "a.nii.gz"), SPEC, lazy=True).array
    assert np.array_equal(pickle.loads(pickle.dumps(lazy))[...], lazy[...])
    cache.clear()
    with pytest.raises(NotFoundError, match="evicted"):
        lazy[0]


def test_a_failed_preparation_leaves_nothing(tmp_path) -> None:
    cache = VolumeCache(tmp_path / "cache")
    (tmp_path / "a.nii.gz").write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(BadImageError, match="readable"):
            cache.prepared(tmp_path / "a.nii.gz", SPEC)
    assert cache.size_bytes() == 0
    assert not list((tmp_path / "cache" / "partial").iterdir())
    with pytest.raises(BadImageError, match="nothing at the given path"):
        cache.prepared(tmp_path / "absent.nii.gz", SPEC)


def test_labels_follow_their_image(tmp_path) -> None:
    cache = VolumeCache(tmp_path / "cache")
    record = cache.prepared(save(tmp_path / "a.nii.gz"), SPEC).record
    array = np.random.default_rng(0).integers(0, 5, record.grid.shape).astype(np.int16)
    path = tmp_path / "label.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0), record.grid.affine_ras), path)
    from_file, from_array = cache.prepared_labels(path, record), cache.prepared_labels(array, record)
    assert from_file.shape == record.shape
    assert from_file.dtype == np.uint8
    assert np.array_equal(from_file, from_array)
    assert np.array_equal(from_file, cache.prepared_labels(path, record, lazy=True)[...])
    nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0), np.eye(4)), path)
    with pytest.raises(GeometryMismatchError, match="on the grid of its image"):
        cache.prepared_labels(path, record)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def junk(file: Path) -> None:
    file.write_bytes(b"junk" * 100)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


DAMAGES = [(flip, "0.0.0"), (junk, "0.0.0"), (truncate, "0.0.0"), (Path.unlink, "0.0.0"), (junk, ".zarray"), (flip, ".zarray"),
           (Path.unlink, ".zarray"), (junk, "entry.json"), (flip, "entry.json"), (Path.unlink, "entry.json")]  # fmt: skip


def damage_all(cache: VolumeCache, how, name: str) -> None:
    files = list((cache.directory / "entries").rglob(name))
    assert files
    for file in files:
        how(file)


@pytest.mark.parametrize("lazy", [False, True], ids=["whole", "lazy"])
@pytest.mark.parametrize(("how", "name"), DAMAGES)
def test_a_damaged_entry_is_made_again(tmp_path, preparations, caplog, how, name: str, lazy: bool) -> None:
    path = save(tmp_path / "a.nii.gz")
    image = VolumeCache(tmp_path / "cache").prepared(path, SPEC)
    labels = np.random.default_rng(0).integers(0, 5, image.record.grid.shape).astype(np.uint8)
    wanted = VolumeCache(tmp_path / "cache").prepared_labels(labels, image.record)
    cache = VolumeCache(tmp_path / "cache")  # as another process: nothing is in memory
    damage_all(cache, how, name)
    again = cache.prepared(path, SPEC, lazy=lazy)
    assert np.array_equal(again.array[:, :, :], image.array)
    assert again.record.to_json() == image.record.to_json()
    assert np.array_equal(cache.prepared_labels(labels, image.record, lazy=lazy)[:, :, :], wanted)
    assert len(preparations) == 2
    assert caplog.text.count("damaged and made again") == 2
    caplog.clear()
    assert np.array_equal(VolumeCache(tmp_path / "cache").prepared(path, SPEC).array, image.array)
    assert (len(preparations), caplog.text) == (2, "")


def test_what_is_damaged_while_it_is_read_is_made_again(tmp_path, preparations) -> None:
    path, cache = save(tmp_path / "a.nii.gz"), VolumeCache(tmp_path / "cache")
    lazy = cache.prepared(path, SPEC, lazy=True).array
    whole = lazy[...]
    damage_all(cache, flip, "0.0.0")
    assert np.array_equal(lazy[3:5, :, 2], whole[3:5, :, 2])
    assert len(preparations) == 2
    damage_all(cache, junk, "0.0.0")
    save(path, seed=1)
    with pytest.raises(NotFoundError, match=r"damaged while it was in use.*Start again"):
        lazy[0]


def test_a_damaged_memory_of_a_digest_is_worked_out_again(tmp_path, preparations) -> None:
    path, cache = save(tmp_path / "a.nii.gz"), VolumeCache(tmp_path / "cache")
    cache.prepared(path, SPEC)
    for content in (b"", b"\xff\xfe"):
        for memo in (tmp_path / "cache" / "digests").iterdir():
            memo.write_bytes(content)
        cache.prepared(path, SPEC)
    assert len(preparations) == 1


def _prepare_in_child(arguments: tuple[Path, Path]) -> float:
    directory, path = arguments
    return float(np.abs(VolumeCache(directory).prepared(path, SPEC).array).sum())


def test_processes_share_it(tmp_path) -> None:
    path = save(tmp_path / "a.nii.gz")
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        sums = pool.map(_prepare_in_child, [(tmp_path / "cache", path)] * 3)
    assert len(set(sums)) == 1
    assert len(list((tmp_path / "cache" / "entries").iterdir())) == 1
