"""The number of clients that may listen at once."""

from __future__ import annotations

import pytest

from runs_api.errors import ApiError
from runs_api.joins import Joins


def test_a_process_has_a_limit_and_a_seat_given_back_is_free_again():
    joins = Joins(2, 10)
    first = joins.admit(None)
    joins.admit(None)
    with pytest.raises(ApiError) as caught:
        joins.admit(None)
    assert caught.value.status_code == 503
    assert "RUNS_ES_MAX_JOINS" in str(caught.value.detail)
    assert caught.value.headers == {"Retry-After": "1"}
    first.release()
    joins.admit(None)


def test_a_user_has_a_limit_that_does_not_touch_others():
    joins = Joins(10, 1)
    seat = joins.admit("ada")
    with pytest.raises(ApiError) as caught:
        joins.admit("ada")
    assert caught.value.status_code == 429
    assert "RUNS_ES_MAX_JOINS_PER_USER" in str(caught.value.detail)
    assert caught.value.headers == {"Retry-After": "1"}
    joins.admit("bob")
    seat.release()
    joins.admit("ada")


def test_a_seat_is_given_back_once():
    joins = Joins(10, 10)
    seat = joins.admit("ada")
    seat.release()
    seat.release()
    assert joins.open == 0


def test_a_refused_user_takes_no_seat():
    joins = Joins(10, 1)
    joins.admit("ada")
    with pytest.raises(ApiError):
        joins.admit("ada")
    assert joins.open == 1


def test_without_users_only_the_limit_of_the_process_counts():
    joins = Joins(5, 1)
    for _ in range(5):
        joins.admit(None)
    assert joins.open == 5
