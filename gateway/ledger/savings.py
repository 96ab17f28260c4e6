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

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from gateway.ledger.store import LedgerStore
from gateway.limits.bounds import NANO
from protocol.usage import Price, Usage

__all__ = ["FEWEST", "Savings", "savings"]

FEWEST = 100
"""Measured answers of X below which nothing is estimated."""
MOST = 20_000
"""Of X's answers the newest so many are looked at."""
BINS = 8
FEWEST_IN_A_BIN = 25
DRAWS = 1000
LEVEL = 0.95
CHATS = "requests.outcome = 'ok' AND requests.path <> '/embeddings'"


@dataclass(frozen=True, slots=True)
class Savings:
    """Against always asking `model`, in US dollars: `spent_usd` was, `against_usd` would have been; `low_usd` and
    `high_usd` bound the savings at 95 %. All four None with fewer than `FEWEST` of its `answers`.

    `requests` are compared; of them the model itself answered `measured`. `left_out`: answered without a measured
    prompt, such as those from the cache.
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
    store: LedgerStore,
    model: str,
    price: Price,
    since: float = 0.0,
    until: float = float("inf"),
    merging: Collection[str] = (),
) -> Savings:
    """Against always asking `model` at `price`, over requests from `since` until `until` (seconds since the epoch).

    `merging` names strategies whose calls are no answers of their own (fusions, votes): they teach nothing of the
    model's lengths. Raises `StateUnavailable`, `SettingsError`.
    """
    if not store.exists():
        return Savings(model, 0)
    sample = np.array(_answers(store, model, merging), float).reshape(-1, 3)
    if len(sample) < FEWEST:
        return Savings(model, len(sample))
    asked, own, counts, spent = _requests(store, model, since, until)
    ((answered,),) = store.read(
        f"SELECT count(*) FROM requests WHERE {CHATS} AND at >= ? AND at < ?",  # noqa: S608 - SQL of our own
        [since, until],
    )
    read_usd = np.array([price.cost_usd(Usage(int(tokens))) for tokens in asked])
    reasoning = sample[:, 2].sum() / sample[:, 1].sum()
    write_usd = np.array([_token_usd(price, int(tokens), reasoning) for tokens in asked])
    known = own >= 0
    certain = float((counts * read_usd).sum() + (counts * write_usd * own)[known].sum())
    drawn, expected = _drawn(sample[:, :2], asked[~known], (counts * write_usd)[~known], write_usd[~known])
    spent_usd = float(spent.sum()) / NANO
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    requests = int(counts.sum())
    return Savings(
        model,
        answers=len(sample),
        requests=requests,
        measured=int(counts[known].sum()),
        left_out=answered - requests,
        spent_usd=spent_usd,
        against_usd=certain + expected,
        low_usd=certain + float(low) - spent_usd,
        high_usd=certain + float(high) - spent_usd,
    )


Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def _drawn(sample: Floats, asked: Floats, rates: Floats, rate: Floats) -> tuple[Floats, float]:
    """What the answers would have cost, `DRAWS` times, and as expected. `sample`: prompt tokens and written tokens of
    answers; `rates`: of each group of requests with `asked` prompt tokens, US dollars a token, times their number."""
    random = np.random.default_rng(0)
    bins = min(BINS, len(sample) // FEWEST_IN_A_BIN)
    edges = np.unique(np.quantile(sample[:, 0], np.arange(1, bins) / bins))
    of_answers = np.searchsorted(edges, sample[:, 0], side="right")
    of_requests = np.searchsorted(edges, asked, side="right")
    drawn, expected = np.zeros(DRAWS), 0.0
    for number in range(len(edges) + 1):
        written = sample[of_answers == number, 1]
        mine = of_requests == number
        if not len(written) or not mine.any():
            continue
        resampled = written[random.integers(len(written), size=(DRAWS, len(written)))]
        sum_usd = rates[mine].sum()
        scatter = np.sqrt((rates[mine] * rate[mine]).sum())
        noise = random.standard_normal(DRAWS) * scatter * resampled.std(axis=1)
        drawn += sum_usd * resampled.mean(axis=1) + noise
        expected += float(sum_usd * written.mean())
    return drawn, expected


def _answers(store: LedgerStore, model: str, merging: Collection[str]) -> list[tuple[int, int, int]]:
    """Prompt, written and reasoning tokens of the newest measured answers of `model`."""
    names = sorted(merging)
    where = f"AND requests.strategy NOT IN ({', '.join('?' * len(names))})" if names else ""
    return store.read(
        "SELECT calls.prompt_tokens, calls.completion_tokens, calls.reasoning_tokens "  # noqa: S608 - SQL of our own
        "FROM calls JOIN requests ON requests.id = calls.request "
        f"WHERE calls.model = ? AND {CHATS} AND calls.kind = 'answer' AND calls.outcome = 'ok' "
        f"AND calls.estimated = 0 AND calls.completion_tokens > 0 {where} ORDER BY calls.at DESC LIMIT {MOST}",
        [model, *names],
    )


def _requests(
    store: LedgerStore, model: str, since: float, until: float
) -> tuple[Floats, Floats, Floats, Floats]:
    """Groups of alike requests: prompt tokens; what `model` wrote itself, -1 where it was not asked; how many they
    are; what they cost in nanodollars. Of a request's calls the shortest prompt is the caller's: judges and later
    stages read more."""
    rows = store.read(
        "SELECT asked, own, count(*), sum(cost) FROM ("  # noqa: S608 - SQL of our own
        "SELECT coalesce(min(CASE WHEN calls.model = ? THEN calls.prompt_tokens END), "
        "min(calls.prompt_tokens)) AS asked, "
        "coalesce(min(CASE WHEN calls.model = ? THEN calls.completion_tokens END), -1) AS own, "
        "requests.cost_nano AS cost FROM requests JOIN calls ON calls.request = requests.id "
        f"WHERE {CHATS} AND requests.at >= ? AND requests.at < ? "
        "AND calls.kind = 'answer' AND calls.outcome = 'ok' AND calls.prompt_tokens > 0 "
        "GROUP BY requests.id, requests.cost_nano) AS answered GROUP BY asked, own",
        [model, model, since, until],
    )
    asked, own, counts, spent = np.array(rows, float).reshape(-1, 4).T
    return asked, own, counts, spent


def _token_usd(price: Price, prompt_tokens: int, reasoning: float) -> float:
    """The price of one token written after a prompt of this length, of which a part is hidden reasoning."""
    many = 1_000_000
    usage = Usage(prompt_tokens, many, reasoning_tokens=round(many * reasoning))
    return (price.cost_usd(usage) - price.cost_usd(Usage(prompt_tokens))) / many
