"""What the claim log's verdict, or a pre-check, makes of a decision. Pure."""

from __future__ import annotations

from streamer.records import I64, NEAR_DUPLICATE, Claim, Decision


def by_prior(prior: Claim, now: Decision, flags: bool) -> Decision:
    """The outcome of an earlier claim of the same origin is final; what the filters say now is only
    flagged."""
    failed = now.flags if now.outcome != "invalid" else (*now.flags, now.reason or "")
    kept = Decision("accepted", None, failed, claim=prior.position)
    if prior.won:
        return kept
    if prior.duplicate_of is None or prior.similarity is None:
        return Decision("invalid", "withdrawn", failed, claim=prior.position)
    return duplicate(kept, prior.duplicate_of, prior.similarity, prior.position, flags)


def duplicate(
    decision: Decision,
    winner: tuple[int, int] | I64,
    similarity: float,
    claim: int | None,
    flags: bool,
) -> Decision:
    """The decision about a record that is near a winner, given by its (partition, offset): a
    duplicate, or with ``dedup.action: flag`` an accepted one that says so."""
    origin = (int(winner[0]), int(winner[1]))
    if flags:
        return decision._replace(
            flags=(*decision.flags, NEAR_DUPLICATE),
            duplicate_of=origin,
            similarity=similarity,
            claim=claim,
        )
    return decision._replace(
        outcome="duplicate",
        reason=NEAR_DUPLICATE,
        duplicate_of=origin,
        similarity=similarity,
        claim=claim,
    )
