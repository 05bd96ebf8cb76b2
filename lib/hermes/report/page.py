"""The report as one HTML file that needs nothing else: styles and pictures are in it, scripts are not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from html import escape

from hermes.report import pictures
from hermes.report.summary import Summary

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } th, td { padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top; }
th { border-bottom: 1px solid #9aa7b4; font-weight: 600; } td.number { text-align: right; }
.advice { border-left: 4px solid #b3541e; padding: .2rem 1rem; background: #fbf4ee; }
.advice.stop { border-color: #2b7a4b; background: #eef7f1; }
.none { color: #66727e; } svg { max-width: 100%; height: auto; }
"""
MOST_SKIPS = 200
"""Skips in the table; the newest are kept."""


def html_report(summary: Summary) -> str:
    """The page; every text that somebody could have chosen is escaped."""
    counts = summary.counts
    facts = [
        ("images", counts.images),
        ("of them held out", summary.holdout_images),
        ("labelled", counts.labelled),
        ("waiting for a label", summary.waiting),
        ("not readable", counts.quarantined),
        ("label versions", counts.label_versions),
        ("new since the last training", counts.new_labels),
        ("trainings done, failed", f"{counts.runs_done}, {counts.runs_failed}"),
        ("answering version", summary.serving),
    ]
    parts = [
        _advice(summary),
        _table(("", ""), facts),
        _section("Hold-out", pictures.holdout_curve(summary.versions), _versions(summary)),
        _section("Structures", pictures.coverage(summary.coverage), _coverage(summary)),
        _section("Annotators", pictures.labels_over_time(summary.labels_at), _annotators(summary)),
        _section("Offered against submitted", pictures.offered(summary.offered_per_label), _offered(summary)),
        _section("Agreement between annotators", "", _pairs(summary)),
        _section("Reviews", "", _table(("state", "labels"), list(summary.reviews.items()))),
        _section("Unusual predicted volumes", "", _unusual(summary)),
        _section("Skipped", "", _skips(summary)),
    ]
    made = _time(summary.made_at)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Campaign report</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>Campaign report</h1><p>{made}</p>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _advice(summary: Summary) -> str:
    said = summary.advice
    head = "The campaign may stop." if said.stop else "Go on labelling."
    items = "".join(f"<li>{escape(reason)}</li>" for reason in said.reasons)
    kind = "advice stop" if said.stop else "advice"
    return f'<div class="{kind}"><p><b>{head}</b></p><ul>{items}</ul></div>'


def _versions(summary: Summary) -> str:
    rows = [
        (v.name, v.state, _time(v.created_at), v.cases, v.mean_before, v.mean, v.gate, v.reason)
        for v in summary.versions
    ]
    head = ("version", "state", "made", "cases", "Dice before", "Dice after", "gate", "reason")
    return _table(head, rows, nothing="No version has been trained yet.")


def _coverage(summary: Summary) -> str:
    rows = [(c.structure, c.drawn, c.absent, c.quota) for c in summary.coverage]
    return _table(("structure", "drawn in", "absent in", "quota"), rows)


def _annotators(summary: Summary) -> str:
    rows = [
        (
            a.name,
            a.labels,
            a.images,
            a.skips,
            a.approved,
            a.rejected,
            _minutes(a.median_s),
            _minutes(a.total_s),
        )
        for a in summary.annotators
    ]
    head = (
        "annotator",
        "labels",
        "images",
        "skips",
        "approved",
        "rejected",
        "minutes per label",
        "minutes in all",
    )
    return _table(head, rows, nothing="Nobody has submitted a label yet.")


def _offered(summary: Summary) -> str:
    rows = [(o.structure, o.submissions, o.mean, o.mean_of_last) for o in summary.offered]
    head = ("structure", "submissions", "mean Dice", "mean of the last")
    return _table(head, rows, nothing="No submission could be compared with what the model offered.")


def _pairs(summary: Summary) -> str:
    rows = [
        (p.first, p.second, p.structure, p.images, p.dice, p.mean_distance_mm, p.hausdorff95_mm)
        for p in summary.pairs
    ]
    head = (
        "annotator",
        "and",
        "structure",
        "images",
        "Dice",
        "surface distance, mm",
        "95 % Hausdorff, mm",
    )
    return _table(head, rows, nothing="No image was labelled by two annotators.")


def _unusual(summary: Summary) -> str:
    rows = [(u.image_id, u.structure, u.volume_ml, u.usual_ml, u.deviation) for u in summary.unusual]
    head = ("image", "structure", "predicted, mL", "usual, mL", "robust deviations")
    return _table(head, rows, nothing="No waiting image stands out, or too few were looked at.")


def _skips(summary: Summary) -> str:
    rows = [(s.image_id, s.annotator, _time(s.at), s.reason) for s in reversed(summary.skips[-MOST_SKIPS:])]
    return _table(("image", "annotator", "when", "reason"), rows, nothing="Nothing was skipped.")


def _section(title: str, picture: str, table: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{picture}\n{table}"


def _table(head: Sequence[str], rows: Sequence[Iterable[object]], nothing: str = "Nothing yet.") -> str:
    if not rows:
        return f'<p class="none">{escape(nothing)}</p>'
    titles = "".join(f"<th>{escape(title)}</th>" for title in head) if any(head) else ""
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
    return f"<table><tr>{titles}</tr>{body}</table>"


def _cell(value: object) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, float):
        return f'<td class="number">{value:.3f}</td>'
    if isinstance(value, int):
        return f'<td class="number">{value:,}</td>'
    return f"<td>{escape(str(value))}</td>"


def _minutes(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / 60


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
