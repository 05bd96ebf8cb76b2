"""The command line, on files: what it writes, what it says, and its exit status."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch

from hermes import serve
from hermes.checkpoint import Manifest, read_manifest, save_checkpoint
from hermes.cli import main
from hermes.errors import BadImageError
from hermes.labels.space import LabelSpace, Task, published_label_space
from hermes.model import NetworkConfig, build_network
from hermes.phantoms import make_case, write_dicom_series, write_nifti
from hermes.published import published_shapes
from hermes.transforms.preparation import PreparationSpec
from hermes.transforms.reading import read_label_map, read_volume
from hermes.transforms.writing import write_label_map

torch.set_num_threads(1)
SPACE = published_label_space()
REAL = Path(
    os.environ.get("HERMES_TEST_DATA", Path(__file__).resolve().parents[2] / ".." / "shared" / "data")
)


def save_model(directory: Path, space: LabelSpace, trained_rows: tuple[int, ...] | None = None) -> Path:
    torch.manual_seed(0)
    net = build_network(NetworkConfig("hermes-c", 4, tasks=len(space) + 1))
    # Untrained task priors are small: larger ones make some structures claim voxels, others none.
    with torch.no_grad():
        for name, value in net.named_parameters():
            if name.endswith("task_prior"):
                value.mul_(20)
    spec = PreparationSpec(spacing_mm=9.0)
    save_checkpoint(
        directory,
        net,
        Manifest(net.config, space, spec, (32, 32, 32), version="tiny", trained_rows=trained_rows),
    )
    return directory


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "tiny", SPACE)


@pytest.fixture(scope="module")
def case():
    return make_case("PhantomAbdomenCT", 3, size="tiny")


@pytest.fixture(scope="module")
def images(tmp_path_factory, case):
    """One CT as NIfTI, as an oblique NRRD, as MHA and as a DICOM series."""
    folder = tmp_path_factory.mktemp("images")
    write_nifti(case, folder)
    nifti = next(folder.glob("*.nii.gz"))
    nifti.rename(folder / "one_ct.nii.gz")
    image = SimpleITK.ReadImage(str(folder / "one_ct.nii.gz"))
    SimpleITK.WriteImage(image, str(folder / "two.mha"))
    turn = np.array([[0.0, -0.96, 0.28], [1.0, 0.0, 0.0], [0.0, -0.28, -0.96]])
    image.SetDirection(turn.ravel().tolist())
    image.SetOrigin((-31.5, 12.25, 700))
    SimpleITK.WriteImage(image, str(folder / "three.nrrd"))
    dicom = tmp_path_factory.mktemp("dicom") / "series"
    write_dicom_series(case, dicom)
    return folder, dicom


def check_result(image: Path, label_map: Path) -> dict:
    """The label map lies on the image's grid, and the report says what is in it."""
    report = json.loads(label_map.with_name(label_map.name.split(".")[0] + ".json").read_text())
    volume, labels = read_volume(image), read_label_map(label_map)
    assert volume.grid.difference(labels.grid) is None
    counts = np.bincount(labels.array.ravel(), minlength=256)
    values = [result["value"] for result in report["structures"]]
    assert values == list(range(1, len(values) + 1))
    assert counts[len(values) + 1 :].sum() == 0
    for result in report["structures"]:
        assert result["voxels"] == counts[result["value"]]
        assert result["volume_ml"] == pytest.approx(result["voxels"] * volume.grid.voxel_volume_ml, abs=1e-3)
        assert 0 <= result["presence_probability"] <= 1
    assert (report["image"], report["label_map"]) == (str(image), str(label_map))
    assert report["timings_s"]["total"] > 0
    return report


# ------------------------------------------------------------------------------------------------- segment


def test_one_image_to_one_file(images, model, tmp_path, capsys):
    image, out = images[0] / "one_ct.nii.gz", tmp_path / "new" / "out.nii.gz"
    asked = ["--structures", "liver, pancreas@btcv,Oesophagus", "--model", str(model)]
    assert main(["segment", str(image), "-o", str(out), *asked]) == 0
    report = check_result(image, out)
    assert [r["task"] for r in report["structures"]] == [SPACE.resolve("liver").key, "pancreas@BCV",
                                                       SPACE.resolve("esophagus").key]  # fmt: skip
    assert (report["modality"], report["modality_source"]) == ("CT", "name")
    assert (report["model_version"], report["device"]) == ("tiny", "cpu")
    assert report["model_sha256"] == read_manifest(model).sha256
    assert report["spacing_mm"] == [9, 9, 9]
    assert sorted(p.name for p in out.parent.iterdir()) == ["out.json", "out.nii.gz"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "out.nii.gz" in captured.err


def test_every_format_and_a_whole_folder(images, model, tmp_path):
    folder, dicom = images
    assert main(["segment", str(folder), str(dicom), "-o", str(tmp_path / "out"), "--model", str(model)]) == 0
    files = {p.name for p in (tmp_path / "out").iterdir()}
    assert files == {
        f"{name}.{kind}" for name in ("one_ct", "two", "three", "series") for kind in ("nii.gz", "json")
    }
    sources = [folder / "one_ct.nii.gz", folder / "two.mha", folder / "three.nrrd", dicom]
    reports = [check_result(s, tmp_path / "out" / f"{s.name.split('.')[0]}.nii.gz") for s in sources]
    assert [r["modality_source"] for r in reports] == ["name", "intensity", "intensity", "dicom"]
    # Without names: every structure that is taught in CT.
    assert {len(r["structures"]) for r in reports} == {45}
    assert sum(result["voxels"] for result in reports[0]["structures"]) > 0


def test_modality_and_spacing_are_obeyed(images, model, tmp_path):
    image, out = str(images[0] / "one_ct.nii.gz"), tmp_path / "x.mha"
    more = ["--modality", "t1", "--spacing", "10", "--device", "cpu", "--model", str(model)]
    assert main(["segment", image, "-o", str(out), *more]) == 0
    report = check_result(Path(image), out)
    assert (report["modality"], report["modality_source"]) == ("T1", "caller")
    assert report["spacing_mm"] == [10, 10, 10]
    assert "grey matter" in [r["name"] for r in report["structures"]]


def test_a_bad_image_does_not_stop_the_others(images, model, tmp_path, capsys):
    (tmp_path / "bad.nii.gz").write_text("not an image")
    (tmp_path / "empty").mkdir()
    good = images[0] / "two.mha"
    given = [str(tmp_path / "bad.nii.gz"), str(tmp_path / "empty"), str(tmp_path / "none.nrrd"), str(good)]
    out = tmp_path / "out"
    assert (
        main(["segment", *given, "-o", str(out), "--model", str(model), "--structures", "liver", "--json"])
        == 1
    )
    check_result(good, out / "two.nii.gz")
    assert sorted(p.name for p in out.iterdir()) == ["two.json", "two.nii.gz"]
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert [entry["image"] for entry in told] == given
    assert ["error" in entry for entry in told] == [True, True, True, False]
    assert told[3] == json.loads((out / "two.json").read_text())
    for name in given[:3]:
        assert f"{name}: failed: Expected" in captured.err
    assert "Traceback" not in captured.err


def test_a_result_that_cannot_be_written_fails_its_image(images, model, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "file" / "out.nii.gz"
    assert main(["segment", str(images[0] / "two.mha"), "-o", str(out), "--model", str(model)]) == 1
    assert "two.mha: failed: Reading or writing failed" in capsys.readouterr().err


def test_images_of_one_name_carry_their_folders_name(images, model, tmp_path):
    for patient in ("anna", "ben"):
        (tmp_path / patient).mkdir()
        (tmp_path / patient / "ct.mha").write_bytes((images[0] / "two.mha").read_bytes())
    given = [str(tmp_path / "anna" / "ct.mha"), str(tmp_path / "ben" / "ct.mha"), str(tmp_path / "anna")]
    out = tmp_path / "out"
    assert main(["segment", *given, "-o", str(out), "--model", str(model), "--structures", "liver"]) == 0
    assert {p.name for p in out.glob("*.nii.gz")} == {"anna_ct.nii.gz", "ben_ct.nii.gz"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--structures", "livr"], "Did you mean 'liver'"),
        (["--structures", "liver,,spleen"], "--structures"),
        (["--modality", "XR"], "'XR'"),
        (["--device", "tpu"], "'tpu'"),
        (["--spacing", "0.01"], "0.01"),
        (["--model", "/no/such/model"], "/no/such/model"),
    ],
)
def test_wrong_arguments(images, model, tmp_path, capsys, more, said):
    out = tmp_path / "out.nii.gz"
    arguments = ["segment", str(images[0] / "two.mha"), "-o", str(out), "--model", str(model), *more]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.startswith("hermes segment: ")
    assert not out.exists()


def test_structures_that_were_not_learned_cannot_be_asked_for(images, tmp_path, capsys):
    tasks = LabelSpace((Task("liver", "X"), Task("widget", "X")))
    model = save_model(tmp_path / "m", tasks, trained_rows=(0,))
    image = str(images[0] / "two.mha")
    assert main(["segment", image, "-o", str(tmp_path / "o.nii"), "--model", str(model)]) == 0
    assert [r["name"] for r in check_result(Path(image), tmp_path / "o.nii")["structures"]] == ["liver"]
    given = ["--model", str(model), "--structures", "widget"]
    assert main(["segment", image, "-o", str(tmp_path / "p.nii"), *given]) == 2
    assert "widget" in capsys.readouterr().err


def test_near_a_label_map_with_an_uncertainty_map(images, model, tmp_path, capsys):
    image = images[0] / "one_ct.nii.gz"
    given = ["segment", str(image), "--structures", "liver,spleen", "--model", str(model)]
    assert main([*given, "-o", str(tmp_path / "all.nii.gz"), "--uncertainty"]) == 0
    whole, doubt = read_label_map(tmp_path / "all.nii.gz"), read_volume(tmp_path / "all_uncertainty.nii.gz")
    assert doubt.grid.difference(whole.grid) is None
    assert 0 <= doubt.array.min() < doubt.array.max() <= 1
    drawn = np.zeros(whole.array.shape, np.uint8)
    drawn[:3, :3, :3] = 3
    near = write_label_map(replace(whole, array=drawn, names={3: "seed"}), tmp_path / "seed.nii.gz")
    assert main([*given, "-o", str(tmp_path / "part.nii.gz"), "--near", str(near), "--margin", "9"]) == 0
    part = read_label_map(tmp_path / "part.nii.gz").array
    inside = drawn > 0
    assert np.array_equal(part[inside], whole.array[inside])
    assert not (tmp_path / "part_uncertainty.nii.gz").exists()
    reports = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("all", "part")]
    assert reports[1]["windows"] < reports[0]["windows"]
    for wrong, said in (
        (["--near", str(near), "--margin", "-5"], "--margin"),
        (["--near", "gone.nii.gz"], "gone"),
    ):
        assert main([*given, "-o", str(tmp_path / "none.nii.gz"), *wrong]) == 2
        assert said in capsys.readouterr().err
    write_label_map(replace(whole, array=drawn * 0, names={}), near)
    assert main([*given, "-o", str(tmp_path / "none.nii.gz"), "--near", str(near)]) == 2
    assert "label map" in capsys.readouterr().err


def test_images_of_one_name_are_told_apart_by_their_folders(tmp_path):
    from hermes.cli.segmenting import plan

    images = [
        tmp_path / f"{name}.nii.gz"
        for name in ("anna/one/scan", "bert/one/scan", "bert/two/scan", "bert/other")
    ]
    for image in images:
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()
    names = [job.label_map.name for job in plan(images, tmp_path / "out")]
    assert names == ["anna_one_scan.nii.gz", "bert_one_scan.nii.gz", "two_scan.nii.gz", "other.nii.gz"]


def test_targets_that_would_do_harm_are_refused(images, model, tmp_path, capsys):
    folder, _ = images
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    wrong = {
        "replace an image": [folder / "one_ct.nii.gz", "-o", folder],
        "replace": [folder / "two.mha", "-o", folder / "two.mha"],
        "would all become": [
            _copy(folder / "two.mha", tmp_path / "two.mha"),
            _copy(folder / "two.mha", tmp_path / "two.nrrd"),
            "-o",
            tmp_path / "o",
        ],
        "folder to write 3": [folder, "-o", tmp_path / "one.nii.gz"],
        "existing file": [folder / "two.mha", "-o", _text(tmp_path / "notes.txt")],
    }
    for said, arguments in wrong.items():
        assert main(["segment", *map(str, arguments), "--model", str(model)]) == 2, said
        assert said in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert (tmp_path / "notes.txt").read_text() == "mine"


def _copy(source: Path, target: Path) -> Path:
    target.write_bytes(source.read_bytes())
    return target


def _text(path: Path) -> Path:
    path.write_text("mine")
    return path


def test_the_starter_is_the_default_model(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(serve, "APP", tmp_path)
    arguments = [
        "segment",
        str(images[0] / "two.mha"),
        "-o",
        str(tmp_path / "o.nii.gz"),
        "--structures",
        "liver",
    ]
    assert main(arguments) == 2
    assert "--model DIR" in capsys.readouterr().err
    save_model(tmp_path / "starter", SPACE)
    assert main(arguments) == 0


def test_the_progress_of_each_image_is_told_window_by_window(images, model, tmp_path):
    from hermes.cli.segmenting import Wish, load_predictor, plan, segment_images
    from hermes.config import from_conf

    predictor = load_predictor(from_conf({"model": str(model), "spacing_mm": "5"}), tmp_path)
    told: dict[str, list[tuple[int, int]]] = {}

    def on_start(job):
        steps = told.setdefault(job.image.name, [])
        return lambda done, total: steps.append((done, total))

    jobs = plan([images[0] / "two.mha", tmp_path / "gone.mha"], tmp_path / "out")
    outcomes = list(segment_images(predictor, jobs, Wish(("liver",)), on_start))
    assert [outcome.report is None for outcome in outcomes] == [False, True]
    steps = told["two.mha"]
    assert len(steps) > 2
    assert steps[-1][0] == steps[-1][1]
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert told["gone.mha"] == []


def test_the_command_runs_as_a_program_without_a_traceback(tmp_path):
    (tmp_path / "x.pth").write_text("no checkpoint")
    command = [
        sys.executable,
        "-m",
        "hermes.cli",
        "import",
        str(tmp_path / "x.pth"),
        "-o",
        str(tmp_path / "m"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("hermes import: Expected")
    assert "Traceback" not in done.stderr


def test_stopped_by_hand(images, model, tmp_path, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("hermes.inference.predictor.Predictor.predict", stop)
    arguments = ["segment", str(images[0] / "two.mha"), "-o", str(tmp_path / "o.nii"), "--model", str(model)]
    assert main(arguments) == 130
    assert "stopped" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- labels


def listed(capsys, *arguments: str) -> list[dict]:
    assert main(["labels", *arguments, "--json"]) == 0
    found: list[dict] = json.loads(capsys.readouterr().out)
    return found


def test_all_labels_with_everything_about_them(capsys):
    entries = listed(capsys)
    assert [entry["name"] for entry in entries] == list(SPACE.structures())
    rows = sorted(task["row"] for entry in entries for task in entry["tasks"])
    assert rows == list(range(71))
    kidney = next(entry for entry in entries if entry["name"] == "left kidney")
    assert kidney["code"] == {"value": "64033007", "scheme": "SCT", "meaning": "Kidney"}
    assert kidney["laterality"]["meaning"] == "Left"
    assert kidney["colour"] == "#0000ff"
    assert [task["task"] for task in kidney["tasks"]] == [
        "left kidney@AMOS",
        "left kidney@BCV",
        "left kidney@CHAOS",
    ]
    assert kidney["tasks"][2]["modalities"] == ["T1", "T2"]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        (["L", "kidney"], ["left kidney"]),
        (["Kidney_L"], ["left kidney"]),
        (["Oesophagus"], ["esophagus"]),
        (["hepar"], ["liver"]),
        (["10200004"], ["liver", "liver tumour"]),
        (["chaos", "spl"], ["spleen"]),
        (["pet"], ["lesion"]),
        (["structseg thorax", "trachea"], ["trachea"]),
        (["Tumour", "kidney"], ["kidney tumour"]),
    ],
)
def test_search(capsys, query, names):
    assert [entry["name"] for entry in listed(capsys, *query)] == names


def test_the_table(capsys):
    assert main(["labels", "--group", "Neuro"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:4]] == [
        "grey matter",
        "white matter",
        "cerebrospinal fluid",
    ]
    for part in ("DLBS", "T1", "389081007", "#969696", "brain", "gm"):
        assert part in lines[1]
    assert lines[4].startswith("3 structures, 3 tasks")


def test_labels_of_a_model(capsys, tmp_path):
    save_model(tmp_path / "m", LabelSpace((Task("liver", "X"), Task("widget", "Y"))))
    assert [entry["name"] for entry in listed(capsys, "--model", str(tmp_path / "m"))] == ["liver", "widget"]
    assert main(["labels", "--model", str(tmp_path / "none")]) == 2


def test_nothing_found(capsys):
    assert main(["labels", "livr"]) == 1
    captured = capsys.readouterr()
    assert "Did you mean 'liver'" in captured.err
    assert captured.out == ""
    assert main(["labels", "--group", "abdomn"]) == 2
    assert "abdomen" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- import


def test_import_then_segment(images, tmp_path, capsys):
    shapes = published_shapes(NetworkConfig("hermes-r", 2, tasks=72))
    generator = torch.Generator().manual_seed(0)
    weights = {f"module.{n}": 0.1 * torch.randn(s, generator=generator) for n, s in shapes.items()}
    torch.save({"model_state_dict": weights}, tmp_path / "w.pth")
    assert main(["import", str(tmp_path / "w.pth"), "-o", str(tmp_path / "m"), "--network", "hermes-r"]) == 0
    captured = capsys.readouterr()
    assert "hermes-r of width 2, 71 tasks" in captured.out
    assert "ema_model_state_dict" in captured.err
    image, out = images[0] / "two.mha", tmp_path / "o.nii.gz"
    more = ["--model", str(tmp_path / "m"), "--spacing", "10", "--structures", "liver"]
    assert main(["segment", str(image), "-o", str(out), *more]) == 0
    assert check_result(image, out)["model_version"] == "m"
    assert main(["import", str(tmp_path / "w.pth"), "-o", str(tmp_path / "m")]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "none.pth"), "-o", str(tmp_path / "n")]) == 2


# ------------------------------------------------------------------------------------------------- documentation


@pytest.mark.parametrize("command", ["segment", "labels", "import"])
def test_every_option_is_documented(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    options = set(re.findall(r"--[a-z]+", capsys.readouterr().out)) - {"--help"}
    page = (Path(__file__).resolve().parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")
    section = page.split(f"## hermes {command}")[1].split("\n## ")[0]
    assert options == set(re.findall(r"`(--[a-z]+)`", section))


# ------------------------------------------------------------------------------------------------- real data


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason="no real volumes: set HERMES_TEST_DATA")
@pytest.mark.parametrize(
    ("path", "modality", "source"),
    [
        ("ctmr_totalseg/example_ct.nii.gz", "CT", "name"),
        ("ctmr_totalseg/example_ct_sm.nii.gz", "CT", "name"),
        ("ctmr_totalseg/example_mr_sm.nii.gz", None, None),
        ("pet_headneck_qin/dicom_pet", "PET", "dicom"),
        ("mr_t1_brain_niivue/norm.mgz", None, None),
        ("cine_mr_mnms_sample/A0S9V9_sa_ED.nii.gz", None, None),
    ],
)
def test_real_volumes(model, tmp_path, path, modality, source):
    image, out = REAL / path, tmp_path / "out.nii.gz"
    assert main(["segment", str(image), "-o", str(out), "--model", str(model)]) == 0
    report = check_result(image, out)
    if source is not None:
        assert (report["modality"], report["modality_source"]) == (modality, source)
    assert len(report["structures"]) == {"CT": 45, "PET": 1}.get(
        report["modality"], len(report["structures"])
    )
    if image.is_file():
        # Independent of our reader: the file's own affine.
        theirs, ours = nibabel.load(image), nibabel.load(out)
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-3)


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason="no real volumes: set HERMES_TEST_DATA")
def test_real_dicom_files_are_segmented_or_refused_with_a_reason(model, tmp_path, capsys):
    folder = REAL / "dicom_awkward" / "dicom2nifti"
    sources = sorted({file.parent for file in folder.rglob("*") if file.is_file()})[:12]
    if not sources:
        pytest.skip("no awkward DICOM folders in HERMES_TEST_DATA")
    more = ["--model", str(model), "--structures", "liver", "--json"]
    status = main(["segment", *map(str, sources), "-o", str(tmp_path / "out"), *more])
    told = json.loads(capsys.readouterr().out)
    assert len(told) == len(sources)
    assert status == int(any("error" in entry for entry in told))
    for entry in told:
        if "error" in entry:
            assert entry["error"].startswith(("Expected", "The ", "A "))
            with pytest.raises(BadImageError):
                read_volume(entry["image"])
        else:
            check_result(Path(entry["image"]), Path(entry["label_map"]))
