"""Native objects on a cluster, and on a server that is full."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import redis

from carteiro import BrokerError, Carteiro
from carteiro.backends.redis import RedisChannel, RedisList, RedisStream
from carteiro.backends.redis.publishing import LARGEST
from carteiro.message import Native
from tests.redis_natives.stage import Place, listen, working
from tests.servers.redis import RedisServer, with_query
from tests.servers.redis_cluster import RedisCluster


@pytest.fixture
def prefix(redis_cluster_url: str) -> str:
    return redis_cluster_url.rpartition("prefix=")[2]


@pytest.mark.parametrize("native", [RedisList("jobs-elsewhere"), RedisStream("events-elsewhere")])
async def test_a_key_in_another_slot_of_a_cluster_is_an_error_with_the_way_out(redis_cluster_url: str, native: Native):
    app = Carteiro("shop", redis_cluster_url)
    listen(app, native)
    with pytest.raises(BrokerError, match="not in the slot of carteiro's keys: begin its name with the prefix"):
        async with working(app):
            pass
    async with Carteiro("shop", redis_cluster_url) as publisher:
        with pytest.raises(BrokerError, match="not in the slot of carteiro's keys"):
            await publisher.publish(native, 7)


async def test_keys_in_the_slot_of_the_prefix_work_on_a_cluster(
    redis_cluster: RedisCluster, redis_cluster_url: str, prefix: str
):
    app = Carteiro("shop", redis_cluster_url)
    jobs, events = RedisList(f"{{{prefix}}}jobs"), RedisStream(f"{{{prefix}}}events")
    news = RedisChannel(f"{prefix}-news")
    from_list, from_stream, from_channel = listen(app, jobs), listen(app, events), listen(app, news)
    with redis.RedisCluster.from_url(redis_cluster.nodes[0].url) as client:
        async with working(app):
            client.rpush(jobs.name, 1)
            assert await from_list.bodies(1) == [1]
            client.xadd(events.name, {"body": 2})
            assert await from_stream.bodies(1) == [2]
            client.publish(news.name, "3")
            assert await from_channel.bodies(1) == [3]
            await app.publish(news, 4, mandatory=True)
            assert await from_channel.bodies(1) == [4]


async def test_a_server_that_is_full_is_emptied():
    with RedisServer(maxmemory="12mb") as server:
        place = Place(with_query(server.url, prefix="shop"))
        app, go_on = place.app(), asyncio.Event()
        handled: list[int] = []

        @app.subscriber(RedisList("jobs"), concurrency=2, prefetch=0)
        async def job(number: int) -> None:
            await go_on.wait()
            handled.append(number)

        async with working(app):
            pushed = 0
            with contextlib.suppress(redis.OutOfMemoryError):
                while True:
                    place.client.rpush("jobs", pushed)
                    pushed += 1
                    place.client.rpush("ballast", b"x" * 10_000)
            go_on.set()
            await place.until(lambda: len(handled) == pushed)
        place.close()
    assert sorted(handled) == list(range(pushed))


async def test_a_body_that_no_claim_could_bring_is_put_aside_and_the_rest_is_handled(
    own_place: Place, caplog: pytest.LogCaptureFixture
):
    app, huge = own_place.app(), b"x" * (LARGEST + 1)
    from_list, from_stream = listen(app, RedisList("jobs")), listen(app, RedisStream("events"))
    async with working(app):
        own_place.client.rpush("jobs", 1, huge, 2)
        assert sorted(await from_list.bodies(2)) == [1, 2]
        entry = own_place.text.xadd("events", {"body": huge})
        own_place.client.xadd("events", {"body": 3})
        assert await from_stream.bodies(1) == [3]
    assert own_place.client.lrange("{shop}:oversized:jobs", 0, -1) == [huge]
    assert own_place.client.xrange("events", entry, entry)[0][1] == {b"body": huge}
    assert "RedisList('jobs'): a body of more than 16 MB" in caplog.text
    assert f"is left at `{entry}`" in caplog.text


async def test_large_bodies_arrive(own_place: Place):
    app = own_place.app()
    came = listen(app, RedisList("jobs"))
    bodies = [bytes([number]) * 6_000_000 for number in range(128, 140)]
    own_place.client.rpush("jobs", *bodies)
    async with working(app):
        assert sorted(await came.bodies(len(bodies))) == bodies


MAY = "~{shop}* ~jobs ~events &{shop}* &news +@all -@dangerous -@admin"


async def test_a_user_with_no_more_rights_than_that_needs_works():
    with RedisServer(users=[f"ana on >secret {MAY}"]) as server:
        app = Carteiro("shop", with_query(server.url_with(user="ana", password="secret"), prefix="shop"))
        natives: list[Native] = [RedisList("jobs"), RedisStream("events"), RedisChannel("news")]
        all_came = [listen(app, native) for native in natives]
        async with working(app):
            for number, native in enumerate(natives):
                await app.publish(native, number)
            assert [await came.bodies(1) for came in all_came] == [[0], [1], [2]]


async def test_a_key_that_the_user_may_not_touch_is_an_error_that_says_so():
    with RedisServer(users=[f"ana on >secret {MAY}"]) as server:
        app = Carteiro("shop", with_query(server.url_with(user="ana", password="secret"), prefix="shop"))
        listen(app, RedisList("other"))
        with pytest.raises(BrokerError, match="does not permit this user"):
            async with working(app):
                pass
