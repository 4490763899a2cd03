"""Ways to break the commit protocol, each of which the simulation must notice."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simulation import PARTS, Parts

Changes = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Mutation:
    name: str
    changes: Mapping[str, Changes]
    """Part → pieces of its source and what replaces them. Parts are ``engine``, ``replica`` and
    ``storage``, the modules under test, and ``client``: the Kafka port, which here is the
    simulation's own."""

    quick: bool = False
    """Noticed within a few worlds, so that every run can check it."""

    def parts(self) -> Parts:
        return replace(
            PARTS,
            **{
                part: mutant(getattr(PARTS, part), changes)
                for part, changes in self.changes.items()
            },
        )


def mutant(module: Any, changes: Changes) -> Any:
    """The module with pieces of its source replaced. Raises ValueError if a piece is not there
    exactly once: then the code has changed."""
    source = Path(module.__file__).read_text()
    for old, new in changes:
        if source.count(old) != 1:
            raise ValueError(
                f"{module.__name__} holds this {source.count(old)} times, not once: {old!r}"
            )
        source = source.replace(old, new)
    broken = types.ModuleType(f"{module.__name__}_mutant")
    broken.__file__ = module.__file__
    sys.modules[broken.__name__] = broken  # dataclasses look their module up
    exec(compile(source, module.__file__, "exec"), broken.__dict__)  # noqa: S102
    return broken


def _engine(name: str, *changes: tuple[str, str], quick: bool = False) -> Mutation:
    return Mutation(name, {"engine": changes}, quick)


def _replica(name: str, *changes: tuple[str, str], quick: bool = False) -> Mutation:
    return Mutation(name, {"replica": changes}, quick)


def _client(name: str, *changes: tuple[str, str], quick: bool = False) -> Mutation:
    return Mutation(name, {"client": changes}, quick)


def _sloppy(name: str, *changes: tuple[str, str]) -> Mutation:
    return Mutation(
        f"{name} (for a caller that looks at nothing)", {"engine": changes, "replica": SLOPPY}
    )


SLOPPY: Changes = (
    ("        return self._committing is not None\n", "        return True\n"),
    (
        "        if finished.run.number != self._line.fence.run.number:\n            self._engine",
        "        if sealed.epoch != self._engine.next_epoch:\n            self._engine",
    ),
    (
        "        if self._committing is None:\n            return finished.run.number == self._line.fence.run.number  # a callback was faster\n",
        "",
    ),
)
"""A replica that offers the engine everything that was ever sealed: what the engine alone prevents."""

MUTATIONS = [
    _sloppy(
        "an epoch is committed without comparing its first offset with the committed one",
        ("            if expected is not None and expected != first:\n", "            if False:\n"),
    ),
    _sloppy(
        "an epoch is committed under terms that are over",
        (
            "        if any(p not in self.terms or self.terms[p].id != term for p, term in sealed.terms.items()):\n",
            "        if False:\n",
        ),
    ),
    _engine(
        "callbacks are not served before a transaction",
        ("if not serve() or not self._still_ours", "if not self._still_ours"),
    ),
    _engine(
        "the membership is asked for after the last look",
        (
            '            if not serve() or not self._still_ours(sealed):\n                return "stale"\n',
            '            if not serve() or not self._still_ours(sealed):\n                return "stale"\n            membership = self._kafka.membership()\n',
        ),
    ),
    _engine(
        "the log is not read at an assignment",
        (
            "            self._read_as_last_of_our_name()\n            if not",
            "            if not",
        ),
        quick=True,
    ),
    _engine(
        "a partition starts at the group's offset whatever the log says",
        ("        if tile is not None:\n            return tile\n", ""),
        quick=True,
    ),
    _engine(
        "one look decides that a topic contradicts the log",
        (
            "            self._clock.sleep(0.1 * 2**attempt)\n        raise ProtocolError(problem)",
            "            raise ProtocolError(problem)\n        raise ProtocolError(problem)",
        ),
    ),
    _engine(
        "epochs of a successor under the same name are taken for granted",
        (
            "            self._read_as_last_of_our_name()\n            if not",
            "            list(self._entries())\n            if not",
        ),
    ),
    _engine(
        "nobody is fenced at a start",
        (
            "        self._kafka.fence()\n        named",
            "        self._kafka.attach()\n        named",
        ),
        quick=True,
    ),
    _engine(
        "own staging is deleted before the log is read",
        (
            "        checkpoint = self._resume()\n",
            "        checkpoint = self._resume()\n        for left in staged:\n            if left.writer == self.writer:\n                self._files.discard(left.writer, left.epoch, left.uuid)\n",
        ),
        quick=True,
    ),
    _engine(
        "own staging is listed after the predecessor was fenced",
        (
            "        staged = list(self._files.staged())\n        self._kafka.fence()\n",
            "        self._kafka.fence()\n        staged = list(self._files.staged())\n",
        ),
    ),
    _engine(
        "staging of others is deleted however young",
        ("left.writer == self.writer or left.age_s > 2 * self._stale_after_s", "True"),
        quick=True,
    ),
    _engine(
        "an epoch is committed while the one before it is not public",
        (
            "        if not self.settle():\n            raise ProtocolError",
            "        if False:\n            raise ProtocolError",
        ),
        ("        return self._errand is None\n", "        return True\n"),
    ),
    _engine(
        "an epoch is committed however old, whether its files are there or not",
        ("        if age > self._stale_after_s:\n", "        if False:\n"),
        ("            if not there:\n", "            if False:\n"),
    ),
    _engine(
        "committed epochs are not projected at a start",
        (
            "            if manifest.writer == self.writer or self._is_settled(manifest):\n                self._files.project(manifest)\n",
            "            if manifest.writer == self.writer or self._is_settled(manifest):\n                pass\n",
        ),
        quick=True,
    ),
    _engine(
        "an epoch is projected before its transaction",
        (
            '                with self._stage("commit", manifest):\n',
            '                self._files.project(manifest)\n                with self._stage("commit", manifest):\n',
        ),
        quick=True,
    ),
    _engine(
        "an aborted transaction counts as committed",
        ("            if committed:\n", "            if True:\n"),
        quick=True,
    ),
    _engine(
        "an epoch in doubt is deleted",
        (
            "            except InDoubt as doubt:\n",
            "            except InDoubt as doubt:\n                self.discard(sealed)\n",
        ),
    ),
    _engine(
        "an epoch in doubt is taken for aborted",
        ("                if not self._was_committed(manifest):\n", "                if True:\n"),
    ),
    _engine(
        "an epoch in doubt is taken for committed",
        (
            "                if not self._was_committed(manifest):\n",
            "                if self._was_committed(manifest) and False:\n",
        ),
        quick=True,
    ),
    _engine(
        "the dataset is founded without reading the log again",
        (
            "        list(self._entries())\n        self._publish",
            "        self.ledger.commit(manifest)\n        self._publish",
        ),
    ),
    _engine(
        "a founding that was aborted is projected",
        (
            "raise TemporaryError(\n"
            "                f\"{self.dataset}.commits: the dataset's first manifest was aborted",
            "str(\n"
            "                f\"{self.dataset}.commits: the dataset's first manifest was aborted",
        ),
    ),
    _engine(
        "a checkpoint forgets what nobody has projected",
        ("waiting=tuple(self._unseen.values()),", "waiting=(),"),
    ),
    _engine(
        "a checkpoint knows epochs of ours that the log gives back",
        (" or not self.ledger.is_as_read", ""),
        (
            "            self._read_as_last_of_our_name(CHECKPOINT_PATIENCE_S)\n",
            "            pass\n",
        ),
    ),
    _client(
        "the log is read to its stable end only",
        ("while self._broker.stable_end < target:", "while False:"),
        quick=True,
    ),
    _client(
        "an offset that is not known counts as none",
        (
            "        while self._broker.is_unstable(partitions):\n            self._wait_more(deadline)\n        answer = {p: self._broker.offsets.get(p) for p in partitions}",
            "        answer = {p: None if self._broker.is_unstable([p]) else self._broker.offsets.get(p) for p in partitions}",
        ),
    ),
    _replica(
        "epochs are numbered on after a drop",
        (
            "Run(line.fence.run.number + 1, self._engine.next_epoch)",
            "Run(line.fence.run.number + 1, line.fence.run.first_epoch)",
        ),
    ),
    _replica(
        "what is lost is not dropped",
        (
            '        self._drop("lost", current.sealed if current is not None else None)\n',
            "        pass\n",
        ),
    ),
    _replica(
        "what is retained is not rewound after a drop",
        ("        self._rewind = True\n", "        self._rewind = False\n"),
    ),
    _replica(
        "a revoked partition is neither drained nor dropped",
        (
            "            self._begin_run()  # what waited before the device is read again, by its new owner or by us\n",
            "            pass\n",
        ),
        ('and self._drain(self._revoke_deadline_s, lambda: None, "revoked")', "and True"),
    ),
    _replica(
        "what is in hand is handed on after it was dropped",
        (
            "            self._look_at_pauses()  # before a reopen: what is dropped must not be handed on\n",
            "",
        ),
        (
            "            if self._quarantine.is_open:\n                self._try_suspects()\n",
            "            if self._quarantine.is_open:\n                self._try_suspects()\n            self._look_at_pauses()\n",
        ),
        (
            "elif source.has_any and not self._rewind and line.chunks",
            "elif source.has_any and line.chunks",
        ),
        quick=True,
    ),
]

_HOST_CLOCK: Changes = (
    (
        "        now = self._trusted_now() if changed else None\n",
        "        now = time.time()\n",
    ),
)

SKEWED_MUTATIONS = [Mutation("ages are measured by the host's clock", {"storage": _HOST_CLOCK})]
"""What loses data where the clock of one host is off."""

_TRUSTING: Changes = (
    (
        "                return bound.missing(owned, self._engine.ledger, True) if owned else None\n",
        "                return None\n",
    ),
)
"""A replica that reports an end without asking the ledger."""

BOUNDED_MUTATIONS = [
    _replica(
        "what is to be rewound counts as read",
        ("if not self._rewind and bound.is_reached", "if bound.is_reached"),
        *_TRUSTING,
    ),
    _replica(
        "the last epoch before an assignment counts as the last one after it",
        (
            "            and finished.flush == self._flushes\n",
            "            and bool(finished.flush)\n",
        ),
        *_TRUSTING,
    ),
]
"""Ways to end a bounded run too early."""
