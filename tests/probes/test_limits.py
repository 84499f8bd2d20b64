"""Thresholds: each says where it comes from, and leaves room on both sides."""

from probes.limits import LIMITS, stands_out


def test_every_threshold_says_where_it_comes_from():
    assert all(len(limit.source) > 20 and "PLACEHOLDER" not in limit.source for limit in LIMITS.values())


def test_limits_leave_room_on_both_sides():
    assert LIMITS["survives"].value < 0.97
    assert 0.54 < LIMITS["layout_reliance"].value < 0.95
    assert 0.43 < LIMITS["noise_features"].value < 0.70


def test_what_stands_out_is_clearly_above_the_floor():
    assert stands_out(0.36, 0.3)
    assert not stands_out(0.34, 0.3)
