"""What happened in a campaign so far, in a database that server and trainer share."""

from hermes.campaign.campaign import Campaign
from hermes.campaign.holdout import HoldoutRule
from hermes.campaign.records import (
    FINAL,
    WHOLE_IMAGE,
    Annotated,
    Counts,
    Event,
    ImageRecord,
    LabelRecord,
    LeaseRecord,
    RunRecord,
    RunState,
    Score,
    VersionRecord,
    VersionState,
)

__all__ = [
    "FINAL",
    "WHOLE_IMAGE",
    "Annotated",
    "Campaign",
    "Counts",
    "Event",
    "HoldoutRule",
    "ImageRecord",
    "LabelRecord",
    "LeaseRecord",
    "RunRecord",
    "RunState",
    "Score",
    "VersionRecord",
    "VersionState",
]
