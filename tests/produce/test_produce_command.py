"""``streamer produce`` and ``streamer broker`` on real Kafka, as a person uses them."""

from __future__ import annotations

import csv
import hashlib
import json
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from streamer.commands.produce import command
from streamer.errors import ConfigError, DependencyError, TemporaryError
from streamer.kafka.admin import Admin
from streamer.testing import Broker, create_topic, free_port, jpeg, produce, read_topic


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path):
    for i in range(40):
        (tmp_path / f"p{i:02d}.jpg").write_bytes(jpeg(i))
        (tmp_path / f"p{i:02d}.txt").write_text(f"photo {i}")
    return tmp_path


def test_a_folder_arrives_whole(kafka, topic_name, folder):
    code, out, err = run(
        folder,
        "--topic",
        topic_name,
        "--bootstrap",
        kafka,
        "--create-topic",
        "--partitions",
        3,
        "--key",
        "id",
    )
    assert code == 0
    assert out.startswith("sent 40 records, 40 with a caption, 0 with metadata (")
    assert err == ""
    stored = read_topic(kafka, topic_name)
    assert {s.partition for s in stored} == {0, 1, 2}
    assert {dict(s.headers)["id"].decode(): s.value for s in stored} == {
        f"p{i:02d}.jpg": jpeg(i) for i in range(40)
    }
    assert all(s.key == dict(s.headers)["id"] for s in stored)
    assert {dict(s.headers)["text"] for s in stored} == {f"photo {i}".encode() for i in range(40)}


def test_what_is_too_big_or_unreadable_is_listed_and_the_rest_arrives(kafka, topic_name, folder):
    create_topic(kafka, topic_name, max_message_bytes=20_000)
    (folder / "a-big.jpg").write_bytes(b"x" * 50_000)
    (folder / "b-just-too-big.jpg").write_bytes(b"x" * 19_990)  # fits, but not with its headers
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    (folder / "notes.md").write_text("no image")
    code, out, err = run(folder, "--topic", topic_name, "--bootstrap", kafka, "--json")
    assert code == 1
    summary = json.loads(out)
    failed = {f["id"]: f["reason"] for f in summary["failed"]}
    assert failed.keys() == {"a-big.jpg", "b-just-too-big.jpg", "gone.jpg"}
    assert "50000 bytes; the topic takes at most 20000" in failed["a-big.jpg"]
    assert "at most 20000 bytes with headers" in failed["b-just-too-big.jpg"]
    assert "not sent: gone.jpg: No such file or directory" in err
    assert (summary["sent"], summary["absent"], summary["left_out"]) == (40, 0, 1)
    assert (summary["with_caption"], summary["with_metadata"]) == (40, 0)
    assert "left out: 1 file (not an image, a text or a tar): 1 .md, for example notes.md" in err
    assert summary["bytes"] == sum(len(jpeg(i)) for i in range(40))
    assert (
        len(read_topic(kafka, topic_name)) == 40
    )  # none of the small ones went with a big one's batch


def test_the_topic_must_be_there(kafka, topic_name, folder):
    with pytest.raises(
        DependencyError,
        match=rf"--topic: there is no topic '{topic_name}' at {kafka}.*--create-topic",
    ):
        run(folder, "--topic", topic_name, "--bootstrap", kafka)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--topic", "a b", "--bootstrap", "x:1"],
            r"--topic: must be a topic's name: .* \(got 'a b'\)",
        ),
        (
            ["--topic", "t", "--bootstrap", "x:1", "--client", "linger.ms"],
            r"--client linger\.ms: write it as property=value",
        ),
        (
            ["--topic", "t", "--bootstrap", "x:1", "--client", "acks=1"],
            r"--client acks: cannot be set",
        ),
        (
            ["--topic", "t", "--bootstrap", "x:1", "--client", "foo=1"],
            r'--client: No such configuration property: "foo"',
        ),
        (
            ["nowhere", "--topic", "t", "--bootstrap", "x:1"],
            r"nowhere: there is no such file or folder",
        ),
        (
            ["--topic", "t", "--bootstrap", "x:1", "--captions", "no.csv"],
            r"no\.csv: the captions cannot be read",
        ),
    ],
)
def test_wrong_usage(folder, arguments, message):
    with pytest.raises(ConfigError, match=message):
        run(folder, *arguments)


def test_no_broker_names_the_option(folder):
    servers = f"127.0.0.1:{free_port()}"
    with pytest.raises(
        DependencyError,
        match=rf"no Kafka broker at {servers} answered within 10 s .*Check --bootstrap",
    ):
        run(folder, "--topic", "t", "--bootstrap", servers)


def test_a_broker_that_dies_ends_it(embedded, folder, monkeypatch):
    monkeypatch.setattr("streamer.kafka.sender.ACK_TIMEOUT_S", 2.0)
    with embedded() as broker:
        create_topic(broker.bootstrap_servers, "t")
        monkeypatch.setattr(Admin, "message_limit", lambda self, name: broker.kill() or 1_000_000)
        begun = time.monotonic()
        with pytest.raises(
            TemporaryError, match=r"writing to t at 127\.0\.0\.1:\d+: the broker is away or slow"
        ):
            run(folder, "--topic", "t", "--bootstrap", broker.bootstrap_servers)
        assert time.monotonic() - begun < 30


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_stays_bounded(kafka, topic_name, tmp_path):
    big = tmp_path / "images"
    big.mkdir()
    for i in range(60):
        with (big / f"{i}.jpg").open("wb") as file:
            file.truncate(8_000_000)  # 480 MB in all, on no disk
    create_topic(kafka, topic_name, max_message_bytes=9_000_000, retention_bytes=20_000_000)
    code = (
        "from pathlib import Path; from streamer.commands.produce import command\n"
        f"command.main({[str(big), '--topic', topic_name, '--bootstrap', kafka, '--json']!r}, standalone_mode=False)\n"
        "print(next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    summary, peak = done.stdout.splitlines()
    assert json.loads(summary)["sent"] == 60
    assert int(peak.split()[1]) < 350_000  # kB


def test_the_photos_with_their_captions(kafka, topic_name, data_set):
    photos = data_set / "photos"
    code, out, err = run(
        photos, "--captions", photos / "captions.tsv", "--text-column", "captions(|-separated)", "--separator", "|",
        "--topic", topic_name, "--bootstrap", kafka, "--create-topic", "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    stored = [dict(s.headers) | {"value": s.value} for s in read_topic(kafka, topic_name)]
    assert json.loads(out)["sent"] == len(stored) == sum(1 for _ in photos.rglob("*.jpg"))
    for record in stored:
        assert record["meta-sha256"].decode() == hashlib.sha256(record["value"]).hexdigest()
        assert record["text"]
    with (photos / "captions.tsv").open(encoding="utf-8", newline="") as lines:
        captions = {
            row["file"]: row["captions(|-separated)"].split("|")
            for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        }
    assert {r["id"].decode(): r["text"].decode() for r in stored} == {
        file: texts[0] for file, texts in captions.items()
    }
    several = {file: texts for file, texts in captions.items() if len(texts) > 1}
    assert len(several) > 100
    assert several == {
        r["id"].decode(): json.loads(r["meta-captions"]) for r in stored if "meta-captions" in r
    }


def test_every_hostile_file_arrives(kafka, topic_name, data_set):
    hostile = data_set / "hostile"
    code, out, _ = run(
        hostile,
        "--all-files",
        "--topic",
        topic_name,
        "--bootstrap",
        kafka,
        "--create-topic",
        "--json",
    )
    assert code == 0
    files = {str(p.relative_to(hostile)): p for p in hostile.rglob("*") if p.is_file()}
    stored = {dict(s.headers)["id"].decode(): s.value for s in read_topic(kafka, topic_name)}
    assert stored.keys() == files.keys()
    assert all(stored[id] == path.read_bytes() for id, path in files.items())
    assert json.loads(out)["sent"] == len(files)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_streamer_broker(embedded, tmp_path, number):
    port = free_port()
    arguments = [
        sys.executable,
        "-m",
        "streamer.cli",
        "broker",
        "--port",
        str(port),
        "--data",
        str(tmp_path / "kafka"),
    ]
    code = f"import sys; sys.argv = {arguments[2:]!r}; from streamer.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"127.0.0.1:{port}\n"
        create_topic(f"127.0.0.1:{port}", "t")
        produce(f"127.0.0.1:{port}", "t", [(b"x", {})])
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert err.splitlines()[-1] == "stopped"
    if number == signal.SIGINT:
        return
    with embedded(data=tmp_path / "kafka") as again:
        assert [s.value for s in read_topic(again.bootstrap_servers, "t")] == [b"x"]


def test_streamer_broker_on_a_taken_port(embedded):
    with embedded() as broker:
        code = f"import sys; sys.argv = ['streamer', 'broker', '--port', '{broker.port}']; from streamer.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == f"streamer: port {broker.port} on 127.0.0.1 cannot be used: Address already in use; choose another\n"
    )
    assert isinstance(broker, Broker)
