# SPDX-License-Identifier: Apache-2.0
"""Namespaces of the tree: nobody's are another's."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from redknot_sglang.plan.identity import MARK, namespace_of, salted

# As a client may choose them: what is ours is refused.
NAMES = st.none() | st.text(alphabet="a1 ", max_size=4)


def test_without_a_salt_nothing_changes() -> None:
    for key, salt in product((None, "", "tenant"), (None, "")):
        assert salted(key, salt) == key


def test_a_salt_is_no_part_of_the_key() -> None:
    assert len({salted(key, salt) for key, salt in [("ab", None), (None, "ab"), ("b", "a"), ("a", "b")]}) == 4


@given(NAMES, NAMES, NAMES, NAMES)
def test_no_two_pairs_have_one_namespace(
    key: str | None, salt: str | None, other: str | None, salt2: str | None
) -> None:
    # As SGLang does, empty ones are none.
    same = (key or None, salt or None) == (other or None, salt2 or None)
    for whole in (False, True):
        first, second = (namespace_of(salted(*pair), whole) for pair in ((key, salt), (other, salt2)))
        assert ((first or None) == (second or None)) == same


def test_what_is_ours_begins_with_the_mark() -> None:
    assert str(namespace_of(None, True)).startswith(MARK) and str(salted("a", "b")).startswith(MARK)
