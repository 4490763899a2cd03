from __future__ import annotations

from collections.abc import Iterator

import pytest
from sink_data import s3_server


@pytest.fixture(scope="session")
def s3_query() -> Iterator[str]:
    with s3_server() as query:
        yield query
