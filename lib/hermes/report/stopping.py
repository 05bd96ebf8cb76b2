"""Whether a campaign may stop: the model agrees with its annotators, and training does not make it better.

Advice, not a decision: nothing stops by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from hermes.campaign.agreements import OfferedDice
from hermes.types import StructureName

PLATEAU_ROUNDS = 3
"""Rounds without a better mean on the hold-out that count as a plateau."""


@dataclass(frozen=True)
class Advice:
    """Whether to stop.

    Attributes:
        stop: whether every reason to go on is gone.
        reasons: what was found, in sentences.
        agreed: structure -> whether the last submissions agree with the offer; structures with too few are not in it.
        plateau: whether the hold-out does not get better; None: it cannot be told yet.
    """

    stop: bool
    reasons: tuple[str, ...]
    agreed: Mapping[StructureName, bool]
    plateau: bool | None


def advice(
    offered: Sequence[OfferedDice],
    holdout_means: Sequence[float],
    *,
    threshold: float,
    last: int,
    margin: float,
    quotas: Mapping[StructureName, tuple[int, int]],
    waiting: int,
) -> Advice:
    """What the figures of a campaign advise.

    Stop when nothing is left to label, or when all quotas are full, or when in every structure the model agreed with
    each of the last submissions and the hold-out (where there is one) does not get better.

    Args:
        offered: Dice between offers and submissions, in the order of submission.
        holdout_means: mean Dice on the hold-out after each round, in their order.
        threshold: Dice from which an offer counts as agreed with.
        last: how many last submissions of a structure have to agree, each of them.
        margin: by which the hold-out has to get better to count.
        quotas: structure -> (images in which it is drawn, images wanted).
        waiting: images that still wait for a label.
    """
    agreed, about_agreement = _agreement(offered, threshold, last)
    plateau, about_plateau = _plateau(holdout_means, margin)
    full = bool(quotas) and all(drawn >= wanted for drawn, wanted in quotas.values())
    reasons = [about_agreement, about_plateau]
    if quotas:
        listed = ", ".join(f"{name} {drawn} of {wanted}" for name, (drawn, wanted) in quotas.items())
        reasons.append(f"Quotas {'are all full' if full else 'are not full'}: {listed}.")
    if waiting == 0:
        reasons.append("No image waits for a label.")
    learned = bool(agreed) and all(agreed.values()) and plateau is not False
    enough = {one.structure for one in offered} <= agreed.keys()
    return Advice(waiting == 0 or full or (learned and enough), tuple(reasons), agreed, plateau)


def _agreement(
    offered: Sequence[OfferedDice], threshold: float, last: int
) -> tuple[dict[StructureName, bool], str]:
    by_structure: dict[StructureName, list[float]] = {}
    for one in offered:
        by_structure.setdefault(one.structure, []).append(one.dice)
    agreed = {
        name: min(values[-last:]) >= threshold
        for name, values in sorted(by_structure.items())
        if len(values) >= last
    }
    if not by_structure:
        return (
            agreed,
            "Nothing was offered by the model for a submitted image yet, so agreement is not known.",
        )
    if not agreed:
        most = max(len(values) for values in by_structure.values())
        return agreed, f"Agreement is looked at after {last} submissions of a structure; the most are {most}."
    below = [f"{name} ({fmean(by_structure[name][-last:]):.3f})" for name, good in agreed.items() if not good]
    few = len(by_structure) - len(agreed)
    rest = f" {few} more structures have fewer submissions." if few else ""
    if below:
        return agreed, (
            f"Of the last {last} submissions of {', '.join(below)} some were changed: Dice below {threshold:g} "
            f"(means in brackets).{rest}"
        )
    return agreed, f"The last {last} submissions of each of {', '.join(agreed)} agree with the offer.{rest}"


def _plateau(means: Sequence[float], margin: float) -> tuple[bool | None, str]:
    if len(means) <= PLATEAU_ROUNDS:
        return None, (
            f"The hold-out has measured {len(means)} rounds; a plateau shows after {PLATEAU_ROUNDS + 1} or more."
        )
    before, after = max(means[:-PLATEAU_ROUNDS]), max(means[-PLATEAU_ROUNDS:])
    if after <= before + margin:
        return True, (
            f"The last {PLATEAU_ROUNDS} rounds did not do better on the hold-out: {before:.4f}, then {after:.4f}."
        )
    return False, f"Rounds still do better on the hold-out: {before:.4f}, then {after:.4f}."
