from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamer.sink.epoch_set import EpochSet

names = st.tuples(st.sampled_from(("w-0", "w-1", "a")), st.integers(0, 300))


@given(st.lists(names), st.lists(names))
def test_it_is_a_set(added: list[tuple[str, int]], removed: list[tuple[str, int]]) -> None:
    epochs, due = EpochSet(added), set(added)
    for name in removed:
        assert epochs.discard(*name) == (name in due)
        due.discard(name)
    assert len(epochs) == len(due)
    assert list(epochs) == sorted(due)
    assert all((name in epochs) == (name in due) for name in [*added, *removed])


def test_ten_million_epochs_of_a_writer_need_little() -> None:
    epochs = EpochSet()
    epochs.add("w-0", 9_999_999)
    assert len(epochs._bits["w-0"]) <= 2_500_000
