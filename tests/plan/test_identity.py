# SPDX-License-Identifier: Apache-2.0
"""Namespaces of the tree: nobody's are another's."""

from __future__ import annotations

from array import array
from itertools import product
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from redknot_sglang.plan.identity import MARK, identity_of, is_whole, namespace_of, own_part, salted
from redknot_sglang.plan.plan import Path

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
    for whole, asks in ((False, False), (True, False), (True, True)):
        first, second = (namespace_of(salted(*pair), whole, asks) for pair in ((key, salt), (other, salt2)))
        assert ((first or None) == (second or None)) == same


@given(NAMES, NAMES)
def test_texts_that_ask_lie_apart_from_all_other_paths(key: str | None, other: str | None) -> None:
    """Their KV is incomplete, so nothing else may find it, of the same tenant or another."""
    asking = namespace_of(key, whole=True, asks=True)
    assert asking not in (namespace_of(other, whole=False), namespace_of(other, whole=True))
    path = Path((0, 2), 0, array("q", [1, 2]), True, asks=True)
    assert identity_of(SimpleNamespace(extra_key=key), path) == (asking, path.key.tobytes())
    assert own_part(asking) == (key or "", "asking")


@given(NAMES)
def test_which_namespaces_have_whole_paths(key: str | None) -> None:
    assert is_whole(namespace_of(key, whole=True)) and is_whole(namespace_of(key, whole=True, asks=True))
    assert not is_whole(namespace_of(key, whole=False))


def test_what_is_ours_begins_with_the_mark() -> None:
    assert str(namespace_of(None, True)).startswith(MARK) and str(salted("a", "b")).startswith(MARK)
