"""Sentinel and Cluster: the node that takes our writes is found, and found again when it is another one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest
import redis

from carteiro import BrokerError, BrokerUnavailable, Carteiro, Retry, constant
from carteiro.message import Action, Retention
from tests.redis.stage import (
    ORDERS,
    Handled,
    backend,
    connected,
    outgoing,
    passes,
    patiently,
    settle,
    shop,
    soon,
    take,
    working,
)
from tests.servers.certificates import Certificates
from tests.servers.process import free_port
from tests.servers.redis import RedisServer, with_query
from tests.servers.redis_cluster import RedisCluster
from tests.servers.redis_sentinel import RedisSentinel

pytestmark = pytest.mark.needs("redis")


# -- Sentinel ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def watched() -> Iterator[RedisSentinel]:
    with RedisSentinel(password="p@ss word") as started:
        yield started


async def test_sentinels_name_the_master(watched: RedisSentinel):
    async with connected(watched.url, ORDERS) as broker:
        await passes(broker)
        assert [one["name"] for one in watched.master.says("CLIENT LIST")].count("carteiro") == 1


async def test_a_worker_goes_on_with_the_new_master_after_a_failover(watched: RedisSentinel):
    handled = Handled()
    app = shop(watched.url, handled, lease=1.0)
    async with working(app):
        await asyncio.gather(*(app.publish("orders", number) for number in range(100)))
        await handled.all_of(range(100))
        watched.master.says("WAIT", 1, 5000)
        await asyncio.to_thread(watched.failover)
        await asyncio.gather(*(app.publish("orders", number) for number in range(100, 200)))
        await handled.all_of(range(200))


async def test_a_worker_goes_on_when_the_master_has_died(watched: RedisSentinel):
    handled = Handled()
    app = shop(watched.url, handled, lease=1.0)
    async with working(app):
        await asyncio.gather(*(app.publish("orders", number) for number in range(100)))
        await handled.all_of(range(100))
        first = watched.master
        first.says("WAIT", 1, 5000)
        first.kill()
        publishing = asyncio.gather(*(app.publish("orders", number) for number in range(100, 200)))
        await asyncio.to_thread(watched.new_master, first)
        await soon(publishing)
        await handled.all_of(range(200))
        await patiently(lambda: _all_done(watched.url))


async def _all_done(url: str) -> None:
    async with connected(url) as broker:
        if any(status.waiting or status.in_flight for status in await broker.groups()):
            raise BrokerUnavailable("not yet")


async def test_sentinels_that_are_down_are_passed_over(watched: RedisSentinel):
    here = f":{watched.sentinels[0].port}/"
    down = ",".join(f"127.0.0.1:{free_port()}" for _ in range(2))
    url = watched.url.replace(f"127.0.0.1{here}", f"{down},127.0.0.1{here}")
    async with connected(with_query(url, connect_timeout="2"), ORDERS) as broker:
        await passes(broker)


async def test_a_sentinel_that_hangs_is_passed_over():
    with RedisSentinel(sentinels=2) as watched:
        watched.sentinels[0].freeze()
        async with connected(with_query(watched.url, connect_timeout="2"), ORDERS) as broker:
            await passes(broker)


async def test_a_name_that_no_sentinel_knows_is_named(watched: RedisSentinel):
    url = watched.url.replace("/carteiro/", "/nobody/")
    with pytest.raises(BrokerUnavailable, match=r"no sentinel of .* knows a master `nobody`") as refused:
        await soon(backend(url).broker.connect())
    assert "p@ss" not in str(refused.value)


async def test_sentinels_that_want_a_password_get_theirs():
    with RedisSentinel(password="of-the-servers") as watched:
        with redis.Redis(port=watched.sentinels[0].port) as client:
            client.execute_command("ACL", "SETUSER", "default", "resetpass", ">of-the-sentinels")
        with pytest.raises(BrokerError) as refused:
            await soon(backend(watched.url).broker.connect())
        assert "of-the" not in str(refused.value)
        async with connected(with_query(watched.url, sentinel_password="of-the-sentinels"), ORDERS) as broker:
            await passes(broker)


@pytest.mark.needs("redis-tls")
@pytest.mark.parametrize("trust", ["authority", "none"])
async def test_sentinels_and_servers_may_speak_tls(tmp_path_factory: pytest.TempPathFactory, trust: str):
    with RedisSentinel(tls=Certificates(tmp_path_factory.mktemp("certificates"))) as watched:
        url = watched.url if trust == "authority" else watched.url.partition("?")[0] + "?ssl_cert_reqs=none"
        assert url.startswith("rediss+sentinel://")
        async with connected(url, ORDERS) as broker:
            await passes(broker)


# -- Cluster ----------------------------------------------------------------------------------------------------------


async def test_a_cluster_publishes_retries_buries_and_rewinds(redis_cluster_url: str):
    async with connected(redis_cluster_url) as broker:
        await broker.declare([ORDERS], [Retention(ORDERS.topic, 60.0)])
        consumer = broker.consume([ORDERS])
        await broker.publish([outgoing(b"1"), outgoing(b"2", delay=0.05)])
        await settle(consumer, await take(consumer), Action.RETRY)
        first = await take(consumer, 2)
        assert sorted((one.message.body, one.message.attempt) for one in first) == [(b"1", 2), (b"2", 1)]
        await settle(consumer, first, Action.DEAD)
        assert len(await broker.dead_letters("dlq_orders")) == 2
        assert await broker.replay("dlq_orders") == 2
        await settle(consumer, await take(consumer, 2))
        assert await broker.rewind(ORDERS.topic, ORDERS.group, 0.0) == 2
        await settle(consumer, await take(consumer, 2))


async def test_prefixes_spread_over_the_nodes_of_a_cluster(redis_cluster: RedisCluster):
    before = [len(node.says("KEYS", "*")) for node in redis_cluster.nodes]
    for number in range(12):
        async with connected(with_query(redis_cluster.url, prefix=f"test-spread{number}"), ORDERS) as broker:
            await broker.publish([outgoing()])
    after = [len(node.says("KEYS", "*")) for node in redis_cluster.nodes]
    assert all(more > less for more, less in zip(after, before, strict=True))


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    """One that a test may rearrange."""
    with RedisCluster() as started:
        yield started


async def test_a_worker_follows_its_keys_to_another_node(cluster: RedisCluster):
    handled = Handled()
    app = shop(cluster.url, handled, lease=1.0)
    async with working(app):
        await asyncio.gather(*(app.publish("orders", number) for number in range(100)))
        await handled.all_of(range(100))
        for _ in range(2):
            publishing = asyncio.gather(*(app.publish("orders", number) for number in range(100, 200)))
            await asyncio.to_thread(_move, cluster)
            await soon(publishing)
            await app.publish("orders", 200)
            await handled.all_of(range(201))
            handled.counts.clear()
            await app.publish("orders", 0)
            await handled.all_of([0])
            handled.counts.update(range(100))


async def test_an_idle_consumer_learns_at_once_that_its_keys_have_moved(cluster: RedisCluster):
    async with connected(cluster.url, ORDERS) as broker:
        consumer = broker.consume([ORDERS])
        idle = asyncio.ensure_future(consumer.fetch({ORDERS: 1}))
        await passes_by(broker)
        await asyncio.to_thread(_move, cluster)
        with pytest.raises(BrokerUnavailable, match=r"is lost|another node"):
            await soon(idle)
        await passes(broker)


async def passes_by(broker) -> None:
    """Return when what was asked of the server before this has been answered."""
    await broker.groups()


def _move(cluster: RedisCluster) -> None:
    """Move the slot of `{carteiro}` from the node that has it to the next, with its keys."""
    nodes = cluster.nodes
    slot = nodes[0].says("CLUSTER KEYSLOT", "{carteiro}")
    ids = [node.says("CLUSTER MYID") for node in nodes]
    (here,) = [at for at, node in enumerate(nodes) if _has(node, slot)]
    there = (here + 1) % len(nodes)
    nodes[there].says("CLUSTER SETSLOT", slot, "IMPORTING", ids[here])
    nodes[here].says("CLUSTER SETSLOT", slot, "MIGRATING", ids[there])
    while keys := nodes[here].says("CLUSTER GETKEYSINSLOT", slot, 100):
        nodes[here].says("MIGRATE", "127.0.0.1", nodes[there].port, "", 0, 5000, "KEYS", *keys)
    for at in (there, here):
        nodes[at].says("CLUSTER SETSLOT", slot, "NODE", ids[there])


def _has(node: RedisServer, slot: int) -> bool:
    with contextlib.suppress(redis.RedisError):
        node.says("CLUSTER COUNTKEYSINSLOT", slot)
        with node.client() as client:
            client.get("{carteiro}")
        return True
    return False


async def test_startup_nodes_that_are_down_are_passed_over(redis_cluster: RedisCluster):
    node = redis_cluster.nodes[2]
    url = f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{free_port()},127.0.0.1:{node.port}/0"
    async with connected(with_query(url, prefix="test-down", connect_timeout="2"), ORDERS) as broker:
        await passes(broker)


async def test_a_cluster_that_is_not_there_is_named():
    url = f"redis+cluster://:s3cr3t@127.0.0.1:{free_port()}"
    with pytest.raises(
        BrokerUnavailable, match=r"the cluster at `redis\+cluster://127.0.0.1:\d+` cannot be"
    ) as refused:
        await soon(backend(url).broker.connect())
    assert "s3cr3t" not in str(refused.value)


async def test_retries_of_an_app_work_on_a_cluster(redis_cluster_url: str):
    app = Carteiro("shop", redis_cluster_url)
    handled = Handled()

    @app.subscriber("orders", retry=Retry(attempts=3, backoff=constant(0)))
    async def handle(number: int) -> None:
        handled.note((number, handled.counts.total()))
        if handled.counts.total() < 3:
            raise RuntimeError("not yet")

    async with working(app):
        await app.publish("orders", 1)
        await handled.all_of([(1, 0), (1, 1), (1, 2)])
