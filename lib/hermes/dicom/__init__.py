"""Labels as DICOM objects: written as Segmentations, read from Segmentations and RT Structure Sets."""

from hermes.dicom.labels import DicomLabels, Mask, Refusal, Segment
from hermes.dicom.reading import age_key, read_segmentations
from hermes.dicom.seg_read import absent_names, creation_time, referenced_series
from hermes.dicom.seg_write import AlgorithmType, tracking_of, write_segmentation
from hermes.dicom.source import Reference, SourceSeries

__all__ = [
    "AlgorithmType",
    "DicomLabels",
    "Mask",
    "Reference",
    "Refusal",
    "Segment",
    "SourceSeries",
    "absent_names",
    "age_key",
    "creation_time",
    "read_segmentations",
    "referenced_series",
    "tracking_of",
    "write_segmentation",
]
