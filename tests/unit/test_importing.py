"""Importing published checkpoints: what is taken, what is refused, and that a hostile file does nothing."""

import io
import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from hermes.checkpoint import code_version, load_checkpoint, read_manifest
from hermes.config import from_conf
from hermes.errors import BadRequestError, CheckpointError, ConflictError, NotFoundError, WeightsMismatchError
from hermes.importing import detect_network, import_published
from hermes.labels.space import published_label_space
from hermes.model import NetworkConfig
from hermes.published import load_published, published_shapes
from hermes.types import Modality
from hermes.workspace import Workspace

torch.set_num_threads(1)
SHAPES = published_shapes(NetworkConfig("hermes-r", 8, tasks=72))


def weights(seed: int, shapes=SHAPES) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def ema():
    return weights(1)


@pytest.fixture
def checkpoint(tmp_path, ema):
    """A released checkpoint in little: other trained weights, an optimizer's state."""
    trained = {name: value + 1 for name, value in ema.items()}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.002, "step": 3}]}
    content = {
        "epoch": 200,
        "model_state_dict": trained,
        "ema_model_state_dict": ema,
        "optimizer_state_dict": optimizer,
    }
    path = tmp_path / "released.pth"
    torch.save(content, path)
    return path


def table(directory) -> torch.Tensor:
    net, _ = load_checkpoint(directory)
    return net.state_dict()["backbone.stem.weight"]


def test_the_averaged_weights_are_served(checkpoint, ema, tmp_path):
    done = import_published(checkpoint, tmp_path / "site-model")
    net, manifest = load_checkpoint(tmp_path / "site-model")
    assert done.remarks == ()
    assert manifest == done.manifest
    assert manifest.network == NetworkConfig("hermes-r", 8, tasks=72)
    assert manifest.label_space == published_label_space()
    assert manifest.learned_rows == set(range(71))
    assert manifest.window == (128, 128, 128)
    assert manifest.preparation.spacing_zyx_mm == (1.5, 1.5, 1.5)
    assert (manifest.version, manifest.code_version) == ("site-model", code_version())
    assert manifest.settings["source_sha256"] in manifest.note
    published = load_published(ema, "hermes-r").network.state_dict()
    assert all(torch.equal(value, published[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("ema_entry", [None, {}, "absent"])
def test_without_averaged_weights_the_trained_ones_are_taken_and_it_is_said(
    checkpoint, tmp_path, ema, ema_entry
):
    content = torch.load(checkpoint, weights_only=True)
    if ema_entry == "absent":
        del content["ema_model_state_dict"]
    else:
        content["ema_model_state_dict"] = ema_entry
    torch.save(content, tmp_path / "no-ema.pth")
    done = import_published(tmp_path / "no-ema.pth", tmp_path / "m")
    assert "ema_model_state_dict" in done.remarks[0]
    assert torch.equal(table(tmp_path / "m"), ema["inc.conv1.weight"] + 1)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_do_not_count(ema, tmp_path, prefix):
    torch.save({"ema_model_state_dict": {prefix + name: v for name, v in ema.items()}}, tmp_path / "ddp.pth")
    import_published(tmp_path / "ddp.pth", tmp_path / "m")
    assert torch.equal(table(tmp_path / "m"), ema["inc.conv1.weight"])


def test_the_counter_of_an_averaged_model_does_not_count(ema, tmp_path):
    averaged = {"n_averaged": torch.tensor(5), **{f"module.{name}": v for name, v in ema.items()}}
    torch.save({"ema_model_state_dict": averaged}, tmp_path / "averaged.pth")
    import_published(tmp_path / "averaged.pth", tmp_path / "m")
    assert torch.equal(table(tmp_path / "m"), ema["inc.conv1.weight"])


def test_a_file_that_unpacks_to_more_than_it_is_is_not_unpacked(ema, tmp_path, monkeypatch):
    torch.save({**ema, "bomb": torch.zeros(2**20)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for part in plain.infolist():
            packed.writestr(part.filename, plain.read(part))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(CheckpointError, match="compressed parts"):
        import_published(tmp_path / "bomb.pth", tmp_path / "m")


@pytest.mark.parametrize("save", [torch.save, save_file], ids=["pth", "safetensors"])
def test_a_bare_state_dict_is_taken(ema, tmp_path, save):
    path = tmp_path / f"bare.{'safetensors' if save is save_file else 'pth'}"
    save(ema, path)
    assert "bare" in import_published(path, tmp_path / "m").remarks[0]
    assert torch.equal(table(tmp_path / "m"), ema["inc.conv1.weight"])


def test_the_network_is_told_by_its_names(ema):
    medformer = published_shapes(NetworkConfig("hermes-m", 32, tasks=72))
    assert detect_network(ema) == "hermes-r"
    assert detect_network(medformer) == "hermes-m"
    with pytest.raises(WeightsMismatchError, match=r"conv0\.weight.*--network"):
        detect_network({"conv0.weight": torch.zeros(1)})


def test_a_wrong_network_is_refused(checkpoint, tmp_path):
    with pytest.raises(WeightsMismatchError, match=r"hermes-m|published network|width"):
        import_published(checkpoint, tmp_path / "m", network="hermes-m")
    with pytest.raises(BadRequestError, match="hermes-x"):
        import_published(checkpoint, tmp_path / "m", network="hermes-x")
    assert not (tmp_path / "m").exists()


class Hostile:
    """Unpickled by the ordinary way, it makes a directory."""

    def __init__(self, proof) -> None:
        self.proof = str(proof)

    def __reduce__(self):
        return os.mkdir, (self.proof,)


@pytest.mark.parametrize("how", ["torch zip", "torch legacy", "plain pickle"])
def test_a_hostile_pickle_is_refused_and_harmless(ema, tmp_path, how):
    proof, path = tmp_path / "proof", tmp_path / "hostile.pth"
    content = {"ema_model_state_dict": ema, "epoch": Hostile(proof)}
    if how == "plain pickle":
        path.write_bytes(pickle.dumps({"ema_model_state_dict": {}, "epoch": Hostile(proof)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch zip")
    with pytest.raises(CheckpointError, match="refused and nothing in it was executed"):
        import_published(path, tmp_path / "m")
    assert not proof.exists()
    assert not (tmp_path / "m").exists()
    # The file is what it claims to be: read without care, it does its harm.
    if how == "plain pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert proof.exists()


def test_damaged_files_are_refused(checkpoint, tmp_path):
    whole = checkpoint.read_bytes()
    no_dictionary = io.BytesIO()
    torch.save([1, 2], no_dictionary)
    damages = {
        "cut.pth": whole[: len(whole) // 2],
        "empty.pth": b"",
        "text.pth": b"hello, I am a text\n" * 9,
        "x.safetensors": b"not safetensors",
        "list.pth": no_dictionary.getvalue(),
    }
    for name, content in damages.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            import_published(tmp_path / name, tmp_path / "m")
    with pytest.raises(NotFoundError):
        import_published(tmp_path / "nothing.pth", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_other_weights_are_refused(ema, tmp_path):
    cases = {
        "surplus blob": {**ema, "blob": torch.zeros(2)},
        "missing inc.conv1.weight": {n: v for n, v in ema.items() if n != "inc.conv1.weight"},
        "NaN": {**ema, "inc.conv1.weight": ema["inc.conv1.weight"] * float("nan")},
        "other tasks": weights(2, published_shapes(NetworkConfig("hermes-r", 8, tasks=12))),
        "modalities": weights(2, published_shapes(NetworkConfig("hermes-r", 8, tasks=72, modalities=3))),
        "got: epoch": {"epoch": 3},
    }
    for problem, content in cases.items():
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(WeightsMismatchError, match=problem):
            import_published(tmp_path / "w.pth", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_an_existing_directory_is_left_as_it_is(checkpoint, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine").write_text("kept")
    with pytest.raises(ConflictError, match="exists"):
        import_published(checkpoint, tmp_path / "m")
    assert [p.name for p in (tmp_path / "m").iterdir()] == ["mine"]


@pytest.mark.parametrize("modality", [None, *Modality])
def test_an_imported_model_serves_every_structure_once(checkpoint, tmp_path, modality):
    import_published(checkpoint, tmp_path / "site-model")
    conf = {"model": str(tmp_path / "site-model"), "modality": modality.value if modality else "auto"}
    workspace = Workspace(from_conf(conf), str(tmp_path), starter=tmp_path / "none")
    bound = workspace.bindings()
    assert bound.structures == published_label_space().structures()
    assert bound.trained == bound.structures
    assert len(set(bound.rows.values())) == len(bound.structures)
    assert bound.space == read_manifest(tmp_path / "site-model").label_space
    for name, row in bound.rows.items():
        assert row == bound.space.row(bound.space.resolve(name, modality))
