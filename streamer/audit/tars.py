"""What is wrong with a shard, sample by sample, in one streaming pass that also takes the checksum.

For shards that `streamer.audit.shards` finds strange: slow, and exact in its words.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from streamer.audit.manifests import File
from streamer.audit.report import Report
from streamer.sink.folder import Folder
from streamer.units import counted

_SAME_IN_JSON = ("key", "topic", "partition", "offset", "format", "bytes", "sha256")
_UNKNOWN_IN_JSON = {"id": "", "url": "", "width": 0, "height": 0, "metadata": "{}"}
"""Fields whose null in the row is another value in the json."""


class _Hashed(io.RawIOBase):
    """A file that is hashed as it is read."""

    def __init__(self, source: BinaryIO) -> None:
        super().__init__()
        self._source = source
        self.sha256 = hashlib.sha256()

    def read(self, n: int = -1) -> bytes:
        data = self._source.read(n)
        self.sha256.update(data)
        return data


def check_tar(
    folder: Folder, file: File, rows: Mapping[str, dict[str, Any]], report: Report
) -> None:
    """``rows``: key → the accepted row whose shard this is. Raises DependencyError if the storage
    refuses, and FileNotFoundError."""
    with folder.explained("read", file.path), folder.open(file.path) as source:
        hashed = _Hashed(source)
        samples = 0
        found: set[str] = set()
        try:
            for key, members in _samples(hashed):
                samples += 1
                _check_sample(file.path, key, members, rows, found, report)
        except (tarfile.TarError, EOFError, ValueError) as error:
            report.problem("tar_unreadable", file.path, f"{type(error).__name__}: {error}")
        while hashed.read(1 << 20):
            pass
    if hashed.sha256.hexdigest() != file.sha256:
        report.problem(
            "file_checksum",
            file.path,
            f"its sha256 is {hashed.sha256.hexdigest()}, {file.sha256} in its manifest",
        )
    if samples != file.rows:
        report.problem(
            "rows_mismatch", file.path, f"{counted(samples, 'sample')}, {file.rows} in its manifest"
        )
    for key in rows.keys() - found:
        report.problem(
            "member_missing", f"{file.path}#{key}", "its row is accepted and names this shard"
        )


def _samples(source: _Hashed) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Members with one key in a row, as loaders group them: up to the first dot."""
    key, members = "", dict[str, bytes]()
    with tarfile.open(fileobj=source, mode="r|", bufsize=1 << 20) as tar:
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # else it remembers every one
            name, _, extension = info.name.partition(".")
            data = tar.extractfile(info)
            if name != key or extension in members:
                if members:
                    yield key, members
                key, members = name, {}
            members[extension] = b"" if data is None else data.read()
    if members:
        yield key, members


def _check_sample(
    path: str,
    key: str,
    members: dict[str, bytes],
    rows: Mapping[str, dict[str, Any]],
    found: set[str],
    report: Report,
) -> None:
    where = f"{path}#{key}"
    row = rows.get(key)
    if row is None:
        report.problem("member_unknown", where, "no accepted row names it in this shard")
        return
    if key in found:
        report.problem("member_twice", where, "the key comes again")
        return
    found.add(key)
    expected = {row["format"], "txt", "json"}
    for extension in sorted(expected - members.keys()):
        report.problem(
            "member_missing", f"{where}.{extension}", "a sample is an image, a txt and a json"
        )
    for extension in sorted(members.keys() - expected):
        report.problem(
            "member_unknown", f"{where}.{extension}", "a sample is an image, a txt and a json"
        )
    image, text, described = members.get(row["format"]), members.get("txt"), members.get("json")
    if image is not None and (len(image), hashlib.sha256(image).hexdigest()) != (
        row["bytes"],
        row["sha256"],
    ):
        report.problem(
            "member_mismatch",
            f"{where}.{row['format']}",
            "the image bytes are not the row's (bytes, sha256)",
        )
    if text is not None and text != (row["text"] or "").encode():
        report.problem("member_mismatch", f"{where}.txt", "the text is not the row's")
    if described is not None:
        _check_json(f"{where}.json", described, row, report)


def _check_json(where: str, data: bytes, row: dict[str, Any], report: Report) -> None:
    try:
        described = json.loads(data)
        wrong = [name for name in _SAME_IN_JSON if described[name] != row[name]]
        wrong += [
            name
            for name, unknown in _UNKNOWN_IN_JSON.items()
            if described[name] != (row[name] or unknown)
        ]
    except (ValueError, KeyError, TypeError) as error:
        report.problem("member_mismatch", where, f"{type(error).__name__}: {error}")
        return
    if wrong:
        report.problem("member_mismatch", where, f"{', '.join(wrong)}: not the row's")
