"""``dedup.action: flag`` and ``dedup: off``: every sound record is accepted, once, also over a kill
-9."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamer.testing import create_topic, produce
from streamer.wire.claim import DatasetEntry, decode
from tests.integration.service import Made, Service, photographs, read_claims, read_output, verified

TAU = 0.97


def _settings(tmp_path: Path, name: str) -> dict[str, Any]:
    return {
        "embedder": {"type": "tests.plugins.thumbnail:ThumbnailEmbedder", "args": {"delay_ms": 40}},
        "output": {"path": str(tmp_path / name), "epoch_records": 80, "seal_after": "1s"}, "batch": {"size": 16, "linger": "10ms"},
    }  # fmt: skip


@pytest.mark.timeout(300)
def test_duplicates_flagged_and_duplicates_not_looked_for(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made, tmp_path: Path
) -> None:
    images = photographs(500, seed=31)
    create_topic(kafka, topic_name, partitions=2)
    origins = produce(
        kafka, topic_name, [(image, {"text": str(i)}) for i, image in enumerate(images)]
    )
    flag = make_service(
        f"{dataset_name}-flag",
        dedup={"threshold": TAU, "action": "flag"},
        **_settings(tmp_path, "flag"),
    )
    off = make_service(f"{dataset_name}-off", dedup=False, **_settings(tmp_path, "off"))
    first = [service.start("--until", "end") for service in (flag, off)]
    for replica in first:
        replica.wait_for("epoch committed", timeout=90)
        replica.kill()
    for replica in [service.start("--until", "end") for service in (flag, off)]:
        assert replica.end() == 0, replica.log

    for service in (flag, off):
        output = read_output(service.output)
        assert sorted((row["partition"], row["offset"]) for row in output.rows) == sorted(origins)
        assert {row["outcome"] for row in output.rows} == {"accepted", "invalid"}
        assert set(output.members) == {row["key"] for row in output.of("accepted")}
        for origin, image in zip(origins, images, strict=True):
            row = output.by_origin[origin]
            if row["outcome"] == "accepted":
                assert output.members[row["key"]][row["format"]] == image
        verified(service.output)
    _check_flags(flag)
    rows = read_output(off.output).rows
    assert not any(row["flags"] or row["duplicate_of"] or row["claim"] is not None for row in rows)
    assert all(row["embedding"] is not None for row in rows if row["outcome"] == "accepted")
    entries = [decode(value) for value in read_claims(kafka, f"{dataset_name}-off.claims")]
    assert [type(entry) for entry in entries] == [DatasetEntry]


def _check_flags(service: Service) -> None:
    """A flagged record names a winner that is not flagged itself, and winners are no duplicates of
    each other."""
    accepted = {row["key"]: row for row in read_output(service.output).of("accepted")}
    flagged = [row for row in accepted.values() if row["flags"]]
    assert len(flagged) > 50
    for row in flagged:
        assert row["flags"] == ["near_duplicate"]
        winner = accepted[row["duplicate_of"]]
        assert not winner["flags"]
        exact = np.array(row["embedding"], np.float64) @ np.array(winner["embedding"], np.float64)
        assert row["similarity"] == exact >= TAU
    winners = np.array(
        [row["embedding"] for row in accepted.values() if not row["flags"]], np.float64
    )
    gram = winners @ winners.T
    np.fill_diagonal(gram, -1)
    assert gram.max() < TAU
    counts = [
        json.loads(path.read_text())["counts"]
        for path in (service.output / "manifests").glob("*.json")
    ]
    assert sum(c.get("accepted", 0) for c in counts) == len(accepted)
    assert not any("duplicate" in c for c in counts)
