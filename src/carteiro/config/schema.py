"""The JSON Schema of a file of queues, for editors: made of the models, so that it says what they say."""

from __future__ import annotations

import copy
import json
from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from carteiro.config.options import Part, QueueOptions, Service
from carteiro.config.systems import SYSTEMS, OtherQueue, Queue

_Schema = dict[str, Any]

_VARIABLE: Final = {"type": "string", "pattern": r"\$\{"}
"""A number or a choice may stand in a variable, which is a text until the file is read."""
_EMPTY: Final = {"type": "null"}


class _Generator(GenerateJsonSchema):
    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        return _or_variable(super().int_schema(schema))

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return _or_variable(super().float_schema(schema))

    def bool_schema(self, schema: core_schema.BoolSchema) -> JsonSchemaValue:
        return _or_variable(super().bool_schema(schema))

    def literal_schema(self, schema: core_schema.LiteralSchema) -> JsonSchemaValue:
        made = super().literal_schema(schema)
        return made if "const" in made else _or_variable(made)


def schema_text() -> str:
    """As it is published: `carteiro config schema`."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def schema() -> _Schema:
    """JSON Schema draft 7, which all editors know."""
    systems: list[type[Queue]] = [*SYSTEMS.values(), OtherQueue]
    models: list[type[Part]] = [Service, QueueOptions, *systems]
    _, made = models_json_schema(
        [(model, "validation") for model in models],
        schema_generator=_Generator,
        ref_template="#/definitions/{model}",
    )
    parts: _Schema = _tidy(made["$defs"])
    service, options = parts.pop("Service"), parts.pop("QueueOptions")
    queues = {model.__name__: parts.pop(model.__name__) for model in systems}
    queues["AnyQueue"] = _joined(options, *queues.values())
    defaults = {f"{name}Defaults": _without_name(part) for name, part in {**queues, "AnyQueue": options}.items()}
    keys: _Schema = {}
    tables = {name: _with_shared(part, keys) for name, part in (*queues.items(), *defaults.items())}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Queues of a carteiro service",
        **service,
        "properties": {
            **service["properties"],
            "defaults": {
                "description": "What holds for all queues that do not say it themselves.",
                **_by_type("Defaults", without="AnyQueueDefaults"),
            },
            "queues": {
                "type": "array",
                "minItems": 1,
                "items": {**_by_type("", without="AnyQueue"), "required": ["name"]},
            },
        },
        "required": ["queues"],
        # Without a type for all, each queue says its own.
        "if": {"properties": {"defaults": {"required": ["type"]}}, "required": ["defaults"]},
        "else": {"properties": {"queues": {"items": {"required": ["type"]}}}},
        "definitions": dict(sorted({**parts, **tables, **keys}.items())),
    }


def _by_type(suffix: str, *, without: str) -> _Schema:
    """The part that is for the type which is named; `without` is for none."""
    systems = list(SYSTEMS)
    cases = [(_is({"const": kind}), f"{model.__name__}{suffix}") for kind, model in SYSTEMS.items()]
    cases.append((_is({"not": {"enum": systems}}), f"OtherQueue{suffix}"))
    cases.append(({"not": {"required": ["type"]}}, without))
    return {
        "type": "object",
        "properties": {
            "type": {
                "description": "The system that it is on, or the URL's scheme of a backend of one's own.",
                "anyOf": [{"enum": systems}, {"type": "string"}],
            }
        },
        "allOf": [{"if": case, "then": {"$ref": f"#/definitions/{part}"}} for case, part in cases],
    }


def _is(kind: _Schema) -> _Schema:
    return {"properties": {"type": kind}, "required": ["type"]}


def _joined(*parts: _Schema) -> _Schema:
    """A table that may have any of their keys."""
    properties = {key: one for part in parts for key, one in part["properties"].items() if key != "type"}
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": ["name"]}


def _without_name(part: _Schema) -> _Schema:
    part = copy.deepcopy(part)
    del part["properties"]["name"]
    part["required"] = [key for key in part.pop("required", ()) if key not in ("name", "broker_url")]
    return part


def _with_shared(part: _Schema, keys: _Schema) -> _Schema:
    """With a key that says the same in several tables written once, in `keys`."""
    said = {key: one if key in ("name", "type") else _or_empty(one) for key, one in part["properties"].items()}
    properties = {
        key: {"$ref": f"#/definitions/key_{key}"} if keys.setdefault(f"key_{key}", one) == one else one
        for key, one in said.items()
    }
    return {**part, "properties": properties}


def _or_empty(made: _Schema) -> _Schema:
    """A key without a value undoes the default."""
    if "anyOf" not in made:
        return {**made, "type": [made["type"], "null"]}
    return made if _EMPTY in made["anyOf"] else {**made, "anyOf": [*made["anyOf"], _EMPTY]}


def _or_variable(made: JsonSchemaValue) -> JsonSchemaValue:
    return {"anyOf": [made, _VARIABLE]}


def _tidy(part: Any) -> Any:
    """Without what pydantic says to nobody's use: each key's name again, and that what is not given is null."""
    if isinstance(part, dict):
        return {
            key: _tidy(one)
            for key, one in part.items()
            if not (key == "title" and isinstance(one, str)) and not (key == "default" and one is None)
        }
    return [_tidy(one) for one in part] if isinstance(part, list) else part
