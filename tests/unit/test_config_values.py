"""What a file of queues may say, and the brokers and options that come of it."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from carteiro import Reprocess
from carteiro.backends.redis import address as redis
from carteiro.config import document, systems
from carteiro.config.loading import load
from carteiro.policies.rate import Rate
from tests.unit.config_files import TOUR, loaded, said


def url(tmp_path: Path, keys: str) -> str:
    (only,) = loaded(tmp_path, f"queues: [{{name: orders, {keys}}}]").brokers.values()
    return only


def test_the_file_of_the_tour_is_read_as_printed():
    queues = load(TOUR)
    assert dict(queues.brokers) == {"default": "amqps://localhost:5671?heartbeat=600"}
    queue = queues.queues["user_channel"]
    assert (queue.consumes, queue.publishes, dict(queue.policies)) == (True, True, {})


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("type: rabbitmq", "amqp://localhost"),
        ("type: rabbitmq, broker_url: rabbit, port: 5673, vhost: /shop", "amqp://rabbit:5673/%2Fshop"),
        ("type: rabbitmq, broker_url: 'a,b:5673', port: 5671, ssl: yes", "amqps://a:5671,b:5673"),
        ("type: rabbitmq, broker_url: '::1', port: 5672", "amqp://[::1]:5672"),
        ("type: rabbitmq, username: me, password: 'a/b@c:d?#'", "amqp://me:a%2Fb%40c%3Ad%3F%23@localhost"),
        ("type: rabbitmq, password: 0123", "amqp://:0123@localhost"),
        ("type: rabbitmq, broker_url: amqps://a:1/v, username: me, heartbeat: 1m", "amqps://me@a:1/v?heartbeat=60"),
        (
            "type: rabbitmq, broker_url: 'amqp://me:pw@a/v?prefix=p', heartbeat: 9",
            "amqp://me:pw@a/v?prefix=p&heartbeat=9",
        ),
        (
            "type: redis, ssl: true, prefix: shop-2.0, ssl_ca_certs: 9d66eef0.0, connect_timeout: 2.0",
            "rediss://localhost?ssl_ca_certs=9d66eef0.0&prefix=shop-2.0&connect_timeout=2",
        ),
        (
            "type: rabbitmq, ssl: true, ssl_ca_certs: /ca.pem, ssl_check_hostname: no",
            "amqps://localhost?ssl_ca_certs=%2Fca.pem&ssl_check_hostname=false",
        ),
        ("type: redis", "redis://localhost"),
        ("type: redis, db: 2, ssl: true, connect_timeout: 1.5", "rediss://localhost/2?connect_timeout=1.5"),
        ("type: redis, broker_url: 'redis+sentinel://a,b/main/0'", "redis+sentinel://a,b/main/0"),
        ("type: sqlite", "sqlite:///carteiro.db"),
        (
            "type: sqlite, broker_url: /var/lib/shop.db, synchronous: normal",
            "sqlite:////var/lib/shop.db?synchronous=normal",
        ),
        ("type: sqlite, broker_url: 'sqlite:///shop.db?busy_timeout=3'", "sqlite:///shop.db?busy_timeout=3"),
        ("type: memory", "memory://"),
        ("type: memory, broker_url: shop", "memory://shop"),
    ],
)
def test_the_keys_of_a_type_become_its_url(tmp_path: Path, keys: str, expected: str):
    assert url(tmp_path, keys) == expected


def test_redis_understands_what_the_keys_become(tmp_path: Path):
    made = url(
        tmp_path,
        "type: redis, broker_url: cache, port: 7000, db: 3, username: u, password: 'p w+/%', ssl: on, prefix: 'shop:x'",
    )
    read = redis.parse(made)
    assert (read.servers[0].host, read.servers[0].port, read.database) == ("cache", 7000, 3)
    assert (read.username, read.password, read.prefix, read.tls) == ("u", "p w+/%", "shop:x", {})


def test_queues_with_the_same_connection_share_a_broker_and_others_get_their_own(tmp_path: Path):
    queues = loaded(
        tmp_path,
        """\
        defaults: {type: redis, db: 1}
        queues:
          - name: orders
          - name: payments
          - {name: audit, type: rabbitmq}
          - {name: cache, db: 2}
          - {name: old, db: 3}
        """,
    )
    assert dict(queues.brokers) == {
        "default": "redis://localhost/1",
        "rabbitmq": "amqp://localhost",
        "redis": "redis://localhost/2",
        "redis-2": "redis://localhost/3",
    }
    assert [queue.broker for queue in queues.queues.values()] == ["default", "default", "rabbitmq", "redis", "redis-2"]


def test_defaults_hold_for_what_a_queue_does_not_say_and_connections_for_their_type_only(tmp_path: Path):
    queues = loaded(
        tmp_path,
        """\
        defaults: {type: rabbitmq, broker_url: rabbit, timeout: 30, retry: {attempts: 9}}
        queues:
          - {name: a, retry: {max_age: 1h}}
          - {name: b, type: sqlite}
        """,
    )
    a, b = queues.queues.values()
    assert (a.policies["retry"].attempts, a.policies["retry"].max_age) == (5, 3600)
    assert (b.policies["retry"].attempts, queues.brokers[b.broker]) == (9, "sqlite:///carteiro.db")


def test_an_empty_key_undoes_a_default(tmp_path: Path):
    queues = loaded(
        tmp_path,
        """\
        defaults: {type: redis, username: me, db: 2, enable_dlq: off, timeout: 30, retry: {attempts: 9}}
        queues:
          - name: a
            timeout:
            username:
            db: ${NONE:-}
            enable_dlq:
          - {name: b, dlq: , retry: }
        """,
    )
    a, b = queues.queues.values()
    assert (queues.brokers[a.broker], queues.brokers[b.broker]) == ("redis://localhost", "redis://me@localhost/2")
    assert list(a.policies) == ["retry"]
    assert dict(b.policies) == {"timeout": 30, "dead_letters": False}


def test_a_queue_without_dead_letters_leaves_the_defaults_of_them(tmp_path: Path):
    queues = loaded(
        tmp_path,
        """\
        defaults: {type: memory, dlq: {reprocess_every: 10m}}
        queues:
          - {name: a}
          - {name: b, enable_dlq: "False"}
          - {name: c, dlq: }
          - {name: d, dlq: , enable_dlq: no}
        """,
    )
    assert [dict(queue.policies) for queue in queues.queues.values()] == [
        {"reprocess": Reprocess(600.0, 3)},
        {"dead_letters": False},
        {},
        {"dead_letters": False},
    ]


def test_every_option_of_a_queue_becomes_that_of_a_subscriber(tmp_path: Path):
    queues = loaded(
        tmp_path,
        """\
        queues:
          - name: orders
            type: memory
            retry:
              attempts: 3
              max_age: 1d
              backoff: {kind: constant, base: 500ms}
            timeout: 30
            concurrency: 5
            prefetch: 0
            rate_limit: 100/m
            lease: 2m
            dlq: {reprocess_every: 10m, limit: 2}
        """,
    )
    policies = dict(queues.queues["orders"].policies)
    retry = policies.pop("retry")
    assert (retry.attempts, retry.max_age, retry.backoff(4)) == (3, 86400, 0.5)
    assert policies == {
        "timeout": 30,
        "concurrency": 5,
        "prefetch": 0,
        "rate": Rate(100, 60),
        "lease": 120,
        "reprocess": Reprocess(600.0, 2),
    }


def test_an_exponential_backoff_has_its_base_factor_and_cap(tmp_path: Path):
    keys = "retry: {backoff: {base: 2, factor: 3, cap: 10s, jitter: none}}"
    backoff = loaded(tmp_path, f"queues: [{{name: a, type: memory, {keys}}}]").queues["a"].policies["retry"].backoff
    assert [backoff(failures) for failures in (1, 2, 3)] == [2, 6, 10]


def test_enable_dlq_false_keeps_no_dead_letters(tmp_path: Path):
    queues = loaded(tmp_path, "queues: [{name: a, type: memory, enable_dlq: off}]")
    assert dict(queues.queues["a"].policies) == {"dead_letters": False}


def test_values_stay_what_is_written(tmp_path: Path):
    queues = loaded(tmp_path, "app: 0123\nqueues: [{name: no, type: memory}, {name: 1.0, type: memory}]")
    assert (queues.app, list(queues.queues)) == ("0123", ["no", "1.0"])


def test_anchors_and_merged_keys_are_followed(tmp_path: Path):
    queues = loaded(
        tmp_path,
        """\
        queues:
          - &first {name: a, type: redis, db: 1}
          - {<<: *first, name: b}
        """,
    )
    assert list(queues.brokers.values()) == ["redis://localhost/1"]


def test_a_backend_of_ones_own_is_a_type_that_takes_its_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(systems, "_others", lambda: {"toy"})
    assert url(tmp_path, "type: toy, broker_url: 'toy://box?x=1'") == "toy://box?x=1"
    assert said(tmp_path, "queues: [{name: a, type: toy, broker_url: box}]") == [
        "1:31: `broker_url` of queue `a` is a whole URL that begins with toy://"
    ]
    assert said(tmp_path, "queues: [{name: a, type: toy}]") == [
        "1:10: queue `a` has no `broker_url`: write `broker_url: …`"
    ]


def test_the_types_of_others_are_found_by_their_entry_points(monkeypatch: pytest.MonkeyPatch):
    points = [
        EntryPoint("toy", "toybox:open", "carteiro.backends"),
        EntryPoint("redis", "carteiro.backends.redis:open_backend", "carteiro.backends"),
    ]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points)
    assert systems.types() == {"rabbitmq", "redis", "sqlite", "memory", "toy"}


ENVIRONMENT = {"HOST": "rabbit", "PORT": "5673", "EMPTY": ""}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("${HOST}", "rabbit"),
        ("amqp://${HOST}:${PORT}/v", "amqp://rabbit:5673/v"),
        ("${NONE:-other}", "other"),
        ("${EMPTY:-other}", "other"),
        ("${HOST:-other}", "rabbit"),
        ("a $ b $${HOST}", "a $ b ${HOST}"),
        ("${EMPTY}", None),
        ("${NONE:-}", None),
        ("'${EMPTY}'", ""),
    ],
)
def test_a_variable_stands_for_its_value_or_its_default(written: str, expected: str | None):
    tree, problems = document.parse(f"key: {written}", ENVIRONMENT)
    assert problems == []
    assert isinstance(tree, document.Table)
    value = tree.entries["key"].value
    assert isinstance(value, document.Scalar)
    assert value.text == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("${NONE}", "the environment variable NONE is not set: set it, or write `${NONE:-default}` here"),
        ("${a b}", "a `${` here names no variable: write `${NAME}` or `${NAME:-default}`, and `$${` for itself"),
        ("${HOST", "a `${` here has no `}`: write `${NAME}` or `${NAME:-default}`, and `$${` for itself"),
    ],
)
def test_a_variable_that_cannot_be_put_in_is_named_with_its_place(written: str, expected: str):
    _, problems = document.parse(f"one: 1\nkey: {written}", ENVIRONMENT)
    assert [(one.place.line, one.place.column, one.text) for one in problems] == [(2, 6, expected)]
