"""The photographs that the demo works on: 19 pictures that lie inside the scikit-image wheel, so
that nothing is downloaded.

Their terms are those of scikit-image's documentation of ``skimage.data``; each picture's are beside
it below, and on the contact sheet. Drawings and test patterns of the same folder are left out.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from streamer.errors import ConfigError


class Photograph(NamedTuple):
    """One picture as its package ships it. Photographs of the same ``scene`` may be near-duplicates
    of each other; all others are not."""

    name: str
    scene: str
    caption: str
    credit: str
    """Author or source, and terms."""
    data: bytes
    format: str
    """png or jpg."""


_NASA = "NASA; public domain"
_MIDDLEBURY = (
    "Middlebury 2014 stereo benchmark (Scharstein and others); as distributed with scikit-image"
)
_CATALOGUE = (
    (
        "astronaut.png",
        "Astronaut Eileen Collins in front of a flag and a model of the shuttle",
        _NASA,
    ),
    ("brick.png", "A wall of grey bricks", "CC0Textures; CC0"),
    ("camera.png", "A man in a coat behind a camera on a tripod", "Lav Varshney; CC0"),
    ("cell.png", "A cell floating in saline, through a microscope", "P. Müller and others; CC0"),
    ("chelsea.png", "Chelsea the cat looks past the camera", "Stéfan van der Walt; CC0"),
    (
        "clock_motion.png",
        "A wall clock, blurred by the camera's motion",
        "Stéfan van der Walt; public domain",
    ),
    (
        "coffee.png",
        "A red cup of coffee on a wooden table",
        "Rachel Michetti, Pikolo Espresso Bar; CC0",
    ),
    (
        "coins.png",
        "Greek coins from Pompeii in four rows",
        "Brooklyn Museum; no known copyright restrictions",
    ),
    ("grass.png", "Trampled grass from above", "linolafett; CC0"),
    ("gravel.png", "Gravel from above", "CC0Textures; CC0"),
    ("hubble_deep_field.jpg", "Thousands of galaxies in the Hubble deep field", _NASA),
    (
        "ihc.png",
        "Stained tissue of a colon, through a microscope",
        "CMMI; no known copyright restrictions",
    ),
    (
        "moon.png",
        "Craters on the surface of the moon",
        "as distributed with scikit-image, BSD-3-Clause",
    ),
    ("motorcycle_left.png", "A red motorcycle in a garage, seen by the left camera", _MIDDLEBURY),
    ("motorcycle_right.png", "A red motorcycle in a garage, seen by the right camera", _MIDDLEBURY),
    (
        "page.png",
        "A printed page about image segmentation",
        "as distributed with scikit-image, BSD-3-Clause",
    ),
    ("retina.jpg", "The retina of a human eye", "Häggström, WikiJournal of Medicine; CC0"),
    ("rocket.jpg", "A Falcon 9 rocket on its launch pad at dusk", "SpaceX; public domain"),
    ("text.png", "Handwriting on paper, seen at an angle", "Wikipedia, Corner.png; public domain"),
)
_SAME_SCENE = {"motorcycle_left": "motorcycle", "motorcycle_right": "motorcycle"}


def photographs() -> list[Photograph]:
    """All of them, in a fixed order. Reads files (3 MB), imports nothing. Raises ConfigError when
    the package is not there."""
    folder = _folder()
    found = []
    for file, caption, credit in _CATALOGUE:
        path = folder / file
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"{path}: a photograph of the demo cannot be read: {error.strerror}; install scikit-image anew"
            ) from None
        found.append(
            Photograph(
                path.stem,
                _SAME_SCENE.get(path.stem, path.stem),
                caption,
                credit,
                data,
                path.suffix[1:],
            )
        )
    return found


def _folder() -> Path:
    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "the demo's photographs are not installed; install them: pip install -c constraints/cpu.txt '.[cpu,demo]' in streamer's folder"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "data"
