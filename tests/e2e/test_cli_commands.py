"""What an operator types, on a real file: publish, request, topics, dlq, doctor."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.e2e.cli import Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def declared(project: Project) -> Project:
    """The app's groups exist, and nobody works for them."""
    project.ok("publish", "who", "first", "--app", "hello:app")
    return project


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """As `declared`, for those that change nothing."""
    project = Project(tmp_path_factory.mktemp("untouched"))
    project.ok("publish", "who", "first", "--app", "hello:app")
    return project


def with_a_dead_letter(project: Project, sku: str = "bad") -> None:
    with project.running("hello:app") as worker:
        worker.ready()
        project.ok("publish", "checkout", msgspec.json.encode({"sku": sku}).decode(), "--header", "x-tenant=br")
        worker.until("gave up on")
        worker.send()
        worker.ended()


# -- publish and request ---------------------------------------------------------------------------------------------


def test_a_request_prints_what_the_handler_returned(project: Project) -> None:
    with project.running("hello:app") as worker:
        worker.ready()
        assert project.ok("request", "greetings", '"Ana"', "--app", "hello:app") == "hello, Ana\n"
        assert project.ok("request", "greetings", "Ana", "--app", "hello:app", "--json") == '"hello, Ana"\n'


def test_a_request_that_nobody_answers_says_so(declared: Project) -> None:
    asked = declared.carteiro("request", "greetings", "Ana", "--timeout", "50ms")
    assert (asked.returncode, asked.stderr) == (1, "carteiro: no reply from `greetings` within 0.05 s\n")


def test_publish_keeps_json_to_the_digit_and_makes_a_string_of_text(declared: Project) -> None:
    declared.ok("publish", "checkout", '{"amount": 1.10, "n": 123456789012345678901234567890}', "--key", "7")
    declared.ok("publish", "checkout", "plain {text}")
    declared.ok("publish", "checkout", "-", input="from stdin\n")
    peeked = declared.ok("topics", "peek", "checkout", "--json")
    assert '{"amount": 1.10, "n": 123456789012345678901234567890}' in peeked
    assert [one["body"] for one in msgspec.json.decode(peeked)[1:]] == ["plain {text}", "from stdin"]
    assert [one["key"] for one in msgspec.json.decode(peeked)] == ["7", None, None]


def test_publish_takes_type_headers_id_and_delay(declared: Project) -> None:
    options = ("--type", "order", "--header", "x-tenant=br", "--header", "a=b=c", "--id", "order-1")
    assert declared.ok("publish", "checkout", "1", *options) == "order-1\n"
    assert declared.json("publish", "checkout", "2", *options) == {"topic": "checkout", "id": "order-1"}
    declared.ok("publish", "checkout", "3", "--delay", "1h30m")
    (message,) = [one for one in declared.json("topics", "peek", "checkout") if one["id"] == "order-1"]
    assert message["headers"] == {"type": "order", "x-tenant": "br", "a": "b=c"}
    assert message["body"] == 1
    assert (declared.queue("checkout")["waiting"], declared.queue("checkout")["delayed"]) == (1, 1)


def test_publish_lines_makes_a_message_of_each(declared: Project) -> None:
    lines = "".join(f"{number}\n" for number in range(2500)) + "\n"
    assert declared.ok("publish", "kept", "-", "--lines", input=lines) == "published 2500 messages to kept\n"
    assert declared.queue("kept")["waiting"] == 2500


def test_what_no_group_gets_is_warned_of_and_mandatory_fails(declared: Project) -> None:
    warned = declared.carteiro("publish", "nobody", "1")
    assert warned.returncode == 0
    assert warned.stderr.startswith("carteiro: no group gets `nobody`")
    refused = declared.carteiro("publish", "nobody", "1", "--mandatory")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("carteiro: no group gets `nobody`")


# -- topics ------------------------------------------------------------------------------------------------------------


def test_topics_shows_what_waits_in_plain_columns(declared: Project) -> None:
    declared.ok("publish", "checkout", "1")
    header, *rows = declared.ok("topics").splitlines()
    assert header.split()[:6] == ["topic", "group", "waiting", "delayed", "retrying", "in"]
    (row,) = [row.split() for row in rows if row.startswith("checkout")]
    assert row[:7] == ["checkout", "hello", "1", "0", "0", "0", "0"]
    assert row[7].endswith("s")
    assert declared.ok("topics", "list").splitlines()[0] == header


def test_rewind_delivers_again_what_a_retained_topic_kept(project: Project) -> None:
    with project.running("hello:app") as worker:
        worker.ready()
        project.ok("publish", "kept", "1")
        worker.until("number 1")
        assert project.ok("topics", "rewind", "kept", "--to", "1h") == "1 message delivered again\n"
        worker.until("number 1")
        rewound = project.json("topics", "rewind", "kept", "--group", "analytics", "--to", "2999-01-01")
        assert rewound == {"topic": "kept", "group": "analytics", "delivered_again": 0}


def test_purge_drops_what_waits_and_remove_group_ends_it(declared: Project) -> None:
    declared.ok("publish", "checkout", "1")
    assert declared.ok("topics", "purge", "checkout") == "1 message dropped\n"
    assert declared.queue("checkout")["waiting"] == 0
    assert declared.ok("topics", "remove-group", "checkout") == "removed the group hello of checkout\n"
    assert "checkout" not in [one["topic"] for one in declared.json("topics")]


# -- dead letters ------------------------------------------------------------------------------------------------------


def test_a_dead_letter_shows_each_attempt_with_its_traceback(project: Project) -> None:
    with_a_dead_letter(project)
    (listed,) = project.json("dlq", "list")
    assert (listed["queue"], listed["reason"]) == ("dlq_checkout", "ValueError: no such sku: bad")
    assert listed["message"]["body"] == {"sku": "bad"}
    shown = project.ok("dlq", "show", "dlq_checkout", listed["id"])
    assert shown.count("raise ValueError(f\"no such sku: {order['sku']}\")") == 2
    assert "2 attempts" in shown
    assert "x-tenant: br" in shown
    assert '    "sku": "bad"\n' in shown
    assert "dlq_checkout" in project.ok("dlq")


def test_a_replayed_dead_letter_goes_back_to_its_group(project: Project) -> None:
    with_a_dead_letter(project)
    assert project.ok("dlq", "replay", "dlq_checkout", "--all") == "1 message replayed\n"
    assert (project.queue("checkout")["waiting"], project.queue("checkout")["dead"]) == (1, 0)
    assert project.json("topics", "peek", "checkout")[0]["attempt"] == 1


def test_a_dead_letter_is_replayed_with_an_edited_body(project: Project) -> None:
    with_a_dead_letter(project)
    (letter,) = project.json("dlq", "list")
    editor = project.write("mend.sh", 'sed -i s/bad/good/ "$1"\n')
    project.ok("dlq", "replay", "dlq_checkout", letter["id"], "--edit", EDITOR=f"sh {editor}")
    with project.running("hello:app") as worker:
        worker.until("checked out good")


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ('echo "{" > "$1"', "the body is no JSON any more"),
        ("true", "the body was not changed"),
        ("exit 3", "ended with exit code 3"),
    ],
)
def test_an_edit_that_went_wrong_replays_nothing(project: Project, script: str, complaint: str) -> None:
    with_a_dead_letter(project)
    (letter,) = project.json("dlq", "list")
    editor = project.write("edit.sh", script + "\n")
    edited = project.carteiro(
        "dlq", "replay", "dlq_checkout", letter["id"], "--edit", EDITOR=f"sh {editor}", TMPDIR=str(project.folder)
    )
    assert edited.returncode == 1
    assert complaint in edited.stderr
    assert project.queue("checkout")["dead"] == 1


def test_purge_deletes_dead_letters_by_age(project: Project) -> None:
    with_a_dead_letter(project)
    assert project.ok("dlq", "purge", "dlq_checkout", "--older-than", "7d") == "0 dead letters deleted\n"
    assert project.json("dlq", "purge", "dlq_checkout", "--all") == {"queue": "dlq_checkout", "deleted": 1}
    assert project.ok("dlq", "list") == "no dead letters\n"


# -- doctor ------------------------------------------------------------------------------------------------------------


def test_doctor_finds_a_sound_broker_and_what_it_can_do(declared: Project) -> None:
    assert "durability" in declared.ok("doctor")
    found = declared.json("doctor")
    assert {check["status"] for check in found["checks"]} <= {"ok", "warning"}
    assert found["features"]["dead letters"]["level"] == "native"


def test_doctor_exits_with_1_on_an_error(project: Project) -> None:
    project.write("broken.db", "this is no database, whatever its name says" * 100)
    done = project.carteiro("doctor", "--broker", "sqlite:///broken.db", "--json")
    assert done.returncode == 1
    assert "error" in {check["status"] for check in msgspec.json.decode(done.stdout)["checks"]}


# -- what is wrong is said in one line ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("topics peek nowhere", 1, "no group has subscribed to `nowhere`: there is checkout, deadly, greetings"),
        ("topics peek checkout --group x", 1, "`checkout` has no group `x`: it has hello"),
        ("topics rewind checkout --to 7d", 1, "`checkout` keeps nothing"),
        ("topics rewind kept --to yesterday", 2, "`yesterday` is no time"),
        ("topics --watch", 2, "--watch needs a terminal"),
        ("topics nonsense", 2, "No such command 'nonsense'"),
        ("topics --broker foo://x", 1, "no backend for `foo://`"),
        ("topics --broker memory://", 1, "can be used from its own process only"),
        ("topics --broker sqlite:////no/such/folder/x.db", 3, "/no/such/folder"),
        ("topics --app hello:app --broker memory://", 2, "give either --app or --broker"),
        ("dlq show dlq_x 1", 1, "there are no dead letters in `dlq_x`"),
        ("dlq replay dlq_x", 2, "Give their ids, or --all"),
        ("dlq replay dlq_x --all --edit", 2, "--edit takes one dead letter"),
        ("dlq purge dlq_x", 2, "Give --older-than 7d, or --all"),
        ("publish checkout", 2, "Missing argument 'BODY'"),
        ("publish che..kout 1", 1, "`che..kout` is no topic"),
        ("publish checkout 1 --delay soon", 2, "`soon` is no length of time"),
        ("publish checkout 1 --header foo", 2, "`foo` is no header"),
        ("publish checkout 1 --lines", 2, "--lines reads the messages from stdin"),
        ("request nobody 1", 1, "no group handles `nobody`"),
        ("run nope:app", 1, "there is no module `nope`"),
        ("run hello:nope", 1, "module `hello` has no `nope`: it has `hello:app`"),
        ("run hello:greet", 1, "`hello:greet` is a function, and no Carteiro"),
        ("run hello.py", 2, "write it as module:app, here perhaps hello:app"),
        ("run hello:app --only nobody", 1, "no subscribers among nobody"),
    ],
)
def test_an_error_is_one_line_that_names_the_cause(untouched: Project, command: str, code: int, says: str) -> None:
    done = untouched.carteiro(*command.split())
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert done.stderr.startswith("carteiro: ")
    assert done.stderr.count("\n") == 1


def test_without_a_broker_at_hand_a_command_asks_which(project: Project) -> None:
    done = project.carteiro("topics")
    assert done.returncode == 1
    assert "which broker? There is no ./carteiro.db here" in done.stderr
    assert not (project.folder / "carteiro.db").exists()


def test_the_environment_names_the_broker(project: Project) -> None:
    assert project.ok("topics", CARTEIRO_BROKER="sqlite:///other.db") == "no group has subscribed to anything yet\n"


def test_debug_shows_the_traceback(declared: Project) -> None:
    assert "Traceback" in declared.carteiro("--debug", "topics", "peek", "nowhere").stderr
    assert "Traceback" in declared.carteiro("topics", "peek", "nowhere", CARTEIRO_DEBUG="1").stderr


def test_version(project: Project) -> None:
    assert project.ok("--version").startswith("carteiro 0.")
