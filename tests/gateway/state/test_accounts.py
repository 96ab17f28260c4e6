"""The arithmetic of shared limits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.state.accounts import FOLD_S, Account, Ask, Bucket, Want, sync, take


def ask(holder: str, spent: int, need: int, want: int | None = None, **fields: object) -> Ask:
    return Ask("a", 100, holder, spent, need, need if want is None else want, 10.0, **fields)  # type: ignore[arg-type]


def test_grants_what_is_needed_and_a_part_of_the_rest() -> None:
    """What is needed is granted whole; what is only wished for, up to an eighth of what is left."""
    account = Account()
    assert sync(account, ask("x", 0, 20, 90), 0.0).held == 30
    assert sync(account, ask("y", 0, 71), 0.0).held == 0
    assert sync(account, ask("y", 0, 70), 0.0).held == 70


def test_repeating_a_report_changes_nothing() -> None:
    """A report whose answer was lost may be sent again."""
    account = Account()
    first = sync(account, ask("x", 5, 20), 0.0)
    assert sync(account, ask("x", 5, 20), 0.0) == first
    assert first.spent == 5


def test_a_silent_holder_loses_its_slice_not_its_spending() -> None:
    """After the lease others may have what a dead worker held; what it reported stays spent, also when its row
    is folded."""
    account = Account()
    sync(account, ask("x", 30, 100), 0.0)
    assert sync(account, ask("y", 0, 70), 9.9).held == 0
    assert sync(account, ask("y", 0, 70), 10.0).held == 70
    told = sync(account, ask("y", 0, 70), 10.0 + FOLD_S)
    assert told.spent == 30
    assert account.settled == 30
    assert set(account.holders) == {"y"}


def test_a_sleeper_that_wakes_is_counted_once() -> None:
    """A worker that was silent too long gets no more than is left, and its late report counts."""
    account = Account()
    sync(account, ask("x", 30, 100), 0.0)
    sync(account, ask("y", 0, 60), 11.0)
    told = sync(account, ask("x", 35, 50), 12.0)
    assert (told.held, told.spent) == (35, 35)


def test_closing_settles() -> None:
    """A holder that closes leaves its spending and nothing else."""
    account = Account()
    sync(account, ask("x", 30, 60), 0.0)
    sync(account, ask("x", 40, 40, close=True), 0.0)
    assert (account.settled, account.holders) == (40, {})


@given(
    st.lists(
        st.tuples(
            st.sampled_from("xyz"),
            st.integers(0, 30),
            st.integers(0, 60),
            st.integers(0, 60),
            st.floats(0, 9),
        )
    )
)
def test_never_overspent(steps: list[tuple[str, int, int, int, float]]) -> None:
    """Whatever holders ask, and however long they are silent below their lease, they never hold more than the limit
    together, and nobody's spending is lost."""
    account, now = Account(), 0.0
    held, spent = dict.fromkeys("xyz", 0), dict.fromkeys("xyz", 0)
    for holder, use, need, more, wait in steps:
        now += wait / 9
        spent[holder] = min(held[holder], spent[holder] + use)
        told = sync(
            account, ask(holder, spent[holder], spent[holder] + need, spent[holder] + need + more), now
        )
        held[holder] = told.held
        assert told.spent <= 100
        assert sum(h.held for h in account.holders.values()) + account.settled <= 100
        assert held[holder] >= spent[holder]


def test_bucket_fills_steadily() -> None:
    """An empty bucket refuses with the time until it is enough, and fills within its period."""
    bucket = Bucket(60, 0.0)
    want = Want("b", 60, 60.0, 60, 60)
    assert take(bucket, want, 0.0).granted == 60
    told = take(bucket, Want("b", 60, 60.0, 5, 5), 1.0)
    assert (told.granted, told.wait_s) == (0, 4.0)
    assert take(bucket, Want("b", 60, 60.0, 5, 5), 5.0).granted == 5


def test_bucket_debts() -> None:
    """What was used beyond what was taken is owed; what was not used comes back, up to the brim."""
    bucket = Bucket(60, 0.0)
    assert take(bucket, Want("b", 60, 60.0, 0, 0, debit=90), 0.0).level == -30
    assert take(bucket, Want("b", 60, 60.0, 0, 0, debit=-200), 0.0).level == 60


def test_a_clock_set_back_prolongs_no_lease() -> None:
    """The slice of a dead worker goes back when its lease would have, by whatever the clock says now."""
    account = Account()
    sync(account, Ask("a", 100, "dead", 0, 100, 100, 10.0), 10_000.0)
    alive = Ask("a", 100, "alive", 0, 50, 50, 10.0)
    assert sync(account, alive, 50.0).held == 0
    assert sync(account, alive, 59.0).held == 0
    assert sync(account, alive, 60.0).held == 50


def test_a_clock_set_back_stops_no_bucket() -> None:
    """It goes on filling from what it held."""
    bucket = Bucket(60, 10_000.0)
    take(bucket, Want("b", 60, 60.0, 60, 60), 10_000.0)
    want = Want("b", 60, 60.0, 5, 5)
    assert take(bucket, want, 50.0).granted == 0
    assert take(bucket, want, 54.0).wait_s == 1.0
    assert take(bucket, want, 55.0).granted == 5
