# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
from collections import Counter

import pytest

from redknot_sglang.route.choice import MOST_LOAD, Board, Documents, Member, RoundRobin, allowed, order
from redknot_sglang.route.memory import Memory
from redknot_sglang.route.parts import Blocks, Part, Prompt, Wanted, key_of
from redknot_sglang.route.segments import share_out

SIZE = 1000


def members(count: int = 4) -> list[Member]:
    return [Member(f"http://10.0.0.{number}:30000") for number in range(count)]


def document(number: int, start: int = 0) -> Part:
    return Part(key_of("document", str(number)), start, SIZE)


def asks(*numbers: int, answer: int = 0) -> Wanted:
    documents = tuple(document(number, at * SIZE) for at, number in enumerate(numbers))
    return Wanted((Prompt(documents, (), SIZE * len(numbers)),), answer)


def test_memory_forgets_the_least_recently_used() -> None:
    memory = Memory(3 * SIZE)
    memory.use([document(0), document(1), document(2)])
    memory.use([document(0)])
    memory.use([document(3)])
    assert [document(n).key in memory for n in range(4)] == [True, False, True, True]
    assert (memory.tokens, len(memory)) == (3 * SIZE, 3)
    memory.trim(SIZE)
    assert (memory.tokens, document(3).key in memory) == (SIZE, True)
    memory.forget()
    assert (memory.tokens, len(memory)) == (0, 0)


def test_what_is_held_counts_once() -> None:
    blocks = Blocks(b"space")
    for at in range(4):
        blocks.add(list(range(at * 200, at * 200 + 200)))
    documents = tuple(Part(key_of(str(at)), at * 200, 200) for at in (1, 3))
    prompt = Prompt(documents, blocks.blocks, blocks.tokens)
    memory = Memory()
    memory.use([documents[1]])
    assert memory.held(prompt) == 200
    memory.use(blocks.blocks[2:])
    assert memory.held(prompt) == 200, "a block is of no use without those before it"
    memory.use(blocks.blocks[:2])
    memory.use([documents[0]])
    assert memory.held(prompt) == 800
    memory.forget()
    memory.use(Wanted((prompt,)).parts)
    memory.trim(600)
    assert memory.held(prompt) == 600, "the end of a path goes before its beginning"


def test_owners_depend_on_names_alone_and_move_only_with_their_server() -> None:
    some, keys = members(5), [document(n).key for n in range(2000)]
    before = [order(key, some)[0].name for key in keys]
    assert before == [order(key, some[::-1])[0].name for key in keys], (
        "another router, which names them in another order"
    )
    share = Counter(before)
    assert max(share.values()) < 1.2 * len(keys) / len(some)
    after = [order(key, some[:-1])[0].name for key in keys]
    assert {b for a, b in zip(after, before, strict=True) if a != b} == {some[-1].name}


def test_two_routers_send_new_documents_to_the_same_servers() -> None:
    chosen: list[list[str]] = []
    for names in (members(), members()[::-1]):
        board = Board(Documents())
        chosen.append([])
        for number in range(200):
            ticket = board.send(asks(number), names)
            ticket.done()
            chosen[-1].append(ticket.member.name)
    same = sum(a == b for a, b in zip(*chosen, strict=True))
    assert same > 180, "but where a server had more work of late than the others"


def test_a_request_goes_where_most_of_its_documents_are() -> None:
    some, board = members(), Board(Documents())
    some[2].memory.use([document(1), document(2), document(3)])
    some[1].memory.use([document(4)])
    ticket = board.send(asks(1, 2, 3, 4), some)
    assert ticket.member is some[2] and ticket.prompt == SIZE
    ticket.done()
    assert document(4).key in some[2].memory


def test_a_hot_document_comes_to_be_held_by_several() -> None:
    some, board = members(), Board(Documents())
    tickets = [board.send(asks(1, answer=500), some) for _ in range(40)]
    assert sum(document(1).key in member.memory for member in some) > 1
    work = [member.outstanding for member in some]
    assert max(work) <= MOST_LOAD * sum(work) / len(some) + SIZE + 500
    for ticket in tickets:
        ticket.done()
    assert [(member.outstanding, member.open) for member in some] == [(0, 0)] * 4


def test_a_conversation_stays_where_it_is_while_nothing_else_goes_on() -> None:
    some, board, chosen = members(), Board(Documents()), set()
    blocks = Blocks(b"")
    for turn in range(30):
        blocks.add([turn] * 300)
        ticket = board.send(Wanted((Prompt((), blocks.blocks, blocks.tokens),), 100), some)
        chosen.add(ticket.member.name)
        ticket.begun()
        ticket.done()
    assert len(chosen) == 1


def test_questions_about_the_same_documents_stay_where_they_are_while_nothing_else_goes_on() -> None:
    some, board, chosen = members(), Board(Documents()), set()
    for _ in range(30):
        ticket = board.send(asks(1, 2, 3, 4, answer=100), some)
        chosen.add(ticket.member.name)
        ticket.begun()
        ticket.done()
    assert len(chosen) == 1


def test_all_servers_get_work_even_if_nothing_ever_waits() -> None:
    rng, some, board = random.Random(2), members(), Board(Documents())
    work: Counter[str] = Counter()
    for member in some:
        member.memory.capacity = 40 * SIZE
    for _ in range(2000):
        topic = rng.choice((0, 0, 0, 1, 1, 2))
        ticket = board.send(asks(*(100 * topic + n for n in rng.sample(range(30), 4)), answer=100), some)
        work[ticket.member.name] += ticket.prompt + ticket.answer
        ticket.begun()
        ticket.done()
    assert len(work) == 4 and max(work.values()) < 1.5 * sum(work.values()) / len(some)


def test_no_server_gets_much_more_than_the_others_for_long() -> None:
    rng, some, board = random.Random(1), members(), Board(Documents())
    work: Counter[str] = Counter()
    running = []
    for _ in range(3000):
        # Nine of ten requests want the same few documents.
        numbers = [rng.randrange(8) if rng.random() < 0.9 else rng.randrange(8, 300) for _ in range(4)]
        running.append(board.send(asks(*dict.fromkeys(numbers), answer=200), some))
        work[running[-1].member.name] += running[-1].prompt + running[-1].answer
        if len(running) > 8:
            running.pop(0).done()
    assert max(work.values()) < 1.3 * sum(work.values()) / len(some)


def test_a_server_that_has_too_much_is_left_out_and_somebody_is_always_left() -> None:
    some = members(3)
    some[0].outstanding = 100_000
    assert allowed(some, SIZE) == some[1:]
    some[1].recent, some[1].outstanding = 5000.0, 1
    assert allowed(some, SIZE) == some[2:]
    some[2].outstanding, some[2].recent = 10, 9000.0
    assert allowed(some, SIZE) == [some[1]]
    some[1].recent = some[2].recent = 5000.0
    assert allowed(some, SIZE) == some[1:]


def test_round_robin() -> None:
    some, board = members(3), Board(RoundRobin())
    names = [board.send(asks(1), some).member.name for _ in range(6)]
    assert names == [member.name for member in some] * 2
    assert board.send(asks(1), some, some[1:2]).member is some[1]


@pytest.mark.parametrize("count", [1, 3, 64])
def test_preloaded_documents_are_shared_out(count: int) -> None:
    some = members()
    parts = [document(number) for number in range(count)]
    owners = share_out([*parts, *parts], some)
    assert owners[:count] == owners[count:]
    given = Counter(owner.name for owner in owners[:count])
    assert max(given.values()) <= max(1, MOST_LOAD * count / len(some))
    some[3].memory.use(parts)
    assert set(share_out(parts, [some[0], some[3]])[index].name for index in range(count)) == {some[3].name}


def test_a_document_is_asked_where_it_is_whatever_its_server_got_before() -> None:
    some, board = members(), Board(Documents())
    for _ in range(5):
        large = board.send(asks(*range(20), answer=500), some)
        large.done()
    first = board.send(asks(50), some)
    first.done()
    first.member.recent += 10**6
    again = board.send(asks(50), some)
    assert again.member is first.member
