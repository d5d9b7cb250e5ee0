"""OpenAPI of what FastAPI does not see: bodies that the handlers parse themselves, the events of
streams, errors, keys.
"""

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from server.errors import REQUEST_ID, ErrorEnvelope
from server.schemas import REQUEST_ID_PATTERN

_REF = "#/components/schemas/{model}"

_Document = dict[str, Any]

_documented: dict[type[BaseModel], JsonSchemaMode] = {}
"""Models that documents refer to by name."""


def documented_body(schema: type[BaseModel], **examples: _Document) -> _Document:
    """For `openapi_extra`: a body of JSON, with an example of each name."""
    content = {
        "schema": _reference(schema, "validation"),
        "examples": {name: {"value": value} for name, value in examples.items()},
    }
    name = {"type": "string", "pattern": REQUEST_ID_PATTERN}
    header = {"name": REQUEST_ID, "in": "header", "schema": name}
    body = {"required": True, "content": {"application/json": content}}
    return {"requestBody": body, "parameters": [header]}


def documented_events(*models: type[BaseModel], also: Sequence[str] = ()) -> _Document:
    """For a response: a stream whose events hold one of these, or one of the texts as it is."""
    every: list[type[BaseModel]] = [*models, ErrorEnvelope]
    shapes = [_reference(model, "serialization") for model in every]
    content = {"contentMediaType": "application/json", "contentSchema": {"anyOf": shapes}}
    data = {"type": "string", "anyOf": [content, *({"const": text} for text in also)]}
    # of each event: OpenAPI 3.1 has no other word for streams
    event = {"type": "object", "required": ["data"], "properties": {"data": data}}
    return {
        "headers": {REQUEST_ID: {"schema": {"type": "string"}}},
        "content": {"text/event-stream": {"schema": event}},
    }


def documented_errors(*statuses: int) -> dict[int | str, _Document]:
    """For `responses`: errors of these statuses, in the one envelope."""
    documents: dict[int | str, _Document] = {
        status: {"model": ErrorEnvelope} for status in statuses
    }
    for status, header in ((401, "WWW-Authenticate"), (429, "Retry-After")):
        if status in documents:
            documents[status]["headers"] = {header: {"schema": {"type": "string"}}}
    return documents


def complete(document: _Document, locked: bool, is_open: Callable[[str], bool]) -> _Document:
    """Adds the models that are referred to, the server and the keys; `locked`: all paths want one
    but those that are open."""
    _, definitions = models_json_schema(list(_documented.items()), ref_template=_REF)
    components = document["components"]
    components["schemas"] = {**definitions["$defs"], **components["schemas"]}
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    key: _Document = {"key": []}
    document["security"] = [key] if locked else [{}, key]
    document["servers"] = [{"url": "/"}]
    for path, operations in document["paths"].items():
        if locked and is_open(path):
            for operation in operations.values():
                operation["security"] = []
    return document


def _reference(model: type[BaseModel], mode: JsonSchemaMode) -> _Document:
    _documented[model] = mode
    return {"$ref": _REF.format(model=model.__name__)}
