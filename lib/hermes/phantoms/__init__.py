"""Digital phantoms: seeded bodies that look like scans, with exact truth.

>>> from hermes.phantoms import make_case
>>> case = make_case("PhantomCineMR", 3)
>>> sorted(case.names.values())
['left ventricle', 'myocardium', 'right ventricle']
"""

from hermes.phantoms.cases import PhantomCase, make_case
from hermes.phantoms.datasets import PhantomDataset, dataset, datasets
from hermes.phantoms.dicom import write_dicom_series
from hermes.phantoms.nifti import write_cine, write_image, write_labels, write_nifti
from hermes.phantoms.series import make_series

__all__ = [
    "PhantomCase",
    "PhantomDataset",
    "dataset",
    "datasets",
    "make_case",
    "make_series",
    "write_cine",
    "write_dicom_series",
    "write_image",
    "write_labels",
    "write_nifti",
]
