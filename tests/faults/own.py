"""The gateway's own faults: tests elsewhere, by what fails. The page repeats what each says of itself."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

__all__ = ["OWN", "says"]

ROOT = Path(__file__).parents[2]

OWN: Mapping[str, tuple[str, ...]] = {
    "the shared state": (
        "tests/faults/test_own_state.py::test_redis_killed",
        "tests/faults/test_own_state.py::test_redis_paused",
        "tests/faults/test_own_state.py::test_redis_slow",
        "tests/gateway/state/test_stores.py::test_paused_redis_is_bounded",
        "tests/gateway/state/test_stores.py::test_restarted_redis_is_used_again",
    ),
    "the clock": (
        "tests/faults/test_own_state.py::test_clock_jumps",
        "tests/gateway/state/test_stores.py::test_the_time_of_day_does_not_matter",
        "tests/gateway/state/test_accounts.py::test_a_clock_set_back_prolongs_no_lease",
        "tests/gateway/state/test_accounts.py::test_a_clock_set_back_stops_no_bucket",
    ),
    "the disk": (
        "tests/faults/test_own_state.py::test_disk_full",
        "tests/gateway/ledger/test_ledger.py::test_an_unwritable_ledger_stops_nothing",
    ),
    "its processes": (
        "tests/gateway/test_supervisor_faults.py::test_worker_killed_mid_stream",
        "tests/gateway/test_money.py::test_a_killed_worker_leaks_nothing",
        "tests/gateway/test_supervisor.py::test_sigkill_leaves_no_orphan",
        "tests/gateway/test_supervisor.py::test_drains",
        "tests/gateway/test_supervisor.py::test_embedder",
        "tests/test_end_to_end.py::test_killed_engine_host_returns",
    ),
    "a crowd, and large bodies": (
        "tests/gateway/test_supervisor_faults.py::test_two_thousand_streams",
        "tests/faults/test_load.py::test_two_thousand_streams",
        "tests/faults/test_load.py::test_places_are_handed_on",
        "tests/faults/test_load.py::test_image_bodies_of_a_megabyte",
    ),
    "slow clients": (
        "tests/gateway/test_supervisor_faults.py::test_slow_reader",
        "tests/gateway/test_heads.py::test_slow_heads",
        "tests/gateway/test_heads.py::test_silence",
        "tests/gateway/test_heads.py::test_endless_heads",
        "tests/golden/test_hostile.py::test_slow_body",
    ),
    "callers' mistakes": (
        "tests/gateway/test_blame.py::test_statuses",
        "tests/gateway/test_blame.py::test_error_events",
        "tests/gateway/test_blame.py::test_leaving_is_no_verdict",
        "tests/gateway/test_blame.py::test_what_callers_do_is_invisible",
    ),
}
"""What fails → the tests that show what is seen then."""


def says(test: str) -> str:
    """The first paragraph of a test's docstring, on one line. Raises `LookupError` for a test that is not there."""
    file, name = test.split("::")
    for node in ast.parse((ROOT / file).read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name:
            return " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
    raise LookupError(test)
