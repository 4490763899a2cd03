"""Where one run of the demo keeps its things."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from streamer.errors import ConfigError

DATASET = "demo"
TOPIC = "image-text"


@dataclass(frozen=True)
class Place:
    """The folder of one run. Everything that the run leaves behind is in it, and nothing else is."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "streamer.yaml"

    @property
    def weights(self) -> Path:
        return self.folder / "weights"

    @property
    def output(self) -> Path:
        """``output.path`` of the config; the dataset is one level below."""
        return self.folder / "curated"

    @property
    def dataset(self) -> Path:
        return self.output / DATASET

    @property
    def broker(self) -> Path:
        return self.folder / "broker"

    @property
    def log(self) -> Path:
        """What the replica said."""
        return self.folder / "replica.log"

    @property
    def sheet(self) -> Path:
        return self.folder / "contact-sheet.html"


def make_place(out: Path) -> Place:
    """A new or empty folder ``out``; where an earlier demo left its own there, ``out/run-2`` and so
    on.

    Raises ConfigError when ``out`` holds something else, or cannot be made.
    """
    try:
        folder = out.resolve()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            if not (folder / "streamer.yaml").is_file():
                raise ConfigError(
                    f"--out {out}: there is something in it that is not of a demo; give a new or empty folder"
                )
            folder = next(
                path for n in range(2, 1_000_000) if not (path := folder / f"run-{n}").exists()
            )
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--out {out}: the folder cannot be made: {error.strerror}; give another"
        ) from None
    return Place(folder)
