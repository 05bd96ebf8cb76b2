"""What can be segmented, under which names, and in which row of the network's tables it stands."""

from hermes.labels.catalogue import (
    Code,
    Structure,
    catalogue,
    describe,
    describe_new,
    find_structure,
    group_names,
    structure,
)
from hermes.labels.published import CAMPAIGN_PROTOCOL, PublishedDataset, published_datasets
from hermes.labels.space import LabelSpace, Task, bind_structures, published_label_space

__all__ = [
    "CAMPAIGN_PROTOCOL",
    "Code",
    "LabelSpace",
    "PublishedDataset",
    "Structure",
    "Task",
    "bind_structures",
    "catalogue",
    "describe",
    "describe_new",
    "find_structure",
    "group_names",
    "published_datasets",
    "published_label_space",
    "structure",
]
