"""``python -m hermes.docs``: write the generated parts of the documentation again."""

from __future__ import annotations

from pathlib import Path

from hermes.config import settings_markdown

SETTINGS_PAGE = Path(__file__).resolve().parents[2] / "apps" / "hermes" / "README.md"
_BEGIN, _END = "<!-- settings:", "<!-- end of settings -->"


def with_settings(page: str) -> str:
    """The page with the table of settings between its two marks as the code has it now."""
    head, _, rest = page.partition(_BEGIN)
    mark, _, old = rest.partition("\n")
    _, _, tail = old.partition(_END)
    return f"{head}{_BEGIN}{mark}\n{settings_markdown()}\n{_END}{tail}"


if __name__ == "__main__":
    SETTINGS_PAGE.write_text(with_settings(SETTINGS_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
