"""The published JSON Schema is the one that the models make today, and says what the reader says."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from carteiro.config.options import QueueOptions
from carteiro.config.schema import schema, schema_text
from carteiro.config.systems import SYSTEMS
from tests.unit.config_files import TOUR, written

PUBLISHED = Path(__file__).parents[2] / "docs" / "queues.schema.json"


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from carteiro.cli import main; main()", "config", *args]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_published_schema_is_the_one_that_is_generated():
    assert PUBLISHED.read_text() == schema_text(), "make it again: carteiro config schema > docs/queues.schema.json"


def test_the_package_has_the_same_schema():
    shipped = files("carteiro.config") / "queues.schema.json"
    assert shipped.read_text() == schema_text(), "make it again: cp docs/queues.schema.json src/carteiro/config/"


def test_the_command_prints_the_schema():
    printed = run("schema")
    assert (printed.stdout, printed.stderr) == (schema_text(), "")


@pytest.mark.parametrize("kind", SYSTEMS)
def test_every_key_of_a_type_is_in_its_table_with_a_description(kind: str):
    definitions = schema()["definitions"]
    table = definitions[SYSTEMS[kind].__name__]
    assert set(table["properties"]) == set(SYSTEMS[kind].model_fields)
    assert (table["additionalProperties"], table["required"]) == (False, ["name"])
    for key, said in table["properties"].items():
        full = definitions[said["$ref"].rpartition("/")[2]] if "$ref" in said else said
        assert key == "type" or "description" in full, key


def test_a_number_may_stand_in_a_variable():
    definitions = schema()["definitions"]
    assert {"type": "string", "pattern": r"\$\{"} in definitions["key_enable_dlq"]["anyOf"]


def test_every_key_but_name_and_type_may_be_empty():
    definitions = schema()["definitions"]
    for model in SYSTEMS.values():
        for key, said in definitions[model.__name__]["properties"].items():
            full = definitions[said["$ref"].rpartition("/")[2]] if "$ref" in said else said
            may_be_empty = {"type": "null"} in full.get("anyOf", ()) or "null" in full.get("type", ())
            assert may_be_empty == (key not in ("name", "type")), key


def test_defaults_have_the_same_keys_without_a_name():
    definitions = schema()["definitions"]
    assert set(definitions["AnyQueueDefaults"]["properties"]) == set(QueueOptions.model_fields) - {"name"}
    assert "name" not in definitions["RabbitQueueDefaults"]["required"]


def test_every_reference_leads_somewhere():
    made = schema()
    text = json.dumps(made)
    named = {part.partition('"')[0] for part in text.split('"#/definitions/')[1:]}
    assert named - made["definitions"].keys() == set()


def test_a_sound_file_is_shown_as_a_table():
    done = run("check", str(TOUR))
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "queue         type      broker   address                 consumes  publishes  options",
        "user_channel  rabbitmq  default  amqps://localhost:5671  yes       yes        -",
    ]


def test_a_file_with_errors_is_told_line_by_line_and_fails(tmp_path: Path):
    path = written(tmp_path, "queues:\n  - name: a\n    type: redis\n    prot: 1\n    db: x\n")
    done = run("check", path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        f"{path}:4:5: `prot` of queue `a` is no key: did you mean `port`?",
        f"{path}:5:5: `db: x` of queue `a` is no whole number",
        f"carteiro: `{path}` cannot be used: 2 problems",
    ]
    assert json.loads(run("check", path, "--json").stdout)["problems"] == done.stderr.splitlines()[:2]


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path):
    done = run("check", str(tmp_path / "none.yaml"))
    assert done.returncode == 1
    assert done.stderr.startswith(f"carteiro: `{tmp_path}/none.yaml` is not there")


def test_a_worker_whose_file_is_refused_lists_all_and_ends_with_one_line(tmp_path: Path):
    path = written(tmp_path, "queues:\n  - name: a\n    type: redis\n    prot: 1\n    db: x\n")
    (tmp_path / "service.py").write_text(f"from carteiro import Carteiro\napp = Carteiro.from_config({path!r})\n")
    command = [sys.executable, "-c", "from carteiro.cli import main; main()", "run", "service:app"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    *above, last = done.stderr.splitlines()
    assert f"{path}:5:5: `db: x` of queue `a` is no whole number" in above
    assert last == (
        f"carteiro: module `service` cannot be imported: {path}:4:5: `prot` of queue `a` is no key: "
        "did you mean `port`? (and 1 more, above)"
    )
