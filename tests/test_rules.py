"Rules for one value are their definitions"
import math

from hypothesis import given
from hypothesis import strategies as st

from vitnb.experiment.rules import each, number, whole


@given(st.one_of(st.integers(-5, 5), st.floats(allow_nan=True), st.booleans(), st.text(max_size=2), st.none()))
def test_a_rule_of_numbers_is_its_definition(value):
    numeric = type(value) in (int, float) and math.isfinite(value)
    assert (whole(1)(value) == "") == (type(value) is int and value >= 1)
    assert whole(1)(2**31) and number()(1e30) and not number()(1e6) and "to 2,147,483,647" in whole(1)(2**31)
    assert (number(0, 1, below=True)(value) == "") == (numeric and 0 <= value < 1)
    assert (number(0, 1, above=True)(value) == "") == (numeric and 0 < value <= 1)


def test_a_list_is_as_long_as_its_rule_and_each_part_fits():
    pair = each(whole(1), 2)
    assert not pair((3, 4)) and not pair([3, 4]) and pair([3]) and pair([3, 0]) and pair("34") and pair(3)
