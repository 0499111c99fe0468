"""What is wrong with a file of queues is said at once: each with its line, its column and the way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from carteiro import ConfigurationError
from carteiro.config.loading import load
from tests.unit.config_files import said, written

ONE_QUEUE = "queues:\n  - name: orders\n    type: redis\n    "
"""Line 4, column 5 follows."""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("prot: 1", "`prot` of queue `orders` is no key: did you mean `port`?"),
        ("heartbeat: 60", "`heartbeat` of queue `orders` is no key: there are name, enable_consumer"),
        ("port: abc", "`port: abc` of queue `orders` is no whole number"),
        ("port: 70000", "`port: 70000` of queue `orders` must be at most 65535"),
        ("port: [1]", "`port` of queue `orders` is one value: write it as `port: …`"),
        ("concurrency: 0", "`concurrency: 0` of queue `orders` must be at least 1"),
        ("ssl: perhaps", "`ssl: perhaps` of queue `orders` is neither true nor false"),
        ("timeout: soon", "`timeout: soon` of queue `orders` is no length of time: write 30s, 10m, 1h30m, 7d, or a"),
        ("timeout: 0s", "`timeout: 0s` of queue `orders` must be over 0 seconds"),
        ("rate_limit: fast", "`rate_limit: fast` of queue `orders` is no rate limit: write 100/m, 10/s, 5/10s or"),
        ("retry: 5", "`retry` of queue `orders` has keys of its own: write it as `retry: {attempts: 5}`"),
        (
            "dlq: {limit: 3}",
            "`dlq` of queue `orders` has no `reprocess_every`: write it as `dlq: {reprocess_every: 10m",
        ),
        (
            "dlq: {reprocess_every: 10m}\n    enable_dlq: no",
            "`dlq` of queue `orders` needs dead letters, and enable_dlq",
        ),
        ("ssl_certfile: /x", "`ssl_certfile: /x` of queue `orders` needs `ssl: true` beside it"),
        ("broker_url: amqp://host", "`broker_url` of queue `orders` does not begin with redis://, as the type says"),
        ("broker_url: me@host", "`broker_url` of queue `orders` is a host, or a whole URL that begins with redis://:"),
        (
            "broker_url: redis://host\n    ssl: true",
            "`ssl: true` of queue `orders` needs a broker_url that begins with",
        ),
    ],
)
def test_what_does_not_fit_is_said_at_its_place_with_the_way_out(tmp_path: Path, line: str, expected: str):
    (problem,) = said(tmp_path, ONE_QUEUE + line)
    place, _, text = problem.partition(": ")
    assert text.startswith(expected)
    assert place in ("4:5", "5:5")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("retry: {tries: 3}", "4:13: `retry.tries` of queue `orders` is no key: there are attempts, backoff, max_age"),
        ("retry: {attempts: 0}", "4:13: `retry.attempts: 0` of queue `orders` must be at least 1"),
        (
            "retry:\n      backoff:\n        kind: expo",
            "6:9: `retry.backoff.kind: expo` of queue `orders` is none of `exponential` or `constant`",
        ),
        (
            "retry: {backoff: {kind: constant, cap: 5}}",
            "4:39: `retry.backoff.cap: 5` of queue `orders` is for an exponential backoff, and this one is constant",
        ),
        (
            "broker_url: redis://host/1\n    db: 2",
            "5:5: `db: 2` of queue `orders` is too much beside this broker_url, for a whole URL says it itself",
        ),
    ],
)
def test_a_key_within_a_key_is_named_by_its_path(tmp_path: Path, line: str, expected: str):
    (problem,) = said(tmp_path, ONE_QUEUE + line)
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["1:1: the file begins with `queues:`, and below it `- name: …` for each queue"]),
        ("- name: a", ["1:1: the file begins with `queues:`, and below it `- name: …` for each queue"]),
        (
            "queus: []",
            ["1:1: `queus` is no key: did you mean `queues`?", "1:1: there is no `queues:`, with `- name: …`"],
        ),
        ("queues: []", ["1:1: `queues` is a list: write `- name: …` below it for each queue"]),
        ("queues:\n  - orders", ["2:5: a queue has keys: write `- name: user_channel`, and the others below it"]),
        ("queues:\n  - type: redis", ["2:5: a queue has no `name`: write `name: …`"]),
        ("queues:\n  - name: a", ["2:5: the type of queue `a` is not said: write `type: rabbitmq`, or another system"]),
        (
            "queues:\n  - {name: a, type: redsi}",
            ["2:15: `type: redsi` of queue `a` is no system: did you mean `redis`?"],
        ),
        ("queues:\n  - {name: a, type: kafca}", ["2:15: `type: kafca` of queue `a` is no system: there are memory, "]),
        (
            "queues:\n  - {name: a b, type: redis}",
            ["2:6: `name: a b` of queue `a b` cannot be a queue's name: `a b` is"],
        ),
        ("app: my shop\nqueues: [{name: a, type: redis}]", ["1:1: `app: my shop` is no app's name: it has no spaces"]),
        ("store: state.db\nqueues: [{name: a, type: redis}]", ["1:1: `store` is a URL, such as sqlite:///state.db"]),
    ],
)
def test_the_shape_of_the_file_is_explained(tmp_path: Path, text: str, expected: list[str]):
    problems = said(tmp_path, text)
    assert [problem.startswith(start) for problem, start in zip(problems, expected, strict=True)] == [True] * len(
        expected
    ), problems


def test_all_that_is_wrong_is_said_at_once_from_the_top(tmp_path: Path):
    problems = said(
        tmp_path,
        """\
        queues:
          - name: a
            type: redis
            prot: 1
            db: x
          - name: a
            type: redis
            timeout: -3
        """,
    )
    assert [problem.partition(": ")[0] for problem in problems] == ["4:5", "5:5", "6:5", "8:5"]
    assert problems[2] == "6:5: queue `a` is here twice (first in line 2): rename or drop one"


def test_what_is_wrong_in_the_defaults_is_said_once_and_there(tmp_path: Path):
    problems = said(
        tmp_path,
        """\
        defaults:
          type: rabbitmq
          heartbet: 60
          port: abc
          name: all
        queues:
          - name: a
          - name: b
        """,
    )
    assert problems == [
        "3:3: `heartbet` in `defaults` is no key: did you mean `heartbeat`?",
        "4:3: `port: abc` in `defaults` is no whole number",
        "5:3: `name` in `defaults` is no default: each queue has its own",
    ]


def test_dead_letters_that_are_kept_and_are_not_are_refused_where_that_is_said(tmp_path: Path):
    beside = "needs dead letters, and enable_dlq is false: drop one of them"
    both = "defaults: {type: memory, dlq: {reprocess_every: 10m}, enable_dlq: no}\nqueues: [{name: a}, {name: b}]"
    assert said(tmp_path, both) == [f"1:26: `dlq` in `defaults` {beside}"]
    own = "defaults: {type: memory, enable_dlq: no}\nqueues: [{name: a, dlq: {reprocess_every: 10m}}]"
    assert said(tmp_path, own) == [f"2:20: `dlq` of queue `a` {beside}"]


def test_an_empty_key_that_undoes_nothing_is_no_key(tmp_path: Path):
    text = "defaults: {type: redis, dlq: {reprocess_every: 10m}}\nqueues: [{name: a, dql: }, {name: b, type: }]"
    assert said(tmp_path, text) == [
        "2:20: `dql` of queue `a` is no key: did you mean `dlq`?",
        "2:28: the type of queue `b` is not said: write `type: rabbitmq`, or another system",
    ]


def test_a_default_of_one_system_asks_for_its_type(tmp_path: Path):
    assert said(tmp_path, "defaults: {port: 1}\nqueues:\n  - {name: a, type: redis}") == [
        "1:12: `port` in `defaults` needs `type: …` beside it: it is for one system"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("queues:\n\t- name: a", "2:1: a tab cannot indent: use spaces"),
        ("queues:\n  - name: a\n   type: redis", "3:4: this does not fit to what stands above: check the indentation"),
        ("queues:\n  - name: a: b", "2:12: no `key:` can stand here: check the indentation, or quote the text"),
        ("queues:\n  - name: a\n  type: redis", "3:3: this does not fit to what stands above: check the indentation"),
        ("queues:\n  - name: 'a\n", "2:11: a quote or a bracket is opened here and never closed"),
        ("queues: [a, b\n", "2:1: a `[` or `{` is not closed: put `]` or `}` at its end, or quotes around the text"),
        ("queues:\n  - name: @a", "2:11: a value cannot begin with this character: put quotes around it"),
        (
            "queues:\n  - name: *a",
            "2:11: a value cannot begin with `*` unless it names an anchor: put quotes around it",
        ),
        ("queues:\n  - name: !a", "2:11: a value cannot begin with `!`: put quotes around it"),
        (
            "queues: []\n---\nqueues: []",
            "2:1: a second document begins here: keep all the queues in one, without `---`",
        ),
        ("queues:\n  - name: a\x00", "2:12: a character that YAML does not permit: write the file as plain UTF-8 text"),
        ("queues: {a: 1, a: 2}", "1:16: `a` is given twice (first in line 1): drop one of them"),
        ("queues: &q [*q]", "1:9: values are nested without end here: write them without anchors and aliases"),
    ],
)
def test_broken_yaml_is_explained_in_our_own_words(tmp_path: Path, text: str, expected: str):
    problems = said(tmp_path, text)
    assert any(problem.startswith(expected) for problem in problems), problems


def test_an_error_names_the_file_once_a_line(tmp_path: Path):
    path = written(tmp_path, "queues:\n  - {name: a, typ: redis}\n")
    with pytest.raises(ConfigurationError) as raised:
        load(path)
    assert str(raised.value).splitlines() == [
        f"{path}:2:5: the type of queue `a` is not said: write `type: rabbitmq`, or another system",
    ]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: None, r"`.*queues.yaml` is not there \(the working directory is .*\): name the file"),
        (lambda path: path.mkdir(), r"`.*queues.yaml` cannot be read: Is a directory"),
        (lambda path: path.write_bytes(b"\xff"), r"`.*queues.yaml` is not written in UTF-8: save it so"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, make, expected: str):
    path = tmp_path / "queues.yaml"
    make(path)
    with pytest.raises(ConfigurationError, match=expected):
        load(path)


def test_without_pyyaml_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    with pytest.raises(ConfigurationError, match=r"`pip install carteiro\[config\]`"):
        load(written(tmp_path, "queues: []"))
