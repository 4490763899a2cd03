"""Sources read without a broker, and the files they are made of."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamer.kafka.sender import Tally
from streamer.produce.captions import Captions
from streamer.produce.entry import Columns, Entry, Item, Unsendable
from streamer.produce.report import Report
from streamer.produce.source import Sources


@dataclass
class Read:
    """All that came of the sources."""

    entries: list[Entry] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    """As with --json; counts of what was sent are 0."""
    remarks: list[str] = field(default_factory=list)

    def by_id(self) -> dict[str, Entry]:
        assert len({e.id for e in self.entries}) == len(self.entries)
        return {e.id: e for e in self.entries}

    def texts(self) -> dict[str, str | None]:
        """Id → text, of what can be sent."""
        return {e.id: header(e, "text") for e in self.entries if isinstance(e, Item)}

    def reasons(self) -> dict[str, str]:
        """Id → why it cannot be sent."""
        return {e.id: e.reason for e in self.entries if isinstance(e, Unsendable)}


def read_all(
    *sources: Path,
    captions: Path | None = None,
    all_files: bool = False,
    limit: int = 1_000_000,
    **columns: str,
) -> Read:
    named = Columns(**columns)
    texts = Captions(captions, named) if captions else None
    reader = Sources(named, texts, all_files, limit)
    found = [reader.entries(source) for source in sources]
    reader.check_captions()
    report, read = Report(reader), Read()
    for entries in found:
        for entry in entries:
            read.entries.append(entry)
            if not isinstance(entry, Item):
                report.add(entry)
    report.finish(Tally(), limit, 0.0)
    read.summary = report.as_json()
    read.remarks = list(report.remarks(listed=True))
    return read


def read(source: Path, **options: Any) -> list[Entry]:
    return read_all(source, **options).entries


def by_id(entries: list[Entry]) -> dict[str, Any]:
    return Read(entries).by_id()


def header(entry: Entry, name: str) -> str | None:
    assert isinstance(entry, Item), entry
    headers = dict(entry.headers)
    return headers[name].decode() if name in headers else None


def write_files(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def write_tar(path: Path, members: list[tuple[str, bytes | tarfile.TarInfo]]) -> Path:
    """Members in this order; a TarInfo instead of bytes is a link or something else."""
    compression = {".gz": "gz", ".bz2": "bz2", ".xz": "xz"}.get(path.suffix, "")
    with tarfile.open(path, f"w:{compression}") as archive:
        for name, data in members:
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            if isinstance(data, bytes):
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
    return path


def link(target: str, hard: bool = False) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = (tarfile.LNKTYPE if hard else tarfile.SYMTYPE), target
    return info
