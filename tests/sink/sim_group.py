"""The consumer group's coordinator, with cooperative rebalances: it fences members and generations,
never partitions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sim_schedule import Schedule

SESSION_S = 4.5
POLL_INTERVAL_S = 30.0
"""The service's own values, ten times as fast."""


@dataclass(frozen=True)
class Membership:
    member: int
    generation: int


@dataclass(eq=False)
class Member:
    id: int
    instance: str | None
    wake: Callable[[], None]
    is_present: Callable[[], bool]
    """False while the process is dead or frozen."""
    last_poll: float
    owned: set[int] = field(default_factory=set)
    generation: int = -1
    events: list[tuple[str, set[int]]] = field(default_factory=list)
    rejoin: Callable[[], None] | None = None
    """How a hasty client joins again by itself."""
    busy: bool = False
    """Inside a callback."""
    gone_since: float = float("inf")
    state: str = "joined"
    """``lost``: the group went on without it; ``replaced``: a new process took its instance id."""


class Group:
    """The coordinator, with cooperative rebalances: what moves is revoked in one round and assigned
    in the next."""

    def __init__(
        self, schedule: Schedule, partitions: Callable[[], int], poll_interval_s: float
    ) -> None:
        """``partitions``: how many the topic has now."""
        self._schedule = schedule
        self._partitions = partitions
        self._poll_interval_s = poll_interval_s
        self.generation = 0
        self.members: dict[int, Member] = {}
        self.turn = 0
        """Turning it moves partitions between members at the next round."""
        self._left: list[Member] = []
        self._ids = 0
        self._dirty = False

    # Members

    def join(
        self,
        instance: str | None,
        wake: Callable[[], None],
        is_present: Callable[[], bool],
        rejoin: Callable[[], None] | None,
    ) -> Member:
        self._ids += 1
        member = Member(self._ids, instance, wake, is_present, self._schedule.now, rejoin=rejoin)
        older = next(
            (m for m in self.members.values() if instance is not None and m.instance == instance),
            None,
        )
        if older is not None:
            self._replace(older, member)
        else:
            self._dirty = True
        self.members[member.id] = member
        return member

    def _replace(self, older: Member, member: Member) -> None:
        """A static member that restarts gets its partitions back, in the same generation, without a
        rebalance."""
        del self.members[older.id]
        older.state = "replaced"
        older.wake()
        if older.generation != self.generation or older.events or older.busy:
            self._dirty = True
        else:
            member.generation = older.generation
            member.events.append(("assign", set(older.owned)))

    def leave(self, member: Member) -> None:
        if self.members.pop(member.id, None) is not None:
            member.state = "lost"
            self._left.append(member)
            member.wake()
            self._dirty = True

    def is_current(self, membership: Membership) -> bool:
        return membership.member in self.members and membership.generation == self.generation

    def assigned(self, member_id: int) -> set[int] | None:
        """As the coordinator sees it: what a member will own after its callbacks."""
        member = self.members.get(member_id)
        if member is None or self._dirty:
            return None
        owned = set(member.owned)
        for kind, partitions in member.events:
            owned = owned | partitions if kind == "assign" else owned - partitions
        return owned

    def acknowledge(self, member: Member, kind: str, partitions: set[int]) -> None:
        """The client went through a callback."""
        if kind == "assign":
            member.owned |= partitions
        else:
            member.owned -= partitions
            self._dirty = True

    def turn_around(self) -> None:
        self.turn += 1
        self._dirty = True

    def grown(self) -> None:
        """The topic has more partitions."""
        self._dirty = True

    # Time

    def tick(self) -> None:
        """Sessions and poll intervals run out; a round is held when every member can take part."""
        now = self._schedule.now
        for member in [m for m in self._left if m.is_present() and not m.busy]:
            self._left.remove(member)
            if member.rejoin is not None and member.state == "lost":
                member.state = "left"
                member.rejoin()
        for member in list(self.members.values()):
            if member.is_present():
                member.gone_since = float("inf")
                if now - member.last_poll > self._poll_interval_s:
                    self.leave(member)
            else:
                member.gone_since = min(member.gone_since, now)
                if now - member.gone_since > SESSION_S:
                    self.leave(member)
        if self._dirty and all(
            not m.events and not m.busy and m.is_present() for m in self.members.values()
        ):
            self._round()

    def _round(self) -> None:
        self._dirty = False
        self.generation += 1
        target = self._target()
        held = {p for m in self.members.values() for p in m.owned}
        for member in self.members.values():
            member.generation = self.generation
            revoked = member.owned - target[member.id]
            granted = {p for p in target[member.id] if p not in held}
            if revoked:
                member.events.append(("revoke", revoked))
            if granted or not revoked:
                member.events.append(("assign", granted))
            member.wake()

    def _target(self) -> dict[int, set[int]]:
        """Sticky and even; `turn` shifts who gets what."""
        members = sorted(self.members.values(), key=lambda m: m.id)
        partitions = set(range(self._partitions()))
        target: dict[int, set[int]] = {m.id: set() for m in members}
        if not members:
            return target
        if self.turn:
            for p in partitions:
                target[members[(p + self.turn) % len(members)].id].add(p)
            self.turn = 0
            return target
        quota = -(-len(partitions) // len(members))
        for member in members:
            target[member.id] = set(sorted(member.owned)[:quota])
        for p in sorted(partitions - {p for t in target.values() for p in t}):
            least = min(
                members, key=lambda m: (len(target[m.id]), (m.id + self.generation) % len(members))
            )
            target[least.id].add(p)
        return target
