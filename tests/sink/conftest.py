"""Fixtures of the sink's tests: a local S3 server, and one folder contract over three kinds of
storage."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from pyarrow import fs
from sink_data import s3_server

from streamer.sink.folder import Folder
from streamer.sink.local import LocalFolder
from streamer.sink.location import open_folder
from streamer.sink.remote import RemoteFolder
from streamer.sink.storage import Storage


@pytest.fixture(scope="session")
def s3_query() -> Iterator[str]:
    with s3_server() as query:
        yield query


@pytest.fixture
def s3_output(s3_query: str) -> str:
    """An ``output.path`` of its own for every test."""
    return f"s3://curated/{uuid.uuid4().hex}/out{s3_query}"


@pytest.fixture(params=["local", "remote", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path) -> Folder:
    """A disk; a file system that pyarrow knows and that is no object store; S3."""
    if request.param == "local":
        return LocalFolder(tmp_path / "cats")
    if request.param == "remote":
        return RemoteFolder(
            fs.LocalFileSystem(), str(tmp_path / "cats"), f"elsewhere://{tmp_path}/cats"
        )
    return open_folder(request.getfixturevalue("s3_output"), "cats")


@pytest.fixture
def storage(folder: Folder, tmp_path) -> Storage:
    made = Storage(str(tmp_path), "cats")
    made.folder = folder
    return made
