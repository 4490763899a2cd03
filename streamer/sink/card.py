"""The dataset card: ``README.md`` with the front matter that makes ``load_dataset(folder)`` work.

Its ``configs`` follow from the folders in ``shards/`` alone, so any replica can write it at any
time. It is written only when a format is new, and then whatever else a person put into it stays.
"""

from __future__ import annotations

from typing import Any

import yaml

from streamer.sink.folder import Folder

PATH = "README.md"
_FENCE = "---\n"
_BODY = """# {dataset}

Image-text samples curated from a Kafka topic by `streamer`. `shards/` holds the accepted samples as
WebDataset tars, one folder per image format; `metadata/` one Parquet row for every input record,
whatever became of it; `manifests/` what was committed, with checksums (`streamer dataset verify`
checks it all).

```python
from datasets import load_dataset
samples = load_dataset("path/to/this/folder", split="train")   # {first}{others}

import webdataset, glob
samples = webdataset.WebDataset(sorted(glob.glob("shards/{first}/*.tar")), shardshuffle=False).decode("pil")

import duckdb
rows = duckdb.read_parquet("metadata/*.parquet", union_by_name=True)
duckdb.sql("select outcome, reason, count(*) from rows group by all").show()
```

Files of one dataset may have different columns: a head that was added later has its score in the
newer ones only. `union_by_name` takes them all, and `.df()` makes a pandas frame of a result;
`pandas.read_parquet` of the whole folder leaves out what the first file lacks. `load_dataset` takes
the fields of `json` from its first samples.

Images are the files that came in. Pillow refuses a PNG whose metadata are damaged or huge unless
`PIL.ImageFile.LOAD_TRUNCATED_IMAGES = True` is set.

The column `embedding` is a fixed-size list of 16-bit floats with nulls: DuckDB reads it, and pyarrow
from 26 on; an older pyarrow reads all the others (name them with `columns=`).
"""


def update_card(folder: Folder, dataset: str, scratch: str) -> None:
    """Names every format in ``shards/`` in README.md. Idempotent; safe when others do the same.

    It looks again after writing: two replicas that each bring a new format end with both in the
    card.
    """
    while formats := folder.folders("shards"):
        current = _read(folder)
        if set(formats) <= _named(current):
            return
        folder.replace(PATH, _written(current, dataset, formats).encode(), scratch)


def _read(folder: Folder) -> str:
    try:
        return folder.read(PATH).decode(errors="replace")
    except FileNotFoundError:
        return ""


def _split(card: str) -> tuple[dict[str, Any], str]:
    """Front matter and body; ({}, "") where there is none that can be read."""
    if not card.startswith(_FENCE):
        return {}, card
    head, fence, body = card[len(_FENCE) :].partition(f"\n{_FENCE}")
    try:
        front = yaml.safe_load(head) if fence else None
    except yaml.YAMLError:
        return {}, body
    return (front, body) if isinstance(front, dict) else ({}, body)


def _named(card: str) -> set[str]:
    configs = _split(card)[0].get("configs")
    return (
        {str(c.get("config_name")) for c in configs if isinstance(c, dict)}
        if isinstance(configs, list)
        else set()
    )


def _written(card: str, dataset: str, formats: list[str]) -> str:
    """One config per format; jpg is the default where it exists, the first one elsewhere."""
    first = "jpg" if "jpg" in formats else formats[0]
    configs = [
        {
            "config_name": f,
            "data_files": f"shards/{f}/*.tar",
            **({"default": True} if f == first else {}),
        }
        for f in formats
    ]
    front, body = _split(card)
    front = {
        "pretty_name": dataset,
        "task_categories": ["image-to-text"],
        **front,
        "configs": configs,
    }
    others = (
        "; other formats by name: " + ", ".join(f for f in formats if f != first)
        if len(formats) > 1
        else ""
    )
    body = body or "\n" + _BODY.format(dataset=dataset, first=first, others=others)
    return f"{_FENCE}{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}{_FENCE}{body}"
