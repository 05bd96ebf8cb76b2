"""Settings of a campaign: one table, read once, in which a misspelled key or a bad value is an error.

>>> from_conf({"labels_per_round": "3", "structures": "liver, left kidney"}).structures
('liver', 'left kidney')
"""

from __future__ import annotations

from hermes.config.parsing import Quota
from hermes.config.settings import Settings, campaign_directory, from_conf, settings_markdown
from hermes.config.table import SETTINGS, Setting

__all__ = [
    "SETTINGS",
    "Quota",
    "Setting",
    "Settings",
    "campaign_directory",
    "from_conf",
    "settings_markdown",
]
