# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import gzip
import json
import random
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from redknot_sglang.config import DEFAULT_SEPARATOR as SEP
from redknot_sglang.route import forward
from redknot_sglang.route.facts import Facts
from tests.route.fakes import Fake, Setting, setting, until

A, B, C = ("".join(f"{word} {n} " for n in range(200)) for word in ("apples", "berries", "cherries"))


def the_one_asked(here: Setting) -> Fake:
    (fake,) = [fake for fake in here.fakes if fake.seen]
    return fake


def test_requests_and_answers_pass_unchanged() -> None:
    async def run() -> None:
        packed = gzip.compress(b'{"text": "packed"}')

        async def answer(request: web.Request, body: bytes) -> web.StreamResponse:
            headers = {"Content-Encoding": "gzip", "X-Own": "1", "Content-Type": "application/x-own"}
            return web.Response(status=201, body=packed, headers=headers)

        async with setting() as here:
            for fake in here.fakes:
                fake.answers["/v1/a%20b"] = fake.answers["/v1/a b"] = answer
            body = b'{"messages": [ {"role":"user","content":"\xc3\xa4"}]}'
            sent = {
                "Authorization": "Bearer k",
                "X-Mine": "2",
                "Content-Type": "application/json",
                "Accept-Encoding": "br",
            }
            url = URL(here.url + "/v1/a%20b?x=%2F&y=a+b", encoded=True)
            async with aiohttp.ClientSession(auto_decompress=False) as client:
                async with client.put(url, data=body, headers=sent) as got:
                    assert (got.status, await got.read()) == (201, packed)
                    assert (got.headers["X-Own"], got.headers["Content-Encoding"]) == ("1", "gzip")
                    assert got.headers["Content-Type"] == "application/x-own"
            (seen,) = the_one_asked(here).seen
            assert (seen.method, seen.path, seen.body) == ("PUT", "/v1/a%20b?x=%2F&y=a+b", body)
            assert {name: seen.headers[name] for name in sent} == sent
            assert not any(name.lower().startswith("x-forwarded") for name in seen.headers)

    asyncio.run(run())


def test_a_packed_body_stays_packed_and_headers_may_be_long() -> None:
    async def run() -> None:
        packed = gzip.compress(b'{"text": "packed"}')
        async with setting(1) as here:
            headers = {"Content-Encoding": "gzip", "Authorization": "Bearer " + "k" * 20_000}
            async with here.client.post(here.url + "/generate", data=packed, headers=headers) as answer:
                assert answer.status == 200
            (seen,) = here.fakes[0].seen
            assert seen.body == packed and {name: seen.headers[name] for name in headers} == headers

    asyncio.run(run())


def test_an_answer_comes_as_it_is_made_and_ends_the_work_when_it_does() -> None:
    async def run() -> None:
        go = asyncio.Event()

        async def stream(request: web.Request, body: bytes) -> web.StreamResponse:
            reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await reply.prepare(request)
            await reply.write(b"data: 1\n\n")
            await go.wait()
            await reply.write(b"data: [DONE]\n\n")
            return reply

        async with setting() as here:
            for fake in here.fakes:
                fake.answers["/v1/completions"] = stream
            body = {"prompt": A, "max_tokens": 9}
            async with here.client.post(here.url + "/v1/completions", json=body) as answer:
                assert await answer.content.readany() == b"data: 1\n\n"
                members = [server.member for server in here.router.fleet.servers]
                assert sorted(member.outstanding for member in members) == [0, 0, 9], "the prompt is computed"
                go.set()
                assert await answer.content.read() == b"data: [DONE]\n\n"
            await until(lambda: all(member.outstanding == member.open == 0 for member in members))

    asyncio.run(run())


@pytest.mark.parametrize("begun", [False, True])
def test_a_client_that_hangs_up_ends_the_request(begun: bool) -> None:
    async def run() -> None:
        async def slow(request: web.Request, body: bytes) -> web.StreamResponse:
            if begun:
                reply = web.StreamResponse()
                await reply.prepare(request)
                await reply.write(b"a")
            await asyncio.sleep(3600)
            raise AssertionError

        async with setting() as here:
            for fake in here.fakes:
                fake.answers["/generate"] = slow
            asking = asyncio.ensure_future(here.ask("/generate", {"text": A}))
            await until(lambda: any(fake.seen for fake in here.fakes))
            await asyncio.sleep(0.05)
            asking.cancel()
            await until(lambda: the_one_asked(here).aborted == 1)
            await until(lambda: all(s.member.open == s.member.outstanding == 0 for s in here.router.fleet.servers))
            assert all(server.up for server in here.router.fleet.servers)

    asyncio.run(run())


def test_errors_pass_and_bodies_have_a_limit() -> None:
    async def run() -> None:
        async def refuse(request: web.Request, body: bytes) -> web.StreamResponse:
            return web.json_response({"error": {"message": "no"}}, status=429)

        async with setting(most_body=5000) as here:
            for fake in here.fakes:
                fake.answers["/generate"] = refuse
            assert await here.ask("/generate", {"text": "x"}) == (429, {"error": {"message": "no"}})
            status, answer = await here.ask("/generate", {"text": "x" * 6000})
            assert status == 413 and "--max-body" in answer["error"]["message"]
            async with here.client.post(here.url + "/generate", data=b"no json") as got:
                assert got.status == 429

    asyncio.run(run())


def test_documents_and_conversations_find_their_server() -> None:
    async def run() -> None:
        async with setting(4) as here:
            first = await here.generate(SEP.join(["", A, B, "?"]))
            assert await here.generate(SEP.join(["", B, C, A, "what?"])) == first
            assert await here.generate(SEP.join(["", A, B, "?"]), extra_key="other") in {
                fake.name for fake in here.fakes
            }
            talk, names = [{"role": "user", "content": C}], set()
            for turn in range(5):
                _, answer = await here.ask("/v1/chat/completions", {"messages": talk})
                talk += [{"role": "assistant", "content": "so"}, {"role": "user", "content": f"and {turn}"}]
                names.add(answer["server"])
            assert len(names) == 1

    asyncio.run(run())


def test_round_robin_takes_turns() -> None:
    async def run() -> None:
        async with setting(3, policy="round-robin") as here:
            assert [await here.generate(A) for _ in range(6)] == ["s0", "s1", "s2"] * 2

    asyncio.run(run())


def test_a_request_without_an_answer_goes_to_another_server_once() -> None:
    async def run() -> None:
        async def die(request: web.Request, body: bytes) -> web.StreamResponse:
            assert request.transport is not None
            request.transport.abort()
            await asyncio.sleep(1)
            raise AssertionError

        async with setting(3) as here:
            home = await here.generate(A)
            dying = next(fake for fake in here.fakes if fake.name == home)
            dying.answers["/generate"] = die
            assert await here.generate(A) != home
            for fake in here.fakes:
                fake.answers["/generate"] = die
            status, answer = await here.ask("/generate", {"text": A})
            assert status == 502 and "went before it answered" in answer["error"]["message"]
            assert sum(len(fake.seen) for fake in here.fakes) == 1 + 2 + 2

    asyncio.run(run())


def test_half_an_answer_does_not_look_like_a_whole_one() -> None:
    async def run() -> None:
        async def half(request: web.Request, body: bytes) -> web.StreamResponse:
            reply = web.StreamResponse()
            await reply.prepare(request)
            await reply.write(b"half")
            await asyncio.sleep(0.05)
            assert request.transport is not None
            request.transport.abort()
            return reply

        async with setting(2) as here:
            for fake in here.fakes:
                fake.answers["/generate"] = half
            with pytest.raises(aiohttp.ClientError):
                async with here.client.post(here.url + "/generate", json={"text": A}) as answer:
                    await answer.read()
            assert sum(len(fake.seen) for fake in here.fakes) == 1, "nobody else may answer it"

    asyncio.run(run())


def test_a_server_that_is_killed_leaves_and_comes_back_with_nothing() -> None:
    async def run() -> None:
        async with setting(3) as here:
            home = await here.generate(A)
            fake = next(fake for fake in here.fakes if fake.name == home)
            server = next(server for server in here.router.fleet.servers if server.url == fake.url)
            await fake.kill()
            asked = [here.generate(A) for _ in range(5)]
            assert home not in await asyncio.gather(*asked), "no request fails"
            await until(lambda: not server.up)
            assert server.error and not len(server.member.memory)
            await fake.start()
            await until(lambda: server.up)
            assert not len(server.member.memory)
            others = [other.member.recent for other in here.router.fleet.servers if other is not server]
            assert server.member.recent == pytest.approx(sum(others) / 2)
            assert await here.generate(A) != home, "another one has it now"

    asyncio.run(run())


def test_half_an_answer_of_a_machine_that_is_gone_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "GRACE", 0.2)

    async def run() -> None:
        async def half(request: web.Request, body: bytes) -> web.StreamResponse:
            reply = web.StreamResponse()
            await reply.prepare(request)
            await reply.write(b"half")
            fake.hangs = True
            await asyncio.sleep(3600)
            return reply

        async with setting(1) as here:
            fake = here.fakes[0]
            fake.answers["/generate"] = half
            with pytest.raises(aiohttp.ClientError):
                async with here.client.post(here.url + "/generate", json={"text": A}) as answer:
                    await asyncio.wait_for(answer.read(), 20)
            assert here.router.fleet.servers[0].member.open == 0

    asyncio.run(run())


def test_under_load_only_begun_answers_of_a_killed_server_break() -> None:
    async def run() -> None:
        begun: dict[str, int] = {}

        def streaming(fake: Fake) -> Any:
            begun[fake.name] = 0

            async def answer(request: web.Request, body: bytes) -> web.StreamResponse:
                # Time to compute the prompt, then a piece of the answer at a time.
                await asyncio.sleep(0.03)
                reply = web.StreamResponse()
                await reply.prepare(request)
                begun[fake.name] += 1
                for _ in range(5):
                    await reply.write(b"piece ")
                    await asyncio.sleep(0.01)
                begun[fake.name] -= 1
                return reply

            return answer

        async with setting(4) as here:
            for fake in here.fakes:
                fake.answers["/generate"] = streaming(fake)
            rng, broken, whole = random.Random(5), 0, 0

            async def one(number: int) -> None:
                nonlocal broken, whole
                # Later ones have documents that nobody holds, so that the server which came back is asked for some.
                first = 0 if number < 300 else number
                documents = [f"document {first} {rng.randrange(40)} " * 50 for _ in range(4)]
                body = {"text": SEP.join(["", *documents, f"question {number}"])}
                try:
                    async with here.client.post(here.url + "/generate", json=body) as answer:
                        assert answer.status == 200
                        assert await answer.read() == b"piece " * 5
                    whole += 1
                except aiohttp.ClientError:
                    broken += 1

            asked = []
            for number in range(300):
                asked.append(asyncio.ensure_future(one(number)))
                await asyncio.sleep(rng.expovariate(100))
                if number == 100:
                    in_flight = begun["s1"]
                    await here.fakes[1].kill()
                if number == 180:
                    await here.fakes[1].start()
            await asyncio.gather(*asked)
            assert broken <= in_flight and whole + broken == 300
            await until(lambda: len(here.router.fleet.up) == 4)
            late = len(here.fakes[1].seen)
            await asyncio.gather(*(one(number) for number in range(300, 340)))
            assert len(here.fakes[1].seen) > late and broken <= in_flight

    asyncio.run(run())


def test_what_waits_at_a_server_that_hangs_goes_elsewhere() -> None:
    async def run() -> None:
        async with setting(2) as here:
            home = await here.generate(A)
            fake = next(fake for fake in here.fakes if fake.name == home)
            fake.hangs = True
            assert await here.generate(A) != home
            assert len(here.router.fleet.up) == 1
            for other in here.fakes:
                other.hangs = True
            await until(lambda: not here.router.fleet.up)
            assert (await here.ask("/health"))[0] == 503
            assert (await here.ask("/generate", {"text": A}))[0] == 503
            for other in here.fakes:
                other.hangs = False
            await until(lambda: len(here.router.fleet.up) == 2)
            assert (await here.ask("/health"))[0] == 200

    asyncio.run(run())


def test_an_unhealthy_server_gets_nothing() -> None:
    async def run() -> None:
        async with setting(2) as here:
            here.fakes[0].healthy = False
            await until(lambda: len(here.router.fleet.up) == 1)
            assert {await here.generate(text) for text in "abcdef"} == {"s1"}

    asyncio.run(run())


def status_of(mode: str, slots: int, cached: int) -> dict[str, Any]:
    return {
        "segments": {"mode": mode, "repair": "blend:0.1", "lead": "none", "separator": "##"},
        "classes": {"global": {"slots": slots}},
        "tree": {"global": {"evictable": cached, "protected": 0}},
    }


def test_servers_say_how_they_read_requests_and_what_they_hold() -> None:
    async def run() -> None:
        async def tokenize(request: web.Request, body: bytes) -> web.StreamResponse:
            assert json.loads(body) == {"prompt": "##", "add_special_tokens": False}
            return web.json_response({"tokens": [77]})

        async with setting(1) as here:
            here.fakes[0].answers["/v1/tokenize"] = tokenize
            here.fakes[0].status = status_of("segmented", 5000, 5000)
            fleet = here.router.fleet
            await until(lambda: fleet.facts == Facts("segmented", "blend:0.1", "none", "##", 77))
            member = fleet.servers[0].member
            assert member.memory.capacity == 5000
            await here.generate(A)
            assert 0 < member.memory.tokens < 5000
            here.fakes[0].status = status_of("segmented", 5000, 0)
            await until(lambda: member.memory.tokens == 0)
            assert sum(seen.path == "/v1/tokenize" for seen in here.fakes[0].seen) == 1

    asyncio.run(run())


def test_the_status_of_all() -> None:
    async def run() -> None:
        async with setting(2) as here:
            here.fakes[0].status = status_of("exact", 10, 0)
            status, answer = await here.ask("/redknot/status")
            urls = [fake.url for fake in here.fakes]
            assert status == 200 and set(answer["servers"]) == set(answer["router"]["servers"]) == set(urls)
            assert answer["servers"][urls[0]] == here.fakes[0].status
            assert answer["servers"][urls[1]] == {"error": "/redknot/status answered 404"}
            assert answer["router"]["policy"] == "documents" and answer["router"]["servers"][urls[1]]["up"] is True

    asyncio.run(run())


def test_calls_for_every_server_reach_every_server() -> None:
    async def run() -> None:
        async with setting(3) as here:
            await here.generate(A)
            status, _ = await here.ask("/flush_cache", {})
            assert status == 200
            assert all(fake.seen[-1].path == "/flush_cache" for fake in here.fakes)
            assert not any(len(server.member.memory) for server in here.router.fleet.servers)

            async def refuse(request: web.Request, body: bytes) -> web.StreamResponse:
                return web.json_response({"error": "busy"}, status=400)

            here.fakes[1].answers["/flush_cache"] = refuse
            assert await here.ask("/flush_cache", {}) == (400, {"error": "busy"})

            async def unknown(request: web.Request, body: bytes) -> web.StreamResponse:
                return web.json_response({"error": "not mine"}, status=404)

            here.fakes[0].answers["/v1/responses/r"] = here.fakes[2].answers["/v1/responses/r"] = unknown
            assert await here.ask("/v1/responses/r") == (200, {"server": "s1"})
            here.fakes[1].answers["/v1/responses/r"] = unknown
            assert await here.ask("/v1/responses/r") == (404, {"error": "not mine"})

    asyncio.run(run())
