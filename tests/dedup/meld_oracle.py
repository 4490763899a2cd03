"""The rules of the meld once more, one row at a time in plain Python: slow, and sharing nothing
with the service but the entries.

Verdicts are (kind, position of the winner, similarity); dot products are exact (every product of
two fp16 numbers fits a float, and fsum does not round before the end).
"""

import math

from streamer.wire.claim import Claims, DatasetEntry, Open, Withdraw


def dot(left, right):
    return math.fsum(float(a) * float(b) for a, b in zip(left, right, strict=True))


class Oracle:
    def __init__(self, dim, threshold, window):
        self.dim = dim
        self.threshold = threshold
        self.window = window
        self.position = 0
        self.dataset = None
        self.opens = {}  # partition → every valid open, in order
        self.winners = {}  # position → (origin, vector)
        self.withdrawn = set()  # positions
        self.verdicts = {}  # origin → (kind, position, winner, similarity, vector) of its counting claim
        self.counted = []  # every origin whose claim counted, in order

    def apply(self, entry):
        """A list of (kind, winner, similarity) for claims; whether it took effect for anything
        else."""
        if isinstance(entry, Claims):
            verdicts = []
            for offset, vector in zip(entry.offsets.tolist(), entry.vectors.tolist(), strict=True):
                verdicts.append(
                    self.claim(entry, offset, vector, starts_at=self.position - len(verdicts))
                )
                self.position += 1
            return verdicts
        self.position += 1
        if isinstance(entry, DatasetEntry):
            if self.dataset is None:
                self.dataset = entry
            return self.dataset == entry
        if isinstance(entry, Open):
            before = self.opens.setdefault(entry.partition, [])
            if before and entry.generation < before[-1].generation:
                return False
            before.append(entry)
            return True
        assert isinstance(entry, Withdraw)
        verdict = self.prior(entry.partition, entry.offset)
        if (
            verdict is None
            or verdict[0] != "won"
            or self.opens[entry.partition][-1].term != entry.term
        ):
            return False
        self.withdrawn.add(verdict[1])
        return True

    def floor(self, partition):
        return max(entry.start for entry in self.opens[partition])

    def claim(self, entry, offset, vector, starts_at):
        opens = self.opens.get(entry.partition)
        if not opens or opens[-1].term != entry.term or offset < self.floor(entry.partition):
            return "void term", -1, None
        origin = (entry.partition, offset)
        if origin in self.verdicts:
            return "repeat", -1, None
        if entry.seen > starts_at or self.position - entry.seen > self.window:
            return "void stale", -1, None
        if (
            len(vector) != self.dim
            or not all(map(math.isfinite, vector))
            or not 0.99**2 <= dot(vector, vector) <= 1.01**2
        ):
            return "void vector", -1, None
        self.counted.append(origin)
        for position in sorted(self.winners):
            if entry.seen <= position < self.position and position not in self.withdrawn:
                similarity = dot(vector, self.winners[position][1])
                if similarity >= self.threshold:
                    self.verdicts[origin] = ("lost", self.position, position, similarity, vector)
                    return "lost", position, similarity
        self.winners[self.position] = (origin, vector)
        self.verdicts[origin] = ("won", self.position, -1, None, vector)
        return "won", -1, None

    def prior(self, partition, offset):
        """(kind, position, winner, similarity, vector) with kind won, lost or withdrawn; None if
        there is none."""
        if (
            partition not in self.opens
            or offset < self.floor(partition)
            or (partition, offset) not in self.verdicts
        ):
            return None
        verdict = self.verdicts[partition, offset]
        return ("withdrawn", *verdict[1:]) if verdict[1] in self.withdrawn else verdict

    def near(self, vector, below):
        """The lowest position below ``below`` of a winner at or above the threshold, with its
        similarity; (−1, None) if there is none."""
        for position in sorted(self.winners):
            if position < below and position not in self.withdrawn:
                similarity = dot(vector, self.winners[position][1])
                if similarity >= self.threshold:
                    return position, similarity
        return -1, None
