"""Which of a model's deployments is asked. No clock and no socket: `now` goes in, a choice comes out.

A deployment is a candidate when its breaker admits a call and its limits have room. Among the candidates
that were not tried yet for this call (all, when each was) one is chosen:

    session      the caller's session always goes to the same deployment, so that its prompt cache is warm
                 (rendezvous hashing by weight: when one goes, only its sessions move)
    fastest      power of two choices: of two drawn by weight, the one with the lower expected wait, EWMA of
                 latency × (calls under way + 1); a new one is expected to be fast, and so is tried
    least-busy   fewest calls under way per weight
    weighted     at random by weight

Ties go to the deployment that was chosen the longest time ago.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal

from backends.breaker import Breaker
from backends.bucket import Bucket
from backends.http1 import NO_HEADERS
from protocol.errors import UpstreamError

__all__ = ["Balancer", "Full", "Rule", "Seat", "Turn"]

Rule = Literal["fastest", "least-busy", "weighted"]
SMOOTHING = 0.2
"""Weight of the newest latency in the moving average."""


@dataclass(slots=True)
class Seat:
    """What is known of one deployment. `max_concurrent`, `rpm`, `tpm` are this worker's share of the limits."""

    weight: float = 1.0
    breaker: Breaker = field(default_factory=Breaker)
    max_concurrent: int | None = None
    requests: Bucket | None = None
    tokens: Bucket | None = None
    under_way: int = 0
    latency_s: float = 0.0
    chosen_at: int = 0

    def room_at(self, now: float, tokens: float) -> float | None:
        """When its limits have room for a call of `tokens`; None: when one of its calls ends."""
        if self.max_concurrent is not None and self.under_way >= self.max_concurrent:
            return None
        wait_s = self.requests.wait_s(now, 1.0) if self.requests else 0.0
        if self.tokens:
            wait_s = max(wait_s, self.tokens.wait_s(now, tokens))
        return now + wait_s


@dataclass(frozen=True, slots=True)
class Full:
    """Nobody can be asked now. `at`: when somebody can, None when that depends on calls under way; `limits`:
    whether limits of ours are the reason, and not the deployments' failures."""

    at: float | None
    limits: bool


class Turn:
    """One attempt at a deployment, from its choice to its end. The first verdict counts; `release` is none."""

    def __init__(self, seat: Seat, index: int, began: float, probe: bool) -> None:
        self.index, self._seat, self._began, self._probe = index, seat, began, probe
        self._judged = self._released = False
        self.headers = NO_HEADERS
        """What goes out with this attempt beside the deployment's own headers."""

    def began(self, now: float) -> None:
        """It answers: the latency that the balancer goes by."""
        seat, latency_s = self._seat, now - self._began
        seat.latency_s += SMOOTHING * (latency_s - seat.latency_s) if seat.latency_s else latency_s

    def succeeded(self, now: float, tokens: float = 0.0) -> None:
        """It was answered; `tokens` beyond those counted at its start."""
        if not self._judged:
            self._judged = True
            self._seat.breaker.succeeded(probe=self._probe)
            if self._seat.tokens and tokens > 0:
                self._seat.tokens.take(now, tokens)
        self.release()

    def failed(self, now: float, error: UpstreamError) -> None:
        """It ended by `error`: a verdict on the deployment where that is to blame (`blames_backend`), else none."""
        if error.blames_backend and not self._judged:
            self._judged = True
            self._seat.breaker.failed(now, probe=self._probe, wait_s=error.asked_s)
        self.release()

    def release(self) -> None:
        """It ended; safe to repeat."""
        if not self._released:
            self._released = True
            self._seat.under_way -= 1
            if not self._judged:
                self._seat.breaker.left(probe=self._probe)


class Balancer:
    """Chooses among `seats` by `rule`; `draw` makes the random numbers."""

    def __init__(
        self, seats: Sequence[Seat], rule: Rule = "fastest", draw: random.Random | None = None
    ) -> None:
        self.seats = tuple(seats)
        self._rule, self._draw = rule, draw or random.Random()
        self._turns = 0

    def choose(
        self, now: float, *, tokens: float = 0.0, tried: Collection[int] = (), session: str | None = None
    ) -> Turn | Full:
        """Take a turn at a deployment for a call of about `tokens`, preferring those not yet `tried`."""
        admitted, opens, rooms, healthy = [], [], [], False
        for i, seat in enumerate(self.seats):
            at = seat.breaker.opens_at(now)
            if at is None or at > now:
                opens.append(at)
                continue
            healthy = True
            at = seat.room_at(now, tokens)
            if at is None or at > now:
                rooms.append(at)
            else:
                admitted.append(i)
        if not admitted:
            known = [at for at in (rooms if healthy else opens) if at is not None]
            return Full(min(known, default=None), limits=healthy)
        candidates = [i for i in admitted if i not in tried] or admitted
        index = candidates[0] if len(candidates) == 1 else self._pick(candidates, session)
        return self._take(index, now, tokens)

    def untried(self, now: float, tried: Collection[int]) -> bool:
        """Whether a deployment not yet `tried` would be admitted by its breaker."""
        return any(
            i not in tried and (at := seat.breaker.opens_at(now)) is not None and at <= now
            for i, seat in enumerate(self.seats)
        )

    def _take(self, index: int, now: float, tokens: float) -> Turn:
        seat = self.seats[index]
        self._turns += 1
        seat.chosen_at = self._turns
        seat.under_way += 1
        if seat.requests:
            seat.requests.take(now, 1.0)
        if seat.tokens:
            seat.tokens.take(now, tokens)
        return Turn(seat, index, now, seat.breaker.started())

    def _pick(self, candidates: Sequence[int], session: str | None) -> int:
        if session is not None:
            return max(candidates, key=lambda i: _affinity(session, i, self.seats[i].weight))
        if self._rule == "least-busy":
            return min(candidates, key=self._busy)
        weights = [self.seats[i].weight for i in candidates]
        first: int = self._draw.choices(candidates, weights)[0]
        if self._rule == "weighted":
            return first
        others = [i for i in candidates if i != first]
        second: int = self._draw.choices(others, [self.seats[i].weight for i in others])[0]
        return min((first, second), key=self._wait)

    def _busy(self, index: int) -> tuple[float, int]:
        seat = self.seats[index]
        return seat.under_way / seat.weight, seat.chosen_at

    def _wait(self, index: int) -> tuple[float, float, int]:
        seat = self.seats[index]
        return seat.latency_s * (seat.under_way + 1), seat.under_way / seat.weight, seat.chosen_at


def _affinity(session: str, index: int, weight: float) -> float:
    """The score by which a session ranks a deployment: weighted rendezvous hashing."""
    digest = blake2b(f"{index}:{session}".encode(), digest_size=8).digest()
    return -weight / math.log((int.from_bytes(digest) + 1) / (2**64 + 2))
