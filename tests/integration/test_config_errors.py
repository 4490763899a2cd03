"""A wrong config ends within 30 s with one clear message, the right exit code, and nothing written."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamer.errors import DependencyError
from streamer.testing import create_topic, produce, read_topic
from tests.integration.service import Made, photographs, streamer


def _changed(**sections: Any) -> Callable[[dict[str, Any], Path], None]:
    def change(settings: dict[str, Any], folder: Path) -> None:
        for name, value in sections.items():
            if isinstance(value, dict) and isinstance(settings.get(name), dict):
                settings[name] = {**settings[name], **value}
            else:
                settings[name] = value

    return change


def _unwritable(settings: dict[str, Any], folder: Path) -> None:
    (folder / "file").write_text("a file, not a folder")
    settings["output"] = {"path": str(folder / "file" / "out")}


CASES: dict[str, tuple[Callable[[dict[str, Any], Path], None], int, tuple[str, ...]]] = {
    "typo": (_changed(bacth={"size": 3}), 2, ("bacth", "did you mean 'batch'")),
    "typo in a section": (_changed(batch={"sise": 3}), 2, ("batch.sise", "did you mean 'size'")),
    "unknown head field": (
        _changed(
            filters=[{"field": "aestetic_score", "at_least": 1}], heads=[{"type": "aesthetic"}]
        ),
        2,
        ("aestetic_score", "aesthetic_score"),
    ),
    "unknown head type": (
        _changed(heads=[{"type": "aestetic"}]),
        2,
        ("heads.0.type", "did you mean 'aesthetic'"),
    ),
    "missing weights": (
        _changed(heads=[{"type": "linear", "name": "cat", "weights": "/nowhere/cat.pth"}]),
        2,
        ("/nowhere/cat.pth",),
    ),
    "missing plugin": (
        _changed(embedder={"type": "tests.plugins.nothing:Embedder"}),
        2,
        ("tests.plugins.nothing",),
    ),
    "plugin of another kind": (
        _changed(embedder={"type": "tests.plugins.thumbnail:Moody"}),
        2,
        ("ImageEmbedder",),
    ),
    "protocol property": (
        _changed(kafka={"client": {"enable.auto.commit": True}}),
        2,
        ("enable.auto.commit",),
    ),
    "unreachable broker": (
        _changed(kafka={"bootstrap_servers": "127.0.0.1:9", "give_up_after": "3s"}),
        75,
        ("127.0.0.1:9", "kafka.give_up_after"),
    ),
    "missing topic": (
        _changed(kafka={"topic": "no-such-topic"}),
        1,
        ("no-such-topic", "does not exist"),
    ),
    "missing GPU for the index": (
        _changed(dedup={"threshold": 0.9, "device": "cuda:63"}),
        2,
        ("dedup.device: cuda:63", "no such GPU"),
    ),
    "unwritable output": (_unwritable, 1, ("file/out",)),
}


@pytest.mark.parametrize("case", CASES)
def test_wrong_config_ends_at_once_with_one_message(
    case: str, kafka: str, topic_name: str, dataset_name: str, make_service: Made, tmp_path: Path
) -> None:
    change, code, words = CASES[case]
    create_topic(kafka, topic_name)
    service = make_service(dataset_name)
    change(service.settings, tmp_path)
    before = time.monotonic()
    replica = service.run("--until", "end", expect=code)
    assert time.monotonic() - before < 30
    message = replica.lines[-1]
    assert all(word in message for word in words), replica.log
    assert "Traceback" not in replica.log
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").rglob("*")), list(
        (tmp_path / "out").rglob("*")
    )
    for name in ("claims", "commits", "dead"):
        with pytest.raises(DependencyError):
            read_topic(kafka, f"{dataset_name}.{name}")


def test_config_file_that_is_not_there(tmp_path: Path) -> None:
    done = streamer("run", "-c", str(tmp_path / "none.yaml"), expect=2)
    assert "none.yaml" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"dedup": {"threshold": 0.9}}, "threshold"),
        ({"embedder": "other"}, "embedder"),
        ({"dedup": False}, "threshold"),
    ],
)
def test_dataset_with_another_threshold_or_model(
    change: dict[str, Any],
    word: str,
    kafka: str,
    topic_name: str,
    dataset_name: str,
    make_service: Made,
) -> None:
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, [(image, {}) for image in photographs(8, seed=3)])
    service = make_service(dataset_name)
    service.run("--until", "end")
    checked = json.loads(streamer("check", "--json", "-c", str(service.config())).stdout)["checks"][
        -1
    ]
    assert (
        checked["detail"] == f"{dataset_name} exists, with the same topic, embedder and threshold"
    )
    asked = json.loads(
        streamer(
            "check",
            "--json",
            "-c",
            str(service.config(dedup={"threshold": 0.9, "snapshots": "/proc/x"})),
            expect=None,
        ).stdout
    )
    wrong = [check for check in asked["checks"] if not check["ok"]]
    assert wrong[0]["check"] == "index", asked
    assert "/proc/x" in wrong[0]["detail"]
    before = sorted(str(path) for path in service.output.rglob("*"))
    entries = len(read_topic(kafka, f"{dataset_name}.claims"))
    if change.get("embedder") == "other":
        change = {"embedder": {"type": "tests.plugins.thumbnail:OtherEmbedder"}}
    replica = service.run("--until", "end", expect=2, **change)
    assert dataset_name in replica.lines[-1]
    assert word in replica.lines[-1]
    assert "replay" in replica.lines[-1]
    checked = json.loads(
        streamer("check", "--json", "-c", str(service.config(**change)), expect=2).stdout
    )["checks"][-1]
    assert (checked["check"], checked["ok"]) == ("dataset", False)
    assert word in checked["detail"]
    assert sorted(str(path) for path in service.output.rglob("*")) == before
    assert len(read_topic(kafka, f"{dataset_name}.claims")) == entries
