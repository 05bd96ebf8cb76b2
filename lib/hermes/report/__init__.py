"""How a campaign stands: counts, agreement, advice to stop, and a page with pictures."""

from hermes.report.page import html_report
from hermes.report.summary import Summary, summarise

__all__ = ["Summary", "html_report", "summarise"]
