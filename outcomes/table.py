"""The outcome table: graded answers of models to queries, long on disk, matrices in memory.

On disk a row is one (query, model): parquet written here, or a folder with `queries*.jsonl.gz` and
`outcomes*.jsonl.gz` or `outcomes*.csv.gz`. In memory every quantity is a matrix of shape (n_queries,
n_models) with NaN (or None) where nothing was measured: a missing value means unknown, never zero.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import orjson

from protocol.errors import MethodError
from protocol.routing import Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "OutcomeTable",
    "Row",
    "hash_folds",
    "normalised_text",
    "query_id",
    "read_table",
    "split",
    "split_mask",
    "write_table",
]

UNKNOWN = math.nan
NUMBERS = ("score", "cost_usd", "prompt_tokens", "completion_tokens", "latency_s")


@dataclass(frozen=True, slots=True)
class Row:
    """One graded answer. `score` in [0, 1]; `cost_usd` US dollars; `latency_s` seconds; `logprobs` the
    natural-log probability of every generated token. NaN, and None, say that the value is unknown."""

    query_id: str
    query: str
    category: str
    model: str
    score: float = UNKNOWN
    cost_usd: float = UNKNOWN
    prompt_tokens: float = UNKNOWN
    completion_tokens: float = UNKNOWN
    latency_s: float = UNKNOWN
    response: str | None = None
    logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class OutcomeTable:
    """An outcome table as matrices of shape (n_queries, n_models); implements `protocol.routing.Outcomes`."""

    models: tuple[str, ...]
    query_ids: tuple[str, ...]
    categories: tuple[str, ...]
    queries: Queries
    score: NDArray[np.float64]
    cost_usd: NDArray[np.float64]
    prompt_tokens: NDArray[np.float64]
    completion_tokens: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    response: NDArray[np.object_]
    logprobs: NDArray[np.object_]

    @classmethod
    def of(cls, rows: Iterable[Row], models: Sequence[str] | None = None) -> Self:
        """The table of `rows`, queries in order of first appearance; of two rows for one (query, model) the
        later counts. `models` fixes the columns: rows of other models are left out, models without a row
        stay empty."""
        rows = list(rows)
        columns = {name: i for i, name in enumerate(models or dict.fromkeys(row.model for row in rows))}
        rows = [row for row in rows if row.model in columns]
        first: dict[str, Row] = {}
        for row in rows:
            first.setdefault(row.query_id, row)
        at = {id: i for i, id in enumerate(first)}
        shape = (len(at), len(columns))
        numbers = {name: np.full(shape, UNKNOWN) for name in NUMBERS}
        response, logprobs = np.full(shape, None), np.full(shape, None)
        for row in rows:
            cell = at[row.query_id], columns[row.model]
            for name, matrix in numbers.items():
                matrix[cell] = getattr(row, name)
            response[cell], logprobs[cell] = row.response, row.logprobs
        return cls(
            tuple(columns),
            tuple(first),
            tuple(row.category for row in first.values()),
            Queries([row.query for row in first.values()]),
            response=response,
            logprobs=logprobs,
            **numbers,
        )

    @classmethod
    def of_matrices(
        cls,
        models: Sequence[str],
        texts: Sequence[str],
        score: NDArray[np.float64],
        cost_usd: NDArray[np.float64] | None = None,
        *,
        embeddings: NDArray[np.float32] | None = None,
        categories: Sequence[str] | None = None,
    ) -> Self:
        """A table from matrices at hand; what is not given is unknown. `score`: shape (n_texts, n_models)."""
        unknown = np.full(score.shape, UNKNOWN)
        return cls(
            tuple(models),
            tuple(query_id(text) for text in texts),
            tuple(categories or [""] * len(texts)),
            Queries(tuple(texts), embeddings),
            np.asarray(score, dtype=np.float64),
            unknown if cost_usd is None else np.asarray(cost_usd, dtype=np.float64),
            unknown,
            unknown,
            unknown,
            np.full(score.shape, None),
            np.full(score.shape, None),
        )

    def __len__(self) -> int:
        return len(self.query_ids)

    @property
    def mean_logprob(self) -> NDArray[np.float64]:
        """Mean natural-log probability of each answer's tokens; NaN where none were recorded."""
        cells: list[tuple[float, ...] | None] = self.logprobs.ravel().tolist()
        flat = [math.fsum(cell) / len(cell) if cell else UNKNOWN for cell in cells]
        return np.array(flat, dtype=np.float64).reshape(self.score.shape)

    def take(self, rows: Any) -> Self:
        """The table of some queries: `rows` is whatever indexes a numpy array (mask, indices, slice)."""
        picked = np.arange(len(self))[rows]
        vectors = self.queries.embeddings
        return replace(
            self,
            query_ids=tuple(self.query_ids[i] for i in picked),
            categories=tuple(self.categories[i] for i in picked),
            queries=Queries(
                [self.queries.texts[i] for i in picked], None if vectors is None else vectors[picked]
            ),
            **{name: getattr(self, name)[picked] for name in (*NUMBERS, "response", "logprobs")},
        )

    def only(self, models: Sequence[str]) -> Self:
        """The table of some models, columns in the order given. Raises `MethodError` for a model it does
        not have."""
        missing = [name for name in models if name not in self.models]
        if missing:
            raise MethodError(
                f"The outcome table has no model {missing[0]!r}; it has {', '.join(self.models)}."
            )
        columns = [self.models.index(name) for name in models]
        matrices = {name: getattr(self, name)[:, columns] for name in (*NUMBERS, "response", "logprobs")}
        return replace(self, models=tuple(models), **matrices)

    def embedded(self, embeddings: NDArray[np.float32]) -> Self:
        """The same table with unit-length `embeddings`, shape (n_queries, dimensions)."""
        if len(embeddings) != len(self):
            raise ValueError(f"{len(embeddings)} embeddings for {len(self)} queries")
        return replace(self, queries=Queries(self.queries.texts, embeddings))

    def rows(self) -> Iterator[Row]:
        """The long form: a row for every cell where anything was measured."""
        for i, id in enumerate(self.query_ids):
            for j, model in enumerate(self.models):
                numbers = {name: float(getattr(self, name)[i, j]) for name in NUMBERS}
                response = self.response[i, j]
                if response is None and all(math.isnan(number) for number in numbers.values()):
                    continue
                text, category = self.queries.texts[i], self.categories[i]
                yield Row(
                    id, text, category, model, response=response, logprobs=self.logprobs[i, j], **numbers
                )

    def digest(self) -> str:
        """A hash of what a router learns from (texts, models, scores, costs), whatever the order of rows
        and columns."""
        texts = [normalised_text(text) for text in self.queries.texts]
        rows = sorted(range(len(self)), key=lambda i: (texts[i], self.query_ids[i]))
        columns = sorted(range(len(self.models)), key=self.models.__getitem__)
        hashed = hashlib.sha256(orjson.dumps([[self.models[j] for j in columns], [texts[i] for i in rows]]))
        for matrix in (self.score, self.cost_usd):
            ordered = matrix[rows][:, columns]
            hashed.update(np.where(np.isnan(ordered), UNKNOWN, ordered).tobytes())
        return hashed.hexdigest()[:16]


def query_id(text: str) -> str:
    """The id of a query: a hash of its text, so that the same question has the same id everywhere."""
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


def split_mask(texts: Sequence[str], share: float, salt: str) -> NDArray[np.bool_]:
    """Which texts fall into a part that holds about `share` of them, shape (n_texts,).

    Decided by a hash of each text (case and white space aside), so that copies of a question never straddle
    two parts and the answer does not depend on the other texts. A different `salt` makes an independent
    split.
    """
    limit = int(share * 2**32)
    marks = [hashlib.sha256(f"{salt}\0{normalised_text(text)}".encode()).digest() for text in texts]
    return np.array([int.from_bytes(mark[:4], "big") < limit for mark in marks], dtype=np.bool_)


def hash_folds(texts: Sequence[str], folds: int, salt: str) -> NDArray[np.intp]:
    """A fold in [0, folds) for each text, by its hash as in `split_mask`, all of about one size."""
    fold = np.zeros(len(texts), dtype=np.intp)
    for i in range(1, folds):
        # A share of 1/(i+1) moves to fold i, which leaves all equal in the end.
        fold[split_mask(texts, 1 / (i + 1), f"{salt} {i}")] = i
    return fold


def split(table: OutcomeTable, share: float = 0.3, salt: str = "test") -> tuple[OutcomeTable, OutcomeTable]:
    """Two tables, (rest, held out), the second with about `share` of the queries; see `split_mask`."""
    held_out = split_mask(table.queries.texts, share, salt)
    return table.take(~held_out), table.take(held_out)


def write_table(table: OutcomeTable, path: Path) -> None:
    """Write `table` as a parquet file, atomically."""
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema(
        [(name, pyarrow.string()) for name in ("query_id", "query", "category", "model")]
        + [(name, pyarrow.float64()) for name in NUMBERS]
        + [("response", pyarrow.string()), ("logprobs", pyarrow.list_(pyarrow.float64()))]
    )
    rows = [{field.name: getattr(row, field.name) for field in fields(Row)} for row in table.rows()]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema), draft, compression="zstd")
    draft.replace(path)


def read_table(path: Path) -> OutcomeTable:
    """Read a parquet file, or a folder of `queries*.jsonl.gz` and `outcomes*`. Raises `MethodError`."""
    if path.is_dir():
        return OutcomeTable.of(_folder_rows(path))
    if not path.is_file():
        raise MethodError(f"No outcome table at {path}; `chorus collect` writes one.")
    import pyarrow
    from pyarrow import parquet

    try:
        columns = parquet.read_table(path, memory_map=False).to_pydict()
    except pyarrow.ArrowException as error:
        raise MethodError(
            f"{path} is not a parquet file ({error}); `chorus outcomes import` reads CSV and JSON lines."
        ) from None
    names = [field.name for field in fields(Row)]
    missing = [name for name in names[:5] if name not in columns]
    if missing:
        raise MethodError(f"{path} has no column {missing[0]!r}; it has {', '.join(columns)}.")
    known = [name for name in names if name in columns]
    return OutcomeTable.of(
        Row(**dict(zip(known, map(_cell, known, values), strict=True)))
        for values in zip(*(columns[name] for name in known), strict=True)
    )


def _cell(name: str, value: Any) -> Any:
    """A value of a long row as `Row` wants it: unknown numbers as NaN, log-probabilities as a tuple."""
    if name in NUMBERS:
        return UNKNOWN if value is None or value == "" else float(value)
    return tuple(value) if name == "logprobs" and value is not None else value


def _folder_rows(folder: Path) -> Iterator[Row]:
    """Rows of the folder layout; a query's category is its benchmark where it names one."""
    queries = {
        query["query_id"]: query
        for path in sorted(folder.glob("queries*.jsonl.gz"))
        for query in _records(path)
    }
    if not queries:
        raise MethodError(f"{folder} has no queries*.jsonl.gz.")
    for path in sorted(folder.glob("outcomes*.gz")):
        for record in _records(path):
            query = queries[record["query_id"]]
            yield Row(
                record["query_id"],
                query["query"],
                query.get("benchmark") or query.get("category") or "",
                record["model"],
                response=record.get("response"),
                **{name: _cell(name, record.get(name)) for name in NUMBERS},
            )


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
        if path.name.endswith(".csv.gz"):
            yield from csv.DictReader(lines)
        else:
            yield from map(orjson.loads, lines)


def normalised_text(text: str) -> str:
    """Text up to case, Unicode form and white space: what counts as a copy when splitting."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
