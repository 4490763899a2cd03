"""Which text belongs to which image: the cases people have, and what holds for any names."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.produce.name import base_name, is_hidden, is_image, is_json, is_text, stem
from streamer.produce.pairing import Partners, pair


def texts(names: str) -> dict[str, str | None]:
    """Image → its text."""
    return {image: partners.text for image, partners in pair(names.split()).images.items()}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("a.jpg a.txt", {"a.jpg": "a.txt"}),
        ("a.JPG a.TXT", {"a.JPG": "a.TXT"}),
        ("a.jpg a.txt a.TXT", {"a.jpg": "a.txt"}),
        ("a.jpg a.caption", {"a.jpg": "a.caption"}),
        ("a.jpg a.caption a.text a.txt", {"a.jpg": "a.txt"}),
        ("a.jpg A.txt", {"a.jpg": None}),
        ("a.jpg a.png a.txt", {"a.jpg": "a.txt", "a.png": "a.txt"}),
        # dots in names
        ("x.10.jpg x.10.txt x.11.jpg x.11.txt", {"x.10.jpg": "x.10.txt", "x.11.jpg": "x.11.txt"}),
        ("x.10.jpg x.11.jpg x.11.txt", {"x.10.jpg": None, "x.11.jpg": "x.11.txt"}),
        ("x.10.jpg x.11.txt", {"x.10.jpg": None}),
        ("St.A.jpg St.A.txt St.B.jpg St.B.txt", {"St.A.jpg": "St.A.txt", "St.B.jpg": "St.B.txt"}),
        ("St.A.jpg St.A.txt St.B.jpg St.C.txt", {"St.A.jpg": "St.A.txt", "St.B.jpg": None}),
        ("x.jpg x.txt x.1.jpg", {"x.jpg": "x.txt", "x.1.jpg": None}),
        ("x.jpg x.txt x.TXT x.1.jpg", {"x.jpg": "x.txt", "x.1.jpg": None}),
        # the image's whole name
        ("a.jpg a.jpg.txt", {"a.jpg": "a.jpg.txt"}),
        ("a.jpg a.JPG.txt", {"a.jpg": "a.JPG.txt"}),
        ("a.jpg a.png a.png.txt", {"a.jpg": None, "a.png": "a.png.txt"}),
        ("a.jpg a.txt a.jpg.txt", {"a.jpg": "a.txt"}),
        ("a.jpg a.txt a.jpg.txt a.1.jpg", {"a.jpg": "a.txt", "a.1.jpg": None}),
        # the plain text wins over the longer one, in whatever order
        ("a.jpg a.txt a.vlm.txt", {"a.jpg": "a.txt"}),
        ("a.vlm.txt a.txt a.jpg", {"a.jpg": "a.txt"}),
        ("a.jpg a.jpg.txt a.vlm.txt", {"a.jpg": "a.jpg.txt"}),
        # WebDataset's samples
        ("a.left.jpg a.right.jpg a.txt", {"a.left.jpg": "a.txt", "a.right.jpg": "a.txt"}),
        ("a.0.jpg a.1.jpg a.txt", {"a.0.jpg": "a.txt", "a.1.jpg": "a.txt"}),
        ("1.img.jpg 1.txt", {"1.img.jpg": "1.txt"}),
        ("1.img.jpg 1.cap.txt", {"1.img.jpg": "1.cap.txt"}),
        ("1.jpg 1.vlm.txt", {"1.jpg": "1.vlm.txt"}),
        ("1.jpg 1.vlm.txt 1.blip.txt", {"1.jpg": None}),
        ("1.2.left.jpg 1.2.txt 1.txt", {"1.2.left.jpg": "1.2.txt"}),
        ("1.img.jpg 1.txt 1.vlm.txt", {"1.img.jpg": "1.txt"}),
        # a further image of the sample is not a picture of its own, unless it has a text of its own
        ("a.jpg a.txt a.mask.png a.seg.png", {"a.jpg": "a.txt"}),
        ("a.jpg a.mask.png", {"a.jpg": None}),
        ("a.jpg a.mask.png a.mask.txt", {"a.jpg": None, "a.mask.png": "a.mask.txt"}),
        ("a.jpg a.mask.png a.mask.png.txt", {"a.jpg": None, "a.mask.png": "a.mask.png.txt"}),
        ("a.2.jpg a.3.jpg", {"a.2.jpg": None, "a.3.jpg": None}),
    ],
)  # fmt: skip
def test_texts(names, expected):
    assert texts(names) == expected


def test_names_with_spaces_and_dates():
    names = [f"Screenshot 2024-05-01 at 10.{m}.jpg" for m in ("30.12", "31.44", "32.05")] + [
        "Screenshot 2024-05-01 at 10.31.44.txt",
        "Mr. Smith.jpg",
        "Mr. Jones.txt",
    ]
    found = pair(names).images
    assert [image for image, partners in found.items() if partners.text] == [
        "Screenshot 2024-05-01 at 10.31.44.jpg"
    ]


def test_json_is_paired_apart_from_the_texts():
    pairing = pair(["a.jpg", "a.vlm.txt", "a.json", "a.meta.json", "a.mask.png", "a.mask.json"])
    assert pairing.images == {"a.jpg": Partners("a.vlm.txt", "a.json")}
    assert pairing.further == {"a.mask.png"}
    assert pairing.unused == {"a.meta.json", "a.mask.json"}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("a.jpg", "a"),
        ("0001.left.jpg", "0001"),
        ("frame.0001.jpg", "frame.0001"),
        ("Screenshot at 10.30.12.jpg", "Screenshot at 10.30.12"),
        ("Mr. Smith.jpg", "Mr. Smith"),
        ("v1.2.final.jpg", "v1.2"),
        ("a", "a"),
        ("a..jpg", "a."),
        ("é.maske.png", "é"),
        ("a.émail.png", "a"),
    ],
)
def test_samples(name, key):
    assert base_name(name) == key


@pytest.mark.parametrize(
    ("path", "hidden"),
    [
        ("a.jpg", False), ("a/b.jpg", False), ("../a.jpg", False), ("._a.jpg", True),
        ("a/._b.jpg", True), (".git/a.jpg", True), (".ipynb_checkpoints/a-checkpoint.jpg", True),
        ("__MACOSX/a.jpg", True), ("a/Thumbs.db", True), ("a/thumbs.DB", True),
        ("@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", True), ("desktop.ini", True), ("__a__.jpg", False),
    ],
)  # fmt: skip
def test_hidden_names(path, hidden):
    assert is_hidden(path) is hidden


NAMES = st.lists(
    st.builds(
        lambda parts, ext: ".".join([*parts, ext]),
        st.lists(st.sampled_from(["a", "b", "1", "2", "x y", "mask"]), min_size=1, max_size=4),
        st.sampled_from(["jpg", "JPG", "png", "txt", "TXT", "caption", "json", "npy", "jpg.txt"]),
    ),
    max_size=14,
)


@given(NAMES)
def test_every_image_text_and_json_has_exactly_one_use(names):
    pairing = pair(names)
    used = {p.text for p in pairing.images.values()} | {p.json for p in pairing.images.values()}
    known = {n for n in names if is_image(n) or is_text(n) or is_json(n)}
    images = {n for n in known if is_image(n)}
    assert pairing.images.keys() | pairing.further == images
    assert not pairing.images.keys() & pairing.further
    assert (used - {None}) | pairing.unused == known - images
    assert not used & pairing.unused
    assert all(p.text is None or is_text(p.text) for p in pairing.images.values())
    assert all(p.json is None or is_json(p.json) for p in pairing.images.values())


@given(NAMES, st.randoms(use_true_random=False))
def test_the_order_of_the_names_does_not_matter(names, chance: random.Random):
    shuffled = list(names)
    chance.shuffle(shuffled)
    assert pair(shuffled) == pair(names)


@given(NAMES)
def test_the_same_name_always_wins(names):
    """Whatever else lies in the folder, a.b.txt is the text of a.b.jpg and of nothing that has not
    this name."""
    for image, partners in pair(names).images.items():
        own = {n for n in names if is_text(n) and stem(n) == stem(image)}
        assert not own or partners.text in own
        if partners.text is not None and partners.text not in own:
            named_for_another = any(is_image(n) and stem(n) == stem(partners.text) for n in names)
            assert not named_for_another


@given(NAMES)
def test_a_text_shares_the_beginning_up_to_a_dot_with_its_image(names):
    for image, partners in pair(names).images.items():
        for other in (partners.text, partners.json):
            assert other is None or image.split(".")[0] == other.split(".")[0]


@given(NAMES)
def test_further_images_have_a_plain_image_beside_them(names):
    pairing = pair(names)
    for image in pairing.further:
        assert any(stem(other) == base_name(image) for other in pairing.images)
