"""What leaves a process. Whatever records, file names, foreign datasets and configs hold: a line
stays one line, no text steers the terminal, and no secret is told. Real processes of every verb."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamer import cli, redact
from streamer.testing import create_topic, jpeg, produce, read_topic
from tests.integration.service import ROOT, SCRIPT, Made, Service, _environment

FORGED = "00:00:00 INFO    MainThread: ended well"
HOSTILE = f"\x1b]0;pwned\x07\x1b[31mred\x9b2J\u202egpj.evil\u2028\r\n{FORGED}"
TEXT_LOG = {"STREAMER_LOG": "text"}


def said(*args: str | bytes, expect: int, **environ: str) -> str:
    """Standard output and standard error of one finished command."""
    done = subprocess.run(
        [SCRIPT, *args], cwd=ROOT, capture_output=True, timeout=240, env=_environment(environ)
    )
    text = (done.stdout + b"\n" + done.stderr).decode()
    assert done.returncode == expect, text
    return text


@pytest.fixture
def said_here(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """`said`, in this process, which knows no secret yet: for what ends before anything starts."""

    def run(*args: str, expect: int) -> str:
        monkeypatch.setattr(redact, "_known", ())
        monkeypatch.setattr(sys, "argv", ["streamer", *args])
        with pytest.raises(SystemExit) as end:
            cli.main()
        text = "\n".join(capfd.readouterr())
        assert (end.value.code or 0) == expect, text
        return text

    return run


def require_clean(text: str) -> None:
    for line in text.split("\n"):
        assert line.isprintable(), f"not printable: {line!r}"
        assert not line.startswith(FORGED), f"forged: {line!r}"


def settle(service: Service, *, expect: int = 0, **changes: Any) -> str:
    path = str(service.config(**changes))
    return said("run", "-c", path, "--until", "end", expect=expect, **TEXT_LOG)


@pytest.fixture
def hostile(kafka: str, topic_name: str, dataset_name: str, make_service: Made, tmp_path: Path) -> Service:  # fmt: skip
    """A dataset of one record with a hostile caption, in a folder with a hostile name; a rule has
    one, too, and a filter quotes the caption in what it raises."""
    create_topic(kafka, topic_name)
    produce(
        kafka, topic_name,
        [(jpeg(1), {"text": HOSTILE, "id": HOSTILE, "url": HOSTILE, "meta-x": HOSTILE}),
         (b"", {"id": HOSTILE}),
         (json.dumps({"uri": f"file:///{HOSTILE}"}).encode(), {"content-type": "application/json"})],
    )  # fmt: skip
    return make_service(
        dataset_name,
        output={"path": str(tmp_path / HOSTILE)},
        filters=[
            {"type": "tests.plugins.talkative:Judge", "name": HOSTILE, "action": "flag"},
            {"field": "text", "name": f"{HOSTILE} too", "matches": "^$", "action": "flag"},
            {"field": "id", "in": [HOSTILE]},
        ],
        dead_letters={"max_ratio": 1},
    )


def test_no_verb_writes_what_steers_a_terminal(
    hostile: Service, kafka: str, topic_name: str, tmp_path: Path, said_here: Callable[..., str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / f"{HOSTILE}.jpg").write_bytes(jpeg(2))
    (photos / f"{HOSTILE}.json").write_text("{")
    (photos / f"link {HOSTILE}.jpg").symlink_to("/etc/hostname")
    (Path(os.fsdecode(bytes(photos) + b"/\xff\xfe\x1b.png"))).symlink_to("/etc/hostname")
    folder, path = str(hostile.output), str(hostile.config())
    scratch = (f"{tmp_path}/{HOSTILE}-file", f"{tmp_path}/{HOSTILE}-none")
    Path(scratch[0]).touch()
    sent = ("--topic", topic_name, "--bootstrap", kafka)
    works = [
        (0, ("run", "-c", path, "--until", "end")),
        (0, ("replay", "run", "-c", path, "--dataset", f"{hostile.dataset}-2")),
        (0, ("lag", "-c", path)),
        (0, ("seek", "-c", path, "--to", "count:0")),
        (0, ("check", "-c", path)),
        (1, ("produce", str(photos), *sent)),
        (0, ("index", "snapshot", "-c", path)),
        (0, ("index", "info", "-c", path, "--verify")),
        (0, ("index", "rebuild", "-c", path)),
        (0, ("dataset", "verify", folder)),
        (0, ("dataset", "stats", folder)),
    ]
    mistakes = [
        ("replay", "run", "-c", path, "--dataset", HOSTILE),
        ("lag", "-c", scratch[1]),
        ("check", "-c", path, "--set", f"output.formats=[{json.dumps(HOSTILE)}]"),
        ("check", "-c", path, "--set", f"{HOSTILE}=1"),
        ("check", "-c", path, "--set", f"kafka.client={{{json.dumps(HOSTILE)}: []}}"),
        ("check", "-c", path, "--set", f"heads=[{{type: {json.dumps(HOSTILE)}}}]"),
        ("produce", scratch[1], *sent),
        ("produce", str(photos), *sent, "--client", f"{HOSTILE}=1"),
        ("dataset", "stats", f"gs:/{HOSTILE}"),
        ("resume", "-c", path, "--set", f"output.path=gs:/{HOSTILE}"),
        ("leave", HOSTILE),
        ("broker", "--data", scratch[0]),
        ("demo", "--images", scratch[1], "--out", f"{tmp_path}/demo"),
        (HOSTILE,),
        ("dataset", "stats", "a", HOSTILE),
    ]
    commands = [*(command for _, command in works), *mistakes]
    assert {command[0] for command in commands} >= set(cli.VERBS)
    told = [said(*command, expect=code, **TEXT_LOG) for code, command in works]
    told += [said_here(*command, expect=2) for command in mistakes]
    printed = said_here("check", "-c", path, "--print", expect=0)
    for text in (*told, printed):
        require_clean(text)
    assert sum(r"\u001b" in text for text in told) >= 12, "the hostile text was to be seen, and was"
    assert yaml.safe_load(printed)["filters"][2]["in"] == [HOSTILE]


def test_a_foreign_folder_cannot_say_what_the_audit_says(hostile: Service) -> None:
    settle(hostile)
    manifest = next((hostile.output / "manifests").glob("*-00000001.json"))
    told = json.loads(manifest.read_text())
    forged = "x\nok: every record was decided once\x1b[2J\u202e[/bold]"
    told |= {"writer": forged, "previous_uuid": forged, "dataset": forged}
    told["files"] += [{"path": f"metadata/{forged}", "bytes": 1, "sha256": forged, "rows": 1}]
    manifest.write_text(json.dumps(told))
    (hostile.output / "manifests" / f"{forged.replace('/', '')}.json").write_text("[")
    (hostile.output / "shards" / f"{forged.replace('/', '')}.tar").write_bytes(b"")
    for verb in ("verify", "stats"):
        text = said("dataset", verb, str(hostile.output), expect=1, **TEXT_LOG)
        require_clean(text)
        assert not [line for line in text.split("\n") if line.startswith("ok: ")]


SECRETS = {
    "token": "tok-SECRET-1",
    "password": "pw-SECRET-2",
    "url": "url-SECRET-3",
    "sasl": "sasl-SECRET/4'\"\\",
    "embedder": "emb-SECRET-5",
    "filter": "filter-SECRET-6",
    "aws": "aws-SECRET-7",
    "signed": "signed-SECRET-8",
}


def with_secrets(**changes: str) -> dict[str, Any]:
    of = SECRETS | changes
    return {
        "embedder": {"type": "tests.plugins.talkative:Embedder", "args": {"api_token": of["embedder"]}},
        "heads": [
            {
                "type": "tests.plugins.talkative:Brightness", "name": "bright",
                "args": {"api_token": of["token"], "weights": f"https://user:{of['url']}@host/x?X-Amz-Signature={of['signed']}"},
            }
        ],
        "filters": [
            {"type": "tests.plugins.talkative:Judge", "name": "judged", "action": "flag", "args": {"password": of["filter"]}}
        ],
        "dead_letters": {"max_ratio": 1},
    }  # fmt: skip


def require_secret(where: str, data: bytes) -> None:
    assert b"SECRET" not in data, f"{where}: {data[max(0, data.find(b'SECRET') - 200) :][:400]!r}"


def test_no_secret_leaves_the_process(
    kafka: str,
    topic_name: str,
    dataset_name: str,
    make_service: Made,
    said_here: Callable[..., str],
) -> None:
    """Neither with what a start or a verb says, nor with the dataset, its logs and its dead
    letters. That one changed can be seen."""
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, [(jpeg(1), {"text": "a"}), (jpeg(2, size=(300, 50)), {})])
    service = make_service(dataset_name, **with_secrets())
    service.settings["kafka"]["client"]["sasl.password"] = SECRETS["sasl"]
    environ = {"AWS_SECRET_ACCESS_KEY": SECRETS["aws"]}
    path = str(service.config())
    texts = {
        f"run {form}": said("run", "-c", path, "--until", "end", expect=0, STREAMER_LOG=form, **environ)
        for form in ("text", "json")
    }  # fmt: skip
    assert "*** cannot judge a" in texts["run text"]
    for arguments in (
        ("check",),
        ("check", "--json"),
        ("check", "--print"),
        ("lag",),
        ("index", "info"),
    ):
        texts[" ".join(arguments)] = said(*arguments, "-c", path, expect=0, **environ)  # fmt: skip
    for place in (
        f"gs:/user:{SECRETS['url']}@bucket/x",
        f"nothing://user:{SECRETS['url']}@bucket/x",
        f"nothing://{SECRETS['url']}@bucket/x?sig={SECRETS['signed']}",
        f"s3://AKIA:{SECRETS['aws']}/x@bucket/x?unknown=1",
        f"s3://AKIA:{SECRETS['aws']}@bucket/x?secret_key={SECRETS['aws']}",
    ):
        texts[place] = said_here("dataset", "stats", place, expect=2)
        texts[f"check {place}"] = said_here("check", "-c", path, "--set", f"output.path={place}", expect=2)  # fmt: skip
        texts[f"--print {place}"] = said_here(
            "check", "-c", path, "--print", "--set", f"output.path={place}", expect=0
        )
    for mistake in (
        f"embedder.args={SECRETS['embedder']}",
        f"heads.0.args.api_token=[{SECRETS['token']}",
        f"heads.0.nmae={{api_token: {SECRETS['token']}}}",
        f"kafka.client={{sasl.password: [{SECRETS['password']}]}}",
        f"embedder={{type: timm, model: 1, checkpoint: 'https://u:{SECRETS['url']}@h/x'}}",
    ):
        texts[mistake] = said_here("run", "-c", path, "--set", mistake, expect=2)
    weights = f"embedder={{type: timm, model: x, checkpoint: 'https://u:{SECRETS['url']}@h/x'}}"
    texts[weights] = said("run", "-c", path, "--set", weights, expect=2)
    texts["produce"] = said_here(
        "produce", str(ROOT / "nowhere"), "--topic", topic_name, "--bootstrap", kafka,
        "--client", f"sasl.password={SECRETS['sasl']}", "--client", f"x{SECRETS['sasl']}=1", expect=2,
    )  # fmt: skip
    for name, text in texts.items():
        require_secret(name, text.encode())
    for file in (f for f in service.output.rglob("*") if f.is_file()):
        require_secret(str(file), file.read_bytes())
    [dead] = read_topic(kafka, f"{dataset_name}.dead")
    assert ("streamer-detail", b"ValueError: *** does not open this") in dead.headers
    for topic in ("claims", "commits", "dead"):
        for stored in read_topic(kafka, f"{dataset_name}.{topic}"):
            require_secret(topic, repr(stored).encode())

    produce(kafka, topic_name, [(jpeg(3), {})])
    settle(service, **with_secrets(token="tok-SECRET-9"))
    first, *_, last = pipelines(service)
    assert first["heads"][0]["args"] != last["heads"][0]["args"]
    assert first["config"] != last["config"]


def pipelines(service: Service) -> list[dict[str, Any]]:
    manifests = sorted((service.output / "manifests").glob("*.json"))
    return [json.loads(path.read_text())["pipeline"] for path in manifests]
