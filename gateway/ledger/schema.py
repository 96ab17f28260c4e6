"""The ledger's tables, step by step; a step that was released is never changed."""

__all__ = ["MIGRATIONS"]

MIGRATIONS = (
    """
    CREATE TABLE requests (
        id TEXT PRIMARY KEY,
        request_id TEXT NOT NULL,
        at REAL NOT NULL,
        key TEXT NOT NULL,
        alias TEXT,
        owner TEXT,
        team TEXT,
        tags TEXT,
        user TEXT,
        metadata TEXT,
        path TEXT NOT NULL,
        requested TEXT NOT NULL,
        strategy TEXT NOT NULL,
        outcome TEXT NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        cost_nano INTEGER NOT NULL,
        latency_s REAL NOT NULL,
        decision TEXT
    ) WITHOUT ROWID;
    CREATE INDEX requests_at ON requests (at);
    CREATE TABLE calls (
        request TEXT NOT NULL,
        number INTEGER NOT NULL,
        at REAL NOT NULL,
        model TEXT NOT NULL,
        kind TEXT NOT NULL,
        outcome TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        estimated INTEGER NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        reasoning_tokens INTEGER NOT NULL,
        cost_nano INTEGER NOT NULL,
        latency_s REAL NOT NULL,
        PRIMARY KEY (request, number)
    ) WITHOUT ROWID;
    CREATE INDEX calls_at ON calls (at)
    """,
    # Calls of before tell neither when they began nor who asked.
    """
    ALTER TABLE calls ADD COLUMN began_s REAL;
    ALTER TABLE calls ADD COLUMN asker TEXT
    """,
    # What is in `requests` and `calls` holds nobody's words; what is here, of keys that have it stored, is all words.
    """
    CREATE TABLE texts (
        request TEXT PRIMARY KEY,
        key TEXT NOT NULL,
        at REAL NOT NULL,
        prompt TEXT NOT NULL,
        answer TEXT,
        cut INTEGER NOT NULL
    );
    CREATE INDEX texts_key ON texts (key, at)
    """,
    # What was put into a prefix cache has a price of its own; calls of before do not tell.
    """
    ALTER TABLE calls ADD COLUMN written_tokens INTEGER
    """,
    # Days added up (`gateway.ledger.rollups`): what of them is marked, and their sums under these marks.
    """
    CREATE TABLE days (
        day TEXT PRIMARY KEY,
        mark INTEGER NOT NULL,
        made INTEGER NOT NULL
    );
    CREATE TABLE day_requests (
        mark INTEGER NOT NULL,
        number INTEGER NOT NULL,
        key TEXT NOT NULL,
        alias TEXT,
        owner TEXT,
        team TEXT,
        requested TEXT NOT NULL,
        strategy TEXT NOT NULL,
        outcome TEXT NOT NULL,
        requests INTEGER NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        cost_nano INTEGER NOT NULL,
        PRIMARY KEY (mark, number)
    ) WITHOUT ROWID;
    CREATE TABLE day_calls (
        mark INTEGER NOT NULL,
        number INTEGER NOT NULL,
        key TEXT NOT NULL,
        alias TEXT,
        owner TEXT,
        team TEXT,
        requested TEXT NOT NULL,
        strategy TEXT NOT NULL,
        outcome TEXT NOT NULL,
        model TEXT NOT NULL,
        requests INTEGER NOT NULL,
        calls INTEGER NOT NULL,
        failed INTEGER NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        cost_nano INTEGER NOT NULL,
        PRIMARY KEY (mark, number)
    ) WITHOUT ROWID
    """,
)
