"""The example plugin, used as its docstring says: by the name in the config, from the folder it
lies in."""

from pathlib import Path

import pytest

from streamer.config import CustomRule
from streamer.errors import ConfigError
from streamer.judge.filters import Rules
from streamer.records import Facts, FailedRule

EXAMPLES = Path(__file__).parents[2] / "examples"
OPTED_OUT = FailedRule("opted_out", True)


def rules(path: Path) -> Rules:
    return Rules(
        [
            CustomRule(
                type="host_blocklist:HostBlocklist", name="opted_out", args={"path": str(path)}
            )
        ],
        ["jpg"],
    )


def test_hosts_and_what_is_below_them_are_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(EXAMPLES)
    (tmp_path / "hosts.txt").write_text(
        "# asked on 2025-01-01\nExample.com\nphotos.example.org  # only this one\n"
    )
    check = rules(tmp_path / "hosts.txt").header_rules.check
    assert check(Facts(format="jpg", url="https://img.EXAMPLE.com:8443/1.jpg")) == [OPTED_OUT]
    assert check(Facts(format="jpg", url="https://example.com/1.jpg")) == [OPTED_OUT]
    assert check(Facts(format="jpg", url="https://photos.example.org/1.jpg")) == [OPTED_OUT]
    assert check(Facts(format="jpg", url="https://www.example.org/1.jpg")) == []
    assert check(Facts(format="jpg", url="https://notexample.com/1.jpg")) == []
    assert check(Facts(format="jpg")) == [OPTED_OUT, FailedRule("opted_out:no_url", False)]
    assert check(Facts(format="jpg", url="https://[broken")) == [
        OPTED_OUT,
        FailedRule("opted_out:error_ValueError", False),
    ]


def test_a_missing_list_is_a_config_error(tmp_path, monkeypatch):
    monkeypatch.chdir(EXAMPLES)
    with pytest.raises(ConfigError, match=r"filters\.0.*hosts\.txt"):
        rules(tmp_path / "hosts.txt")


def test_it_is_short():
    assert len((EXAMPLES / "host_blocklist.py").read_text().splitlines()) <= 30
