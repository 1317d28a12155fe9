# SPDX-License-Identifier: Apache-2.0
"""The order in which things go is that of their ranks, whatever happens to the ranks in between."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from redknot_sglang.radix.victims import Victims

STEPS = st.lists(
    st.tuples(st.sampled_from(("offer", "raise", "quietly", "forbid", "take")), st.integers(0, 9)), max_size=80
)


@given(STEPS)
def test_the_next_is_the_lowest_of_those_that_may_go(steps: list[tuple[str, int]]) -> None:
    ranks = {thing: thing % 3 for thing in range(10)}
    allowed, inside = set(range(10)), dict[int, int]()
    victims: Victims[int] = Victims(lambda thing: ranks[thing], lambda thing: thing in allowed)
    for number, (action, thing) in enumerate(steps):
        if action == "forbid":
            allowed.discard(thing)
        elif action == "take":
            best = min(
                (each for each in inside if each in allowed), key=lambda each: (ranks[each], inside[each]), default=None
            )
            assert victims.take() == best
            # Those that may not go are dropped where their turn would have been.
            turn = [
                each for each in inside if best is None or (ranks[each], inside[each]) <= (ranks[best], inside[best])
            ]
            for each in turn:
                del inside[each]
            allowed.update(range(10))
        else:
            ranks[thing] += action != "offer"
            if action != "quietly":
                victims.offer(thing)
                inside.setdefault(thing, number)
        assert len(victims) >= len([each for each in inside if each in allowed])


def test_nothing_is_looked_at_twice_however_much_was_used() -> None:
    looked = 0

    def rank(thing: int) -> int:
        nonlocal looked
        looked += 1
        return ranks[thing]

    ranks = dict(enumerate(range(1000)))
    victims: Victims[int] = Victims(rank, lambda thing: True)
    for thing in ranks:
        victims.offer(thing)
    for thing in range(999):
        ranks[thing] += 5000
        victims.offer(thing)
    looked = 0
    assert victims.take() == 999 and looked == 1


def test_forgotten_things_are_gone() -> None:
    victims: Victims[str] = Victims(len, lambda thing: True)
    victims.offer("a")
    victims.clear()
    assert victims.take() is None and len(victims) == 0
