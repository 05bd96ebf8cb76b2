from __future__ import annotations

import socket
from pathlib import Path

import pytest

from hermes.config import from_conf
from hermes.errors import BadRequestError, HermesError
from hermes.serve import (
    check_port,
    check_studies,
    main,
    parse_conf,
    sample_campaign,
    server_arguments,
    with_hosts,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("a=1", {"a": "1"}),
        (
            "quotas=liver=50,left kidney=40,right kidney=3 seed=2",
            {"quotas": "liver=50,left kidney=40,right kidney=3", "seed": "2"},
        ),
        (
            "structures=liver,left kidney labels_per_round=5",
            {"structures": "liver,left kidney", "labels_per_round": "5"},
        ),
        ("  model=/x/my models   seed=3 ", {"model": "/x/my models", "seed": "3"}),
        ("structures= seed=1", {"structures": "", "seed": "1"}),
    ],
)
def test_conf(text: str, expected: dict[str, str]) -> None:
    assert parse_conf(text) == expected


@pytest.mark.parametrize("text", ["liver", "=3", "seed=1 seed=2"])
def test_malformed_conf(text: str) -> None:
    with pytest.raises(BadRequestError, match="Expected"):
        parse_conf(text)


def test_arguments_of_the_server() -> None:
    given = server_arguments("/data", "127.0.0.1", 8000, {"structures": "liver,left kidney"})
    assert given[-3:] == ["--conf", "structures", "liver,left kidney"]
    assert given[given.index("--uvicorn_app") + 1] == "hermes.adapters.server:app"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.5", "::1", "localhost"])
def test_a_server_of_this_machine_only_goes_by_its_own_name(host: str) -> None:
    assert with_hosts({"seed": "1"}, host) == {"seed": "1", "allowed_hosts": host}
    from_conf(with_hosts({}, host))
    assert with_hosts({"allowed_hosts": "*"}, host) == {"allowed_hosts": "*"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "server.hospital.org"])
def test_a_server_of_a_network_may_have_any_name(host: str) -> None:
    assert with_hosts({"seed": "1"}, host) == {"seed": "1"}


def test_folder_without_images_is_served_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_studies(tmp_path)
    assert "no image" in capsys.readouterr().err
    (tmp_path / "a.nii.gz").write_bytes(b"x")
    check_studies(tmp_path)
    assert capsys.readouterr().err == ""


def test_sample_campaign_is_copied_once(tmp_path: Path) -> None:
    copy = sample_campaign(tmp_path / "sample")
    images = sorted(p.name for p in copy.iterdir())
    assert len(images) == 24
    (copy / "note").write_text("mine")
    assert sample_campaign(copy) == copy
    assert (copy / "note").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["sample"]


def test_port_in_use() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(HermesError, match="PORT="):
            check_port("127.0.0.1", other.getsockname()[1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--conf", "labels_pr_round=3"], "labels_per_round"),
        (["--studies", "/no/such/folder", "--port", "0"], "STUDIES"),
    ],
)
def test_wrong_arguments_end_with_a_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err
