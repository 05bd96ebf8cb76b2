import json
import re
import struct
from pathlib import Path

import pytest
import torch

import hermes.checkpoint
from hermes.checkpoint import (
    MANIFEST_FILE,
    WEIGHTS_FILE,
    LearnedIn,
    Manifest,
    UsedCase,
    check_checkpoint,
    code_version,
    load_checkpoint,
    load_weights,
    read_manifest,
    save_checkpoint,
)
from hermes.errors import CheckpointError, ConflictError, WeightsMismatchError
from hermes.labels.space import LabelSpace, Task
from hermes.model import NetworkConfig, build_network
from hermes.transforms.preparation import PreparationSpec

CONFIG = NetworkConfig("hermes-c", 4, 2)
MANIFEST = Manifest(
    network=CONFIG,
    label_space=LabelSpace((Task("liver", "BCV"), Task("spleen", "BCV"))),
    preparation=PreparationSpec(spacing_mm=(3.0, 2.0, 2.0)),
    window=(32, 48, 64),
    version="v2",
    parent="v1",
    metrics={"dice": {"liver": 0.5}},
    trained_on=(UsedCase("a", "1" * 64, "2" * 64, 3), UsedCase("b")),
    held_out=(UsedCase("c", "4" * 64, "5" * 64),),
    learned_in=(LearnedIn("v1", "6" * 64, (1,)),),
    seed=7,
)


@pytest.fixture
def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(CONFIG)


def test_what_is_saved_is_loaded(tmp_path: Path, net) -> None:
    stored = save_checkpoint(tmp_path / "v2", net, MANIFEST)
    loaded, manifest = load_checkpoint(tmp_path / "v2")
    assert manifest == stored == read_manifest(tmp_path / "v2")
    assert manifest.preparation == MANIFEST.preparation
    assert manifest.label_space == MANIFEST.label_space
    assert not loaded.training
    for name, value in net.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v2"]


def test_a_manifest_of_an_older_hermes_has_ids_without_hashes(tmp_path: Path, net) -> None:
    save_checkpoint(tmp_path / "v2", net, MANIFEST)
    file = tmp_path / "v2" / MANIFEST_FILE
    data = json.loads(file.read_text())
    data["trained_on"] = ["a", "b"]
    del data["held_out"], data["learned_in"]
    file.write_text(json.dumps(data))
    _, manifest = load_checkpoint(tmp_path / "v2")
    assert (manifest.trained_on, manifest.held_out) == ((UsedCase("a"), UsedCase("b")), ())
    assert manifest.learned_in == ()


def test_the_code_version_differs_when_a_source_file_does(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "part").mkdir()
    file = tmp_path / "part" / "code.py"
    monkeypatch.setattr(hermes.checkpoint, "__file__", str(tmp_path / "checkpoint.py"))
    found = []
    for text in ("a = 1", "a = 2", "a = 1"):
        file.write_text(text)
        (tmp_path / f"notes of {text}").touch()
        found.append(code_version.__wrapped__())
    assert found[0] == found[2] != found[1]
    assert re.fullmatch(re.escape(hermes.__version__) + r"\+[0-9a-f]{12}", found[0])
    file.rename(tmp_path / "code.py")
    assert code_version.__wrapped__() != found[0]


def test_half_precision_is_on_disk_only_and_keeps_large_values(tmp_path: Path, net) -> None:
    name = next(iter(net.state_dict()))
    net.state_dict()[name].view(-1)[0] = 1e6
    save_checkpoint(tmp_path / "full", net, MANIFEST)
    half = Manifest.from_json({**MANIFEST.to_json(), "dtype": "float16"})
    save_checkpoint(tmp_path / "half", net, half)
    sizes = [(tmp_path / version / WEIGHTS_FILE).stat().st_size for version in ("half", "full")]
    assert sizes[0] < 0.7 * sizes[1]
    loaded, _ = load_checkpoint(tmp_path / "half")
    for key, value in net.state_dict().items():
        assert loaded.state_dict()[key].dtype == torch.float32
        assert torch.allclose(loaded.state_dict()[key], value, rtol=1e-3, atol=1e-6)


def test_a_version_never_changes(tmp_path: Path, net) -> None:
    save_checkpoint(tmp_path / "v2", net, MANIFEST)
    with pytest.raises(ConflictError, match="exists"):
        save_checkpoint(tmp_path / "v2", net, MANIFEST)


def test_a_failed_write_leaves_nothing(tmp_path: Path, net, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hermes.checkpoint, "_flush", full)
    with pytest.raises(hermes.checkpoint.HermesError, match="No space"):
        save_checkpoint(tmp_path / "v2", net, MANIFEST)
    assert not list(tmp_path.iterdir())


def test_other_weights_are_refused(tmp_path: Path, net) -> None:
    save_checkpoint(tmp_path / "v2", net, MANIFEST)
    path = tmp_path / "v2" / WEIGHTS_FILE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_checkpoint(tmp_path / "v2")
    path.unlink()
    with pytest.raises(CheckpointError, match="got none"):
        load_checkpoint(tmp_path / "v2")


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "{}", json.dumps({**MANIFEST.to_json(), "network": {"name": "hermes-c"}}),
        *(json.dumps({**MANIFEST.to_json(), "learned_in": wrong}) for wrong in (5, ["v1"], [{"version": "v1"}])),
        json.dumps({**MANIFEST.to_json(), "learned_in": [{"version": 5, "sha256": "", "rows": []}]}),
        json.dumps({**MANIFEST.to_json(), "trained_on": [{"case_id": "a", "label_id": [1]}]}),
        json.dumps({**MANIFEST.to_json(), "trained_rows": [2]}),
        json.dumps({**MANIFEST.to_json(), "preparation": {**MANIFEST.to_json()["preparation"], "spacing_mm": -1}}),
    ],
)  # fmt: skip
def test_a_bad_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST_FILE).write_text(text)
    with pytest.raises(CheckpointError, match="Expected"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("entry", "value", "said"),
    [
        *(
            ("width", value, "width")
            for value in (0, -8, "8", None, [8], 8.0, True, 1e20, float("nan"), 10**13)
        ),
        ("width", 16, "do not fit"),
        ("tasks", 22.5, "tasks"),
        ("tasks", 10**13, "tasks"),
        ("modalities", "5", "modalities"),
        ("name", ["hermes-c"], "network out of"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(tmp_path: Path, net, entry, value, said) -> None:
    save_checkpoint(tmp_path / "v2", net, MANIFEST)
    file = tmp_path / "v2" / MANIFEST_FILE
    data = json.loads(file.read_text())
    data["network"][entry] = value
    file.write_text(json.dumps(data))
    for read in (check_checkpoint, load_checkpoint):
        with pytest.raises(CheckpointError, match=said):
            read(tmp_path / "v2")


@pytest.mark.parametrize("window", [[0, 0, 0], [32, 32, 30], [-16, 16, 16]])
def test_a_window_that_no_network_takes_is_refused(tmp_path: Path, net, window) -> None:
    save_checkpoint(tmp_path / "v2", net, MANIFEST)
    file = tmp_path / "v2" / MANIFEST_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), "window": window}))
    with pytest.raises(CheckpointError, match="multiples of 16"):
        check_checkpoint(tmp_path / "v2")


def test_no_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="got none"):
        load_checkpoint(tmp_path)


def test_a_damaged_file_with_the_right_hash_is_refused(tmp_path: Path, net, monkeypatch) -> None:
    save_checkpoint(tmp_path / "v2", net, MANIFEST)
    (tmp_path / "v2" / WEIGHTS_FILE).write_bytes(struct.pack("<Q", 10**9) + b"{}")
    monkeypatch.setattr(hermes.checkpoint, "_sha256", lambda _: read_manifest(tmp_path / "v2").sha256)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path / "v2")


def test_what_does_not_fit_is_named_and_nothing_is_copied(net) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    weights = {name: value + 1 for name, value in before.items()}
    names = list(weights)
    weights[names[0]] = torch.zeros(1, 2, 3)
    del weights[names[1]]
    weights["other"] = torch.zeros(1)
    with pytest.raises(WeightsMismatchError) as caught:
        load_weights(net, weights)
    assert f"missing {names[1]}" in str(caught.value)
    assert "surplus other" in str(caught.value)
    assert f"{names[0]} of shape (1, 2, 3)" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_more_tasks_than_rows_are_refused() -> None:
    with pytest.raises(CheckpointError, match="one task per row"):
        Manifest(network=NetworkConfig("hermes-c", 4, 1), label_space=MANIFEST.label_space)
