"""One training round of a campaign: from the labels in the database to a version that is published or refused."""

from hermes.rounds.ahead import Ahead
from hermes.rounds.cases import require_labels, require_new_structures
from hermes.rounds.options import KEEPS, MODES, RoundOptions
from hermes.rounds.preflight import Preflight, preflight_of
from hermes.rounds.process import end_with_parent
from hermes.rounds.recipe import choose_recipe
from hermes.rounds.report import RoundReport
from hermes.rounds.round import run_round

__all__ = [
    "KEEPS",
    "MODES",
    "Ahead",
    "Preflight",
    "RoundOptions",
    "RoundReport",
    "choose_recipe",
    "end_with_parent",
    "preflight_of",
    "require_labels",
    "require_new_structures",
    "run_round",
]
