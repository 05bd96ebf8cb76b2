"""What the documentation says is what is there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hermes.config import SETTINGS, from_conf
from hermes.docs import SETTINGS_PAGE, with_settings
from hermes.serve import parse_conf

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("apps/*/*.md"), *ROOT.glob("sample-data/*.md")]
)
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_settings_table_is_generated() -> None:
    page = SETTINGS_PAGE.read_text(encoding="utf-8")
    assert page == with_settings(page)
    for setting in SETTINGS:
        assert f"| `{setting.name}` |" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_two_commands_come_first() -> None:
    first_block = README.split("```")[1]
    assert [line.split()[:2] for line in first_block.strip().splitlines()] == [
        ["make", "serve"],
        ["make", "test"],
    ]


@pytest.mark.parametrize("command", sorted(set(re.findall(r"^make [a-z]+.*$", README, re.MULTILINE))))
def test_commands_of_the_readme_exist(command: str) -> None:
    make = shutil.which("make")
    assert make, "make is needed to run this project"
    words = command.split("#")[0].strip()
    arguments = re.findall(r'\w+="[^"]*"|\S+', words.removeprefix("make "))
    cleaned = [argument.replace('"', "") for argument in arguments]
    ran = subprocess.run([make, "-n", *cleaned], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("conf", sorted(set(re.findall(r'CONF="([^"]+)"', README))))
def test_settings_in_examples_are_settings(conf: str) -> None:
    if conf != "key=value key=value":
        from_conf(parse_conf(conf))


def test_ci_calls_the_readmes_test_command() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_starter_says_what_it_is() -> None:
    manifest = json.loads(
        (ROOT / "apps" / "hermes" / "starter" / "manifest.json").read_text(encoding="utf-8")
    )
    assert "phantoms" in manifest["note"]
    size = sum(p.stat().st_size for p in (ROOT / "apps" / "hermes" / "starter").iterdir())
    assert size <= 12 * 2**20
