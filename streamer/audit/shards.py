"""The samples of one shard against their rows, by columns, in one pass that also takes the
checksum.

It proves that a shard is exactly what its rows say, and nothing else: what it does not understand
(`Strange`) may still be right, or wrong in a way that a person wants to read about. Then
`streamer.audit.tars` looks member by member. Memory: a window of the shard, whatever its size.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.lib.stride_tricks import sliding_window_view
from pyarrow import json as arrow_json

from streamer.audit.manifests import File
from streamer.records import I64, U8

WINDOW = 4 << 20
MAX_WINDOW = 1 << 28
"""A sample that is larger is left to the other look."""
_BLOCK = 512
_KEY = 18
"""Characters of a key: beyond partition 99 999 or offset 10¹² it is longer."""
_NAME, _SIZE, _SUM, _TYPE, _PREFIX = (
    slice(0, 100),
    slice(124, 136),
    slice(148, 156),
    156,
    slice(345, 500),
)
_EIGHTS = 8 ** np.arange(5, -1, -1)
_TEXTS = ("key", "topic", "format", "sha256", "id", "url", "metadata")
_NUMBERS = ("partition", "offset", "bytes", "width", "height")
_UNKNOWN = {"id": "", "url": "", "metadata": "{}", "width": 0, "height": 0}
"""Fields whose null in the row is another value in the json."""
_PARSE = arrow_json.ParseOptions(
    explicit_schema=pa.schema(
        [
            *((name, pa.string()) for name in _TEXTS),
            *((name, pa.int64()) for name in _NUMBERS),
        ]
    ),
    unexpected_field_behavior="ignore",
)


class Strange(Exception):
    """The shard is not, or not obviously, what its rows say."""


class ShardCheck:
    """One shard, whose rows come in order. Blocks for its reads, whose OSErrors are the
    caller's."""

    def __init__(self, file: File, source: BinaryIO, advance: Callable[[int], None]) -> None:
        self._file = file
        self._samples = 0
        self._window = _Window(source, advance)

    def add(self, rows: pa.RecordBatch) -> None:
        """The next rows whose samples are here. Raises Strange."""
        formats = pc.unique(rows["format"]).to_pylist()
        if len(formats) != 1 or not isinstance(formats[0], str):
            raise Strange("several formats")
        suffixes = sorted({formats[0], "json", "txt"})
        if len(suffixes) != 3:
            raise Strange("a format that is no image's")
        image = formats[0]
        done = compared = nbytes = 0
        described: list[bytes] = []
        while done < rows.num_rows:
            members = self._window.take(rows.num_rows - done)
            some = rows.slice(done, len(members))
            members.require_names(some["key"].to_pylist(), suffixes)
            _compare_images(some, members, suffixes.index(image))
            _compare_texts(some, members, suffixes.index("txt"))
            described += [bytes(data) for data in members.contents(suffixes.index("json"))]
            done += len(members)
            nbytes += int(members.sizes[:, suffixes.index("json")].sum())
            if nbytes >= WINDOW or done == rows.num_rows:  # a call takes a millisecond
                _compare_json(described, rows.slice(compared, done - compared))
                described, compared, nbytes = [], done, 0
        self._samples += done

    @property
    def is_complete(self) -> bool:
        """Whether as many samples came as the manifest says."""
        return self._samples >= self._file.rows

    def finish(self) -> None:
        """After the last row: the tar ends, and it is the file of the manifest. Raises Strange."""
        if self._samples != self._file.rows:
            raise Strange("another number of samples")
        if self._window.finish() != self._file.sha256:
            raise Strange("another checksum")


def _compare_images(rows: pa.RecordBatch, members: _Members, column: int) -> None:
    if not np.array_equal(members.sizes[:, column], _numbers(rows["bytes"])):
        raise Strange("sizes of images")
    sha256 = hashlib.sha256
    hashes = [sha256(data).hexdigest() for data in members.contents(column)]
    if hashes != rows["sha256"].to_pylist():
        raise Strange("images")


def _compare_texts(rows: pa.RecordBatch, members: _Members, column: int) -> None:
    texts = pc.fill_null(rows["text"], "").cast(pa.binary()).to_pylist()
    if [bytes(data) for data in members.contents(column)] != texts:
        raise Strange("texts")


def _compare_json(described: list[bytes], rows: pa.RecordBatch) -> None:
    """All at once. Where each member begins and ends like an object, none can be cut in two, and as
    many objects come out as there are members only if each is one."""
    data = b"\n".join(described)
    if not all(one.startswith(b"{") and one.endswith(b"}") for one in described):
        raise Strange("no object")
    try:
        found = arrow_json.read_json(
            io.BytesIO(data),
            arrow_json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            _PARSE,
        )
    except pa.ArrowException as error:
        raise Strange(str(error)) from None
    if found.num_rows != len(described):
        raise Strange("objects of json")
    for name in (*_TEXTS, *_NUMBERS):
        expected = rows[name]
        if name in _NUMBERS:
            expected = expected.cast(pa.int64())
        if name in _UNKNOWN:
            unknown = _UNKNOWN[name]
            expected = pc.fill_null(expected, unknown)
            if name == "metadata":
                expected = pc.if_else(pc.equal(expected, ""), unknown, expected)
        if not pc.all(pc.fill_null(pc.equal(found[name], expected), False)).as_py():
            raise Strange(name)


def _numbers(column: pa.Array) -> I64:
    """-1 for null."""
    return np.asarray(pc.fill_null(column, -1).to_numpy(zero_copy_only=False), np.int64)


class _Members:
    """Whole samples in a window: n samples of three members each."""

    def __init__(self, window: bytearray, starts: list[int], sizes: list[int]) -> None:
        self._view = memoryview(window)
        self._starts = np.array(starts, np.int64).reshape(-1, 3)
        self.sizes = np.array(sizes, np.int64).reshape(-1, 3)
        blocks = sliding_window_view(np.frombuffer(window, np.uint8), _BLOCK)
        self._headers: U8 = blocks[self._starts.reshape(-1)]
        self._require_plain()

    def __len__(self) -> int:
        return len(self.sizes)

    def contents(self, column: int) -> list[memoryview]:
        view, starts = self._view, self._starts[:, column] + _BLOCK
        ends = starts + self.sizes[:, column]
        return [view[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]

    def _require_plain(self) -> None:
        """Headers as tar has them for plain files, which differ in name, size and checksum only."""
        headers, first = self._headers, self._headers[0]
        try:
            info = tarfile.TarInfo.frombuf(first.tobytes(), "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise Strange(str(error)) from None
        same = np.ones(_BLOCK, bool)
        for differs in (_NAME, _SIZE, _SUM):
            same[differs] = False
        digits = headers[:, 148:154].astype(np.int64) - ord("0")
        sums = headers.sum(axis=1, dtype=np.int64) - headers[:, _SUM].sum(axis=1, dtype=np.int64)
        if (
            info.type != tarfile.REGTYPE
            or first[_PREFIX].any()
            or (headers[:, same] != first[same]).any()
            or ((digits < 0) | (digits > 7)).any()
            or (headers[:, 154:156] != (0, ord(" "))).any()
            or (digits @ _EIGHTS != sums + 8 * ord(" ")).any()
        ):
            raise Strange("headers")

    def require_names(self, keys: list[str], suffixes: list[str]) -> None:
        """Raises Strange unless the members are KEY.SUFFIX, sample by sample."""
        joined = "".join(keys).encode("utf-8", "replace")
        if len(joined) != _KEY * len(keys) or any(len(key) != _KEY for key in keys):
            raise Strange("keys")
        expected = np.zeros((len(keys), 3, 100), np.uint8)
        expected[:, :, :_KEY] = np.frombuffer(joined, np.uint8).reshape(-1, 1, _KEY)
        for column, suffix in enumerate(suffixes):
            end = f".{suffix}".encode()
            expected[:, column, _KEY : _KEY + len(end)] = np.frombuffer(end, np.uint8)
        if not np.array_equal(self._headers[:, _NAME].reshape(-1, 3, 100), expected):
            raise Strange("names")


class _Window:
    """The part of a tar that is in memory; hashed as it is read."""

    def __init__(self, source: BinaryIO, advance: Callable[[int], None]) -> None:
        self._source = source
        self._advance = advance
        self._sha256 = hashlib.sha256()
        self._buffer = bytearray(WINDOW)
        self._at = self._end = 0

    def take(self, most: int) -> _Members:
        """The next samples: one at least, ``most`` at most. They hold until the next call. Raises
        Strange where no whole sample comes."""
        while True:
            starts, sizes, at = self._walk(3 * most)
            if starts:
                members = _Members(self._buffer, starts, sizes)
                self._at = at
                return members
            if not self._fill():
                raise Strange("an end in a sample")

    def finish(self) -> str:
        """Hex sha256 of the whole file. Raises Strange unless only the end of a tar is left."""
        if self._end - self._at < _BLOCK and not self._fill():
            raise Strange("no end")
        if any(self._buffer[self._at : self._at + _BLOCK]):
            raise Strange("more samples")
        self._at = self._end
        while self._fill():
            self._at = self._end
        return self._sha256.hexdigest()

    def _walk(self, most: int) -> tuple[list[int], list[int], int]:
        """Where members begin, how long they are, and where the last one of a whole sample ends."""
        buffer, at, end = self._buffer, self._at, self._end
        starts, sizes, ends = list[int](), list[int](), list[int]()
        while len(starts) < most and at + _BLOCK <= end:
            try:
                size = int(buffer[at + 124 : at + 135], 8)
            except ValueError:
                size = -1  # the end of the tar, or no header
            following = at + _BLOCK + (size + _BLOCK - 1 & -_BLOCK)
            if size < 0 and len(starts) < 3:
                raise Strange("no sample")
            if size < 0 or following > end:
                break
            starts.append(at)
            sizes.append(size)
            ends.append(following)
            at = following
        whole = len(starts) - len(starts) % 3
        return starts[:whole], sizes[:whole], ends[whole - 1] if whole else self._at

    def _fill(self) -> bool:
        """Reads on. False: that was all, or there is no room for more."""
        rest = self._end - self._at
        if rest == len(self._buffer):
            if rest >= MAX_WINDOW:
                return False
            self._buffer = self._buffer + bytearray(rest)
        elif self._at:
            self._buffer[:rest] = self._buffer[self._at : self._end]
            self._end, self._at = rest, 0
        with memoryview(self._buffer) as view:
            n: int = self._source.readinto(view[self._end :])  # type: ignore[attr-defined]
            self._sha256.update(view[self._end : self._end + n])
        self._end += n
        self._advance(n)
        return n > 0
