"Draws are functions of a few numbers: the reference is splitmix64 as its authors print it"
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vitnb.seeding import hash_ints, hash_seed, uniform


BITS = 2**64 - 1


def splitmix64(seed):
    "The generator's next number, as Steele, Lea and Flood print it (2014, figure 16)"
    z = (seed + 0x9E3779B97F4A7C15) & BITS
    z = ((z ^ (z >> 30))*0xBF58476D1CE4E5B9) & BITS
    z = ((z ^ (z >> 27))*0x94D049BB133111EB) & BITS
    return z ^ (z >> 31)


def hashed(*keys):
    state = 0
    for key in keys: state = splitmix64((state + splitmix64(key & BITS)) & BITS)
    return state


KEYS = st.lists(st.integers(-2**63, 2**63 - 1), min_size=1, max_size=4)


def test_the_reference_is_splitmix64(): assert splitmix64(1234567) == 6457827717110365317


@given(KEYS)
def test_numbers_and_arrays_hash_as_the_reference(keys):
    assert int(hash_ints(*keys)) == hashed(*keys) and hash_seed(*keys) == hashed(*keys) >> 1
    for place in range(len(keys)): # one key as an array, at any place
        mixed = [np.array([key, 0]) if i == place else key for i,key in enumerate(keys)]
        assert int(hash_ints(*mixed)[0]) == hashed(*keys)
    assert int(hash_ints(*(np.array([key]) for key in keys))[0]) == hashed(*keys)


@given(st.integers(2**63, 2**70))
def test_numbers_beyond_64_bits_wrap(key):
    assert int(hash_ints(key)) == hashed(key) and int(hash_ints(np.arange(2), key)[1]) == hashed(1, key)


@given(KEYS)
def test_uniform_numbers_lie_in_their_interval(keys): assert 0 <= float(uniform(*keys)) < 1
