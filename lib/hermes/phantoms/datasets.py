"""The phantom datasets: who draws what, and how.

Two datasets may draw the same organ differently on purpose: a model must tell the protocols apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from hermes.errors import NotFoundError
from hermes.types import Modality, StructureName


@dataclass(frozen=True)
class Drawing:
    """How one structure is drawn.

    Attributes:
        structure: its name in the label space.
        regions: regions of the anatomy that belong to it.
        margin_voxels: how far beyond the edge the reader draws, in voxels.
    """

    structure: StructureName
    regions: tuple[str, ...]
    margin_voxels: int = 0


@dataclass(frozen=True)
class PhantomDataset:
    """One dataset with its drawing protocol.

    Attributes:
        name: name of the dataset and of the protocol.
        modalities: a case has one of these.
        drawings: one per structure; a later one wins where two overlap.
        body: which anatomy is rendered (``abdomen``, ``thorax``, ``trunk``, ``head``, ``heart``).
        protocol: one sentence for people.
        demonstration: the structures of the demonstration campaign (a subset; empty means all).
    """

    name: str
    modalities: tuple[Modality, ...]
    drawings: tuple[Drawing, ...]
    body: str
    protocol: str
    demonstration: tuple[StructureName, ...] = ()

    @property
    def structures(self) -> tuple[StructureName, ...]:
        """Names of what is drawn; the label value of each is its place counted from 1."""
        return tuple(d.structure for d in self.drawings)


def _plain(*structures: str) -> tuple[Drawing, ...]:
    return tuple(Drawing(s, (s,)) for s in structures)


_WHOLE_LIVER = ("liver", "liver vessels", "liver tumour")
_KIDNEY_SIDES = ("left kidney", "right kidney")

_DATASETS = (
    PhantomDataset(
        "PhantomAbdomenCT",
        (Modality.CT,),
        (
            Drawing("liver", _WHOLE_LIVER),
            *_plain("spleen"),
            *(Drawing(k, (k, f"{k} sinus", f"{k} tumour")) for k in _KIDNEY_SIDES),
            *_plain("stomach", "gallbladder", "pancreas", "aorta", "inferior vena cava"),
        ),
        "abdomen",
        "Whole organs: the liver with its vessels and lesions, the kidneys with sinus and lesions.",
        ("liver", "spleen", "left kidney", "right kidney", "stomach"),
    ),
    PhantomDataset(
        "PhantomLiverCT",
        (Modality.CT,),
        (Drawing("liver", ("liver",), margin_voxels=1), Drawing("liver tumour", ("liver tumour",))),
        "abdomen",
        "Liver drawn generously, one voxel beyond its edge; lesions are a structure of their own.",
    ),
    PhantomDataset(
        "PhantomKidneyCT",
        (Modality.CT,),
        (
            Drawing("kidney", _KIDNEY_SIDES),
            Drawing("kidney tumour", tuple(f"{k} tumour" for k in _KIDNEY_SIDES)),
        ),
        "abdomen",
        "Both kidneys as one structure, parenchyma only (without sinus); tumours apart.",
    ),
    PhantomDataset(
        "PhantomAbdomenMR",
        (Modality.T1, Modality.T2),
        (
            Drawing("liver", ("liver", "liver tumour")),
            *(Drawing(k, (k, f"{k} tumour")) for k in ("right kidney", "left kidney")),
            *_plain("spleen"),
        ),
        "abdomen",
        "Liver without its large vessels, kidneys without the sinus.",
    ),
    PhantomDataset(
        "PhantomThoraxCT",
        (Modality.CT,),
        (*_plain("left lung", "right lung", "heart", "esophagus", "trachea", "spinal cord", "aorta"),),
        "thorax",
        "Organs at risk: lungs with their vessels, the whole heart, the inside of the trachea.",
    ),
    PhantomDataset(
        "PhantomBrainT1",
        (Modality.T1,),
        _plain("grey matter", "white matter", "cerebrospinal fluid"),
        "head",
        "Tissue classes of the brain; cerebrospinal fluid in ventricles and sulci.",
    ),
    PhantomDataset(
        "PhantomCineMR",
        (Modality.CINE,),
        _plain("left ventricle", "myocardium", "right ventricle"),
        "heart",
        "Papillary muscles belong to the cavity of the left ventricle; the right ventricle is its cavity.",
    ),
    PhantomDataset(
        "PhantomPET",
        (Modality.PET,),
        _plain("lesion"),
        "trunk",
        "Lesions with uptake; heart, kidneys, bladder and bowel take up the tracer too and are not drawn.",
    ),
)


def datasets() -> tuple[PhantomDataset, ...]:
    """All phantom datasets; the order never changes, new ones are appended."""
    return _DATASETS


def dataset(name: str) -> PhantomDataset:
    """The dataset called ``name``.

    Raises:
        NotFoundError: there is none.
    """
    for candidate in _DATASETS:
        if candidate.name == name:
            return candidate
    known = [d.name for d in _DATASETS]
    msg = f"Expected a phantom dataset out of {known}, got {name!r}. Use one of these names."
    raise NotFoundError(msg)
