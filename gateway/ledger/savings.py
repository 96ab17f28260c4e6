"""What always asking one model would have cost: an estimate, with an interval.

For each answered request the ledger has the tokens its prompt was measured at and what answering it did cost. Had
model X been asked instead, it would have been paid for the same prompt and for an answer whose length nobody knows.
That length is predicted from X's own measured answers, by the length of the prompt: with X's answers in bins b of
prompt length, and r_i the price of one token written for request i,

    cost of X = Σ_i input price(prompt_i) + Σ_b Σ_{i in b} r_i · w_i,     w_i drawn from X's answers in b

The interval holds both what is not known of X's mean length in a bin (its answers are drawn anew, with replacement:
the bootstrap) and that each answer is one draw (a sum of many: normal, by the bin's variance). Requests that X itself
answered are counted at what X measured. Bootstrap: Efron, 1979, 10.1214/aos/1176344552.

Not known, and said wherever it is told: X counts tokens with a tokenizer of its own, would have had prefixes in its
cache, and was perhaps asked harder questions than the others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gateway.ledger.store import Read
from gateway.ledger.usage import GROUPS as COLUMNS
from gateway.limits.bounds import NANO
from protocol.errors import SettingsError
from protocol.usage import Price, Usage

__all__ = ["FEWEST", "GROUPS", "Saved", "Savings", "savings"]

FEWEST = 100
"""Measured answers of X below which nothing is estimated."""
MOST = 20_000
"""Of X's answers the newest so many are looked at."""
BINS = 8
FEWEST_IN_A_BIN = 25
DRAWS = 1000
LEVEL = 0.95
CHATS = "requests.outcome = 'ok' AND requests.path <> '/embeddings'"
GROUPS: Mapping[str, str] = {
    **{name: column for name, column in COLUMNS.items() if name != "outcome"},
    "model": "CASE WHEN min(calls.model) = max(calls.model) THEN min(calls.model) ELSE 'several' END",
}
"""By what savings can be told apart, as SQL of our own. Of a request that asked several models none is the model."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What a `group` of `requests` saved, in US dollars, as `Savings` tells of all; of them the model itself answered
    `measured`."""

    group: tuple[str, ...]
    requests: int
    measured: int
    spent_usd: float
    against_usd: float
    low_usd: float
    high_usd: float

    @property
    def usd(self) -> float:
        """The estimate itself; below 0 where the model would have been cheaper."""
        return self.against_usd - self.spent_usd


@dataclass(frozen=True, slots=True)
class Savings:
    """Against always asking `model`, in US dollars: `spent_usd` was, `against_usd` would have been; `low_usd` and
    `high_usd` bound the savings at 95 %. All four None with fewer than `FEWEST` of its `answers`.

    `requests` are compared; of them the model itself answered `measured`. `left_out`: answered without a measured
    prompt, such as those from the cache. `groups`: those that were asked for, dearest first.
    """

    model: str
    answers: int
    requests: int = 0
    measured: int = 0
    left_out: int = 0
    spent_usd: float | None = None
    against_usd: float | None = None
    low_usd: float | None = None
    high_usd: float | None = None
    groups: tuple[Saved, ...] = ()

    def wire(self) -> dict[str, Any]:
        """As JSON values."""
        groups = [{**asdict(one), "usd": one.usd} for one in self.groups]
        return {**asdict(self), "usd": self.usd, "groups": groups}

    @property
    def usd(self) -> float | None:
        """The estimate itself; below 0 where the model would have been cheaper."""
        if self.against_usd is None or self.spent_usd is None:
            return None
        return self.against_usd - self.spent_usd

    def told(self) -> str:
        """As a sentence."""
        if self.against_usd is None or self.spent_usd is None:
            return (
                f"Savings against always asking {self.model} are not estimated: that takes {FEWEST} measured answers "
                f"of {self.model}, and the ledger has {self.answers}."
            )
        return (
            f"Savings against always asking {self.model}: about {self.usd:.6f} USD "
            f"(95 %: {self.low_usd:.6f} to {self.high_usd:.6f}). "
            f"{self.requests} requests cost {self.spent_usd:.6f} USD; "
            f"{self.model} would have cost about {self.against_usd:.6f} USD, as its {self.answers} measured answers "
            f"predict; {self.measured} of the requests it answered itself, {self.left_out} without measured tokens are "
            "left out. An estimate: tokenizers differ, and it may have been asked the harder questions."
        )


def savings(
    read: Read,
    model: str,
    price: Price,
    since: float = 0.0,
    until: float = float("inf"),
    merging: Collection[str] = (),
    by: Sequence[str] = (),
) -> Savings:
    """Against always asking `model` at `price`, over requests from `since` until `until` (seconds since the epoch);
    told apart `by` names of `GROUPS`, too.

    `merging` names strategies whose calls are no answers of their own (fusions, votes): they teach nothing of the
    model's lengths. Raises `StateUnavailable`, `SettingsError`.
    """
    for name in by:
        if name not in GROUPS:
            raise SettingsError(f"savings by {name!r}: one of {', '.join(GROUPS)}.")
    sample = np.array(_answers(read, model, merging), float).reshape(-1, 3)
    if len(sample) < FEWEST:
        return Savings(model, len(sample))
    ((answered,),) = read(
        f"SELECT count(*) FROM requests WHERE {CHATS} AND at >= ? AND at < ?",  # noqa: S608 - SQL of our own
        [since, until],
    )
    pricing = _Pricing(price, sample)
    of_groups: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
    rows = _requests(read, model, since, until, by)
    for row in rows:
        of_groups.setdefault(tuple(map(str, row[4:])), []).append(row[:4])
    whole = pricing.saved((), [row[:4] for row in rows])
    groups = [pricing.saved(group, some) for group, some in of_groups.items()] if by else []
    return Savings(
        model,
        len(sample),
        whole.requests,
        whole.measured,
        answered - whole.requests,
        whole.spent_usd,
        whole.against_usd,
        whole.low_usd,
        whole.high_usd,
        tuple(sorted(groups, key=lambda one: (-one.spent_usd, one.group))),
    )


Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


class _Pricing:
    """What requests would have cost at `price`, with answers as long as those of the `sample`: prompt, written and
    reasoning tokens of measured answers, shape (n, 3)."""

    def __init__(self, price: Price, sample: Floats) -> None:
        self._price = price
        self._reasoning = sample[:, 2].sum() / sample[:, 1].sum()
        self._random = random = np.random.default_rng(0)
        bins = min(BINS, len(sample) // FEWEST_IN_A_BIN)
        self._edges = np.unique(np.quantile(sample[:, 0], np.arange(1, bins) / bins))
        of_answers = np.searchsorted(self._edges, sample[:, 0], side="right")
        self._bins: dict[int, tuple[float, Floats, Floats]] = {}
        """Of each bin the mean length; and of its answers drawn anew, `DRAWS` times, mean and deviation."""
        for number in range(len(self._edges) + 1):
            written = sample[of_answers == number, 1]
            if len(written):
                anew = written[random.integers(len(written), size=(DRAWS, len(written)))]
                self._bins[number] = float(written.mean()), anew.mean(axis=1), anew.std(axis=1)

    def saved(self, group: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> Saved:
        """Of the `rows` that `_requests` gives."""
        asked, own, counts, spent = np.array(rows, float).reshape(-1, 4).T
        read_usd = np.array([self._price.cost_usd(Usage(int(tokens))) for tokens in asked])
        write_usd = np.array([_token_usd(self._price, int(tokens), self._reasoning) for tokens in asked])
        known = own >= 0
        certain = float((counts * read_usd).sum() + (counts * write_usd * own)[known].sum())
        drawn, expected = self._drawn(asked[~known], (counts * write_usd)[~known], write_usd[~known])
        spent_usd = float(spent.sum()) / NANO
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Saved(
            group,
            int(counts.sum()),
            int(counts[known].sum()),
            spent_usd,
            certain + expected,
            certain + float(low) - spent_usd,
            certain + float(high) - spent_usd,
        )

    def _drawn(self, asked: Floats, rates: Floats, rate: Floats) -> tuple[Floats, float]:
        """What the answers would have cost, `DRAWS` times, and as expected. `rates`: of each group of requests with
        `asked` prompt tokens, US dollars a token, times their number."""
        of_requests = np.searchsorted(self._edges, asked, side="right")
        drawn, expected = np.zeros(DRAWS), 0.0
        for number, (mean, means, deviations) in self._bins.items():
            mine = of_requests == number
            if mine.any():
                sum_usd = rates[mine].sum()
                scatter = np.sqrt((rates[mine] * rate[mine]).sum())
                drawn += sum_usd * means + self._random.standard_normal(DRAWS) * scatter * deviations
                expected += float(sum_usd * mean)
        return drawn, expected


def _answers(read: Read, model: str, merging: Collection[str]) -> list[tuple[int, int, int]]:
    """Prompt, written and reasoning tokens of the newest measured answers of `model`."""
    names = sorted(merging)
    where = f"AND requests.strategy NOT IN ({', '.join('?' * len(names))})" if names else ""
    return read(
        "SELECT calls.prompt_tokens, calls.completion_tokens, calls.reasoning_tokens "  # noqa: S608 - SQL of our own
        "FROM calls JOIN requests ON requests.id = calls.request "
        f"WHERE calls.model = ? AND {CHATS} AND calls.kind = 'answer' AND calls.outcome = 'ok' "
        f"AND calls.estimated = 0 AND calls.completion_tokens > 0 {where} ORDER BY calls.at DESC LIMIT {MOST}",
        [model, *names],
    )


def _requests(read: Read, model: str, since: float, until: float, by: Sequence[str]) -> list[tuple[Any, ...]]:
    """Alike requests: prompt tokens; what `model` wrote itself, -1 where it was not asked; how many they are; what they
    cost in nanodollars; then what they are told apart `by`. Of a request's calls the shortest prompt is the caller's:
    judges and later stages read more."""
    columns = "".join(f", {GROUPS[name]} AS by_{number}" for number, name in enumerate(by))
    names = "".join(f", by_{number}" for number in range(len(by)))
    return read(
        f"SELECT asked, own, count(*), sum(cost){names} FROM ("  # noqa: S608 - SQL of our own
        "SELECT coalesce(min(CASE WHEN calls.model = ? THEN calls.prompt_tokens END), "
        "min(calls.prompt_tokens)) AS asked, "
        "coalesce(min(CASE WHEN calls.model = ? THEN calls.completion_tokens END), -1) AS own, "
        f"requests.cost_nano AS cost{columns} FROM requests JOIN calls ON calls.request = requests.id "
        f"WHERE {CHATS} AND requests.at >= ? AND requests.at < ? "
        "AND calls.kind = 'answer' AND calls.outcome = 'ok' AND calls.prompt_tokens > 0 "
        f"GROUP BY requests.id, requests.cost_nano) AS answered GROUP BY asked, own{names}",
        [model, model, since, until],
    )


def _token_usd(price: Price, prompt_tokens: int, reasoning: float) -> float:
    """The price of one token written after a prompt of this length, of which a part is hidden reasoning."""
    many = 1_000_000
    usage = Usage(prompt_tokens, many, reasoning_tokens=round(many * reasoning))
    return (price.cost_usd(usage) - price.cost_usd(Usage(prompt_tokens))) / many
