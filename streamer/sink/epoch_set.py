"""Which epochs of which writers: one bit for each, for datasets of millions of epochs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Name = tuple[str, int]
"""Writer and epoch."""


class EpochSet:
    """A set of epochs. It needs memory up to each writer's highest number, which has no large gaps
    below it: 1.25 MB for ten million. One thread."""

    def __init__(self, names: Iterable[Name] = ()) -> None:
        self._bits: dict[str, bytearray] = {}
        self._count = 0
        for writer, epoch in names:
            self.add(writer, epoch)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, name: Name) -> bool:
        bits = self._bits.get(name[0], b"")
        return name[1] >> 3 < len(bits) and bool(bits[name[1] >> 3] & 1 << (name[1] & 7))

    def add(self, writer: str, epoch: int) -> None:
        if (writer, epoch) in self:
            return
        bits = self._bits.setdefault(writer, bytearray())
        if epoch >> 3 >= len(bits):
            bits.extend(bytes(max(len(bits), (epoch >> 3) + 1 - len(bits))))
        bits[epoch >> 3] |= 1 << (epoch & 7)
        self._count += 1

    def discard(self, writer: str, epoch: int) -> bool:
        """Whether it was there."""
        if (writer, epoch) not in self:
            return False
        self._bits[writer][epoch >> 3] &= ~(1 << (epoch & 7))
        self._count -= 1
        return True

    def __iter__(self) -> Iterator[Name]:
        """In order."""
        for writer, bits in sorted(self._bits.items()):
            for at, byte in enumerate(bits):
                for bit in range(8):
                    if byte & 1 << bit:
                        yield writer, at * 8 + bit
