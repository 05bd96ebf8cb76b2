"""The infer tasks of a campaign on a published label space: groups, names, and one network for all."""

import gc

import nibabel
import numpy as np
import pytest
import torch
from fastapi import HTTPException

from hermes.adapters.infer import members, offered_groups, run_infer
from hermes.checkpoint import Manifest, save_checkpoint
from hermes.errors import BadRequestError, NotFoundError
from hermes.labels.space import published_label_space
from hermes.model import NetworkConfig, UniversalNetwork, build_network
from hermes.records import LabelMap
from hermes.transforms.preparation import PreparationSpec
from hermes.transforms.reading import read_label_map
from hermes.transforms.writing import write_label_map
from hermes.types import Modality

torch.set_num_threads(1)
# MONAI Label's login imports a module that is gone in Python 3.13, which is not supported.
pytestmark = pytest.mark.filterwarnings("ignore:'crypt' is deprecated:DeprecationWarning")
SPACE = published_label_space()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    net = build_network(NetworkConfig("hermes-c", 4, tasks=72))
    directory = tmp_path_factory.mktemp("model") / "tiny"
    save_checkpoint(
        directory,
        net,
        Manifest(net.config, SPACE, PreparationSpec(spacing_mm=9.0), (32, 32, 32), version="tiny"),
    )
    return directory


@pytest.fixture
def campaign(model, tmp_path):
    """A campaign on one CT: ``campaign(structures=...)`` gives (parts, path of the CT)."""

    from hermes.adapters.build import build  # warns, see above

    def start(**conf):
        studies = tmp_path / "studies"
        studies.mkdir(exist_ok=True)
        values = np.random.default_rng(0).normal(0, 200, (18, 20, 16)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(values, np.diag([8.0, 8, 9, 1])), studies / "case.nii.gz")
        conf = {"model": str(model), "device": "cpu", **conf}
        return build(str(tmp_path), str(studies), conf), studies / "case.nii.gz"

    return start


def networks_in_memory() -> int:
    gc.collect()
    return sum(type(thing) is UniversalNetwork for thing in gc.get_objects())


def run(task, path, **params):
    file, answer = task({"image": str(path), **params})
    return read_label_map(file), answer


def test_a_published_model_gets_a_task_per_body_region(campaign):
    parts, _ = campaign()
    tasks = parts.infers()
    assert next(iter(tasks)) == "hermes"
    assert set(tasks) == {"hermes", "hermes-abdomen", "hermes-thorax", "hermes-head-and-neck", "hermes-heart",
                          "hermes-brain", "hermes-tumours", "hermes-pet"}  # fmt: skip
    everything = tasks["hermes"].info()["labels"]
    assert list(everything) == list(SPACE.structures())
    assert list(everything.values()) == list(range(1, 53))
    abdomen = tasks["hermes-abdomen"].info()["labels"]
    assert {"liver", "spleen"} <= set(abdomen) < set(everything)
    assert all(everything[name] == value for name, value in abdomen.items())


def test_groups_need_two_structures_and_fewer_than_all():
    assert offered_groups(["liver", "spleen"]) == []
    assert offered_groups(["liver", "left lung"]) == []
    assert offered_groups(["liver", "spleen", "grey matter"]) == ["abdomen"]
    assert offered_groups(["liver@campaign", "Spleen", "widget"]) == ["abdomen"]


def test_all_tasks_share_one_network(campaign):
    before = networks_in_memory()
    parts, path = campaign()
    tasks = parts.infers()
    assert len(tasks) > 5
    for task in tasks.values():
        _, answer = run(task, path)
        assert answer["model_version"] == "tiny"
    assert networks_in_memory() == before + 1


def test_a_group_answers_its_structures_in_the_campaigns_values(campaign):
    parts, path = campaign()
    tasks = parts.infers()
    label_map, answer = run(tasks["hermes-thorax"], path)
    offered = tasks["hermes-thorax"].info()["labels"]
    assert set(answer["structures"]) | set(answer["not_taught_in_modality"]) == set(offered)
    assert answer["label_names"].items() <= offered.items()
    assert set(np.unique(label_map.array)) <= {0, *answer["label_names"].values()}
    assert label_map.array.shape == (16, 20, 18)


def test_structures_of_other_modalities_are_left_out_unless_asked_for(campaign):
    parts, path = campaign()
    task = parts.infers()["hermes"]
    _, answer = run(task, path)
    assert (answer["modality"], answer["modality_source"]) == ("CT", "intensity")
    assert {"grey matter", "white matter"} <= set(answer["not_taught_in_modality"])
    assert len(answer["structures"]) == 45
    _, answer = run(task, path, modality="T1")
    assert "grey matter" in answer["structures"]
    assert "left lung" in answer["not_taught_in_modality"]
    _, answer = run(task, path, structures=["grey matter"])
    assert list(answer["structures"]) == ["grey matter"]
    parts, path = campaign(structures="liver,grey matter")
    _, answer = run(parts.infers()["hermes"], path)
    assert list(answer["structures"]) == ["liver", "grey matter"]


@pytest.mark.parametrize("structures", ["", "liver,spleen,left kidney"])
def test_the_modality_of_the_image_says_whose_liver_it_is(campaign, structures):
    parts, path = campaign(structures=structures)
    task = parts.infers()["hermes"]
    bound = SPACE.resolve("liver").key

    def task_of(structure="liver", **params):
        return run(task, path, **params)[1]["structures"][structure]["task"]

    assert (bound, task_of()) == (bound, SPACE.resolve("liver", Modality.CT).key)
    for modality in (Modality.T1, Modality.T2):
        assert SPACE.resolve("liver", modality).key == "liver@CHAOS"
        assert task_of(modality=modality.value) == "liver@CHAOS"
        assert task_of("spleen", structures=["spleen"], modality=modality.value) == "spleen@CHAOS"
    assert task_of(modality="T1", structures=["liver"]) == "liver@CHAOS"
    assert task_of(modality="T1", structures=[bound]) == bound  # what was asked for by its name
    assert task_of(modality="PET", structures=["liver"]) == bound  # nobody draws it there


def test_a_label_teaches_the_task_that_draws_its_image(campaign):
    workspace = campaign(modality="auto")[0].workspace
    bindings = workspace.bindings()
    t1, ct = bindings.rows_in(Modality.T1), bindings.rows_in(Modality.CT)
    assert SPACE.tasks[t1["liver"]].key == "liver@CHAOS"
    assert ct == bindings.rows_in(None) == bindings.rows
    assert {t1["liver"], ct["liver"]} <= bindings.all_rows().keys()
    assert bindings.all_rows()[t1["liver"]] == bindings.all_rows()[ct["liver"]] == "liver"
    named = campaign(structures="liver@AMOS,left kidney")[0].workspace.bindings()
    assert SPACE.tasks[named.rows_in(Modality.T1)["liver@AMOS"]].key == "liver@AMOS"
    assert SPACE.tasks[named.rows_in(Modality.T1)["left kidney"]].key == "left kidney@CHAOS"


def test_names_of_a_request(campaign):
    parts, path = campaign()
    task = parts.infers()["hermes"]
    _, answer = run(task, path, structures=["LIVER", "pancreas@BTCV"])
    assert {n: r["task"] for n, r in answer["structures"].items()} == {
        "liver": SPACE.resolve("liver").key, "pancreas": "pancreas@BCV",
    }  # fmt: skip
    _, answer = run(task, path, structures=["brain"], modality="T1")
    assert set(answer["structures"]) == {"grey matter", "white matter", "cerebrospinal fluid"}
    _, answer = run(task, path, structures=["Neuro", "lung, left"])
    assert set(answer["structures"]) == {"left lung"}
    assert len(answer["not_taught_in_modality"]) == 3
    _, answer = run(task, path, structures="heart")
    assert list(answer["structures"]) == ["heart"]
    _, answer = run(task, path, structures=["group:heart"], modality="cine")
    assert set(answer["structures"]) == set(members(SPACE.structures(), "heart"))
    _, answer = run(task, path, structures=["all", "lesion"])
    assert len(answer["structures"]) == 45 + 1


@pytest.mark.parametrize(
    ("structures", "status", "said"),
    [
        (["liver@BCV", "liver@LiTS"], 400, "one protocol"),
        (["liver@Nowhere"], 400, "Nowhere"),
        (["livr"], 400, "liver"),
        (["group:limbs"], 400, "head and neck"),
        (["liver@"], 400, "structure@protocol"),
    ],
)
def test_wrong_names_are_refused(campaign, structures, status, said):
    parts, path = campaign()
    with pytest.raises(HTTPException, match=said) as raised:
        run(parts.infers()["hermes"], path, structures=structures)
    assert raised.value.status_code == status


def test_a_group_without_structures_of_the_campaign_is_refused(campaign):
    parts, path = campaign(structures="liver,spleen")
    with pytest.raises(HTTPException, match="brain"):
        run(parts.infers()["hermes"], path, structures=["brain"])


def test_near_a_label_only_the_box_around_it_is_segmented(campaign, tmp_path):
    parts, path = campaign(structures="liver,spleen", window_overlap="0")
    store, task = parts.datastore(str(path.parent)), parts.infers()["hermes"]

    def ask(**params):
        return run_infer(task, {"image": "case", **params}, store, None)

    with pytest.raises(NotFoundError, match="to have a label"):
        ask(near=["liver"])
    drawn = np.zeros((16, 20, 18), np.uint8)
    drawn[2:4, 3:5, 4:6] = 7
    file = write_label_map(LabelMap(drawn, store.image("case").grid, {}), tmp_path / "drawn.nii.gz")
    store.save_label("case", str(file), "final", {"label_info": [{"name": "liver", "idx": 7}]})

    answer = ask(near="liver", margin_mm=10)
    outside = np.ones(drawn.shape, bool)
    outside[0:7, 0:9, 0:10] = False  # the box, 10 mm and the voxels of the model at its rim
    found = read_label_map(answer["file"]).array
    assert found.any()
    assert not found[outside].any()
    assert read_label_map(ask()["file"]).array[outside].any()
    assert ask(near=["all"], margin_mm=10)["params"]["structures"] == answer["params"]["structures"]

    wrong = (
        {"near": ["spleen"]},
        {"near": 3},
        {"near": "all", "margin_mm": -1},
        {"near": "all", "margin_mm": "x"},
    )
    for params in wrong:
        with pytest.raises(BadRequestError):
            ask(**params)
