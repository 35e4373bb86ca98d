from hypothesis import given
from hypothesis import strategies as st

from tttnn.lm.windows import scoring_windows, training_windows


@given(st.integers(1, 300), st.integers(2, 40), st.integers(1, 100))
def test_every_token_is_scored_once_within_the_limit(length: int, max_length: int, first: int) -> None:
    windows = list(scoring_windows(length, max_length, first=first))
    scored = [i for window in windows for i in range(window.first, window.end)]
    assert scored == list(range(first, length))
    for window in windows:
        assert 0 <= window.begin < window.first < window.end <= length
        assert window.end - 1 - window.begin <= max_length


@given(st.integers(1, 300), st.integers(2, 40))
def test_long_context_is_kept(length: int, max_length: int) -> None:
    for window in scoring_windows(length + 100, max_length, first=100):
        assert window.first - window.begin >= min(100, max_length // 2)


@given(st.integers(0, 300), st.integers(2, 40), st.none() | st.integers(2, 100))
def test_training_windows_leave_out_only_a_single_last_token(length: int, max_length: int, limit: int | None) -> None:
    windows = training_windows(length, max_length, limit)
    wanted = length if limit is None else min(length, limit)
    covered = [i for window in windows for i in range(window.begin, window.end)]
    rest = wanted % max_length
    assert covered == list(range(wanted - 1 if rest == 1 else wanted))
    assert all(2 <= window.end - window.begin <= max_length for window in windows)
