"""The pure parts of benchmarks/thresholds.py."""

import numpy as np
import pytest
from PIL import Image, ImageChops

from benchmarks import thresholds
from benchmarks.thresholds import EDITS, FAMILIES, Photo, known_same, pairs_of, recall

TAUS = np.array([0.5, 0.9, 0.99])


@pytest.fixture
def picture():
    x, y = np.meshgrid(np.linspace(0, 255, 320), np.linspace(0, 255, 200))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8))


def test_recall_counts_what_is_at_or_above():
    np.testing.assert_array_equal(recall(np.array([0.9, 0.95, 1.0, 0.1]), TAUS), [0.75, 0.75, 0.25])


@pytest.mark.parametrize("rows", [4, 1024])
def test_pairs_are_those_of_a_loop(monkeypatch, rows):
    monkeypatch.setattr(thresholds, "ROWS", rows)
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((4, 8)).repeat(5, axis=0) + 0.2 * rng.standard_normal((20, 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    same = {(1, 0), (2, 3), (7, 19)}
    loop = [
        (float(vectors[i].astype(np.float64) @ vectors[j].astype(np.float64)), i, j)
        for i in range(20)
        for j in range(i + 1, 20)
        if (i, j) not in same and (j, i) not in same
    ]
    found = pairs_of(vectors, same, TAUS, closest=6)
    assert found.total == len(loop) == 187
    counts = [sum(similarity >= tau for similarity, _, _ in loop) for tau in TAUS]
    assert len(set(counts)) == 3, "thresholds that tell something apart"
    assert found.at_least.tolist() == counts
    assert found.photographs.tolist() == [
        len({row for similarity, *pair in loop if similarity >= tau for row in pair})
        for tau in TAUS
    ]
    assert found.closest == sorted(loop, reverse=True)[:6]


def test_what_shows_the_same_is_of_one_scene_or_listed(tmp_path):
    photos = [
        Photo("a", "a", b""),
        Photo("b", "b", b""),
        Photo("left", "room", b""),
        Photo("right", "room", b""),
    ]
    (tmp_path / "same").write_text("b\ta\na\telsewhere\n\n")
    assert known_same(photos, tmp_path / "same") == {(1, 0), (2, 3)}
    assert known_same(photos, None) == {(2, 3)}


def test_every_edit_does_what_its_name_says(picture):
    sizes = {name: edit(picture).size for name, (edit, _) in EDITS.items()}
    assert sizes.pop("to ½") == (160, 100)
    assert sizes.pop("to ¼") == (80, 50)
    assert sizes.pop("white border") == (344, 224)
    for share in (5, 10, 20, 30):
        width, height = sizes.pop(f"{share} % of the area")
        assert width * height == pytest.approx((1 - share / 100) * 320 * 200, rel=0.01)
    width, height = sizes.pop("rotated by 2°")
    assert 300 < width < 320
    assert 180 < height < 200
    assert set(sizes.values()) == {(320, 200)}
    for name in sizes:
        assert (
            ImageChops.difference(EDITS[name][0](picture), picture).getbbox() is None
        ) == name.startswith("quality"), name
    turned = np.asarray(EDITS["rotated by 2°"][0](Image.new("RGB", (320, 200), "white")))
    assert turned.min() == 255, "no corner is missing"


@pytest.mark.parametrize("size", [(1, 1), (9, 400), (400, 9)])
def test_edits_take_any_size(size):
    for name, (edit, _) in EDITS.items():
        assert min(edit(Image.new("RGB", size)).size) >= 1, name


def test_names_of_edits_differ():
    assert len(EDITS) == sum(map(len, FAMILIES.values()))
