"""Labelling campaigns played with the true labels of a dataset: which strategy needs the fewest of them?

The same code as on a server does all that matters: the queue, the database, the rounds and the scores of the pool.
Only the annotator and HTTP are left out.
"""

from hermes.simulation.campaign import Player, Progress
from hermes.simulation.pictures import draw_curves
from hermes.simulation.plan import Plan, Split, split_cases
from hermes.simulation.playing import campaigns_to_play, simulate
from hermes.simulation.results import Area, Row, areas_of, read_rows, write_rows

__all__ = [
    "Area",
    "Plan",
    "Player",
    "Progress",
    "Row",
    "Split",
    "areas_of",
    "campaigns_to_play",
    "draw_curves",
    "read_rows",
    "simulate",
    "split_cases",
    "write_rows",
]
