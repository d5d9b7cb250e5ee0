"""OpenAPI of what FastAPI does not see: bodies that the handlers parse themselves, the events of
streams, errors.

Schemas are written out where they are used, so that they need no components of the document.
"""

from collections.abc import Collection, Sequence
from typing import Any

from pydantic import BaseModel

from server.errors import REQUEST_ID, ErrorEnvelope
from server.schemas import REQUEST_ID_PATTERN

_Document = dict[str, Any]


def documented_body(schema: type[BaseModel], **examples: _Document) -> _Document:
    """For `openapi_extra`: a body of JSON, with an example of each name."""
    content = {
        "schema": _schema_of(schema),
        "examples": {name: {"value": value} for name, value in examples.items()},
    }
    name = {"type": "string", "pattern": REQUEST_ID_PATTERN}
    header = {"name": REQUEST_ID, "in": "header", "schema": name}
    body = {"required": True, "content": {"application/json": content}}
    return {"requestBody": body, "parameters": [header]}


def documented_events(*models: type[BaseModel], also: Sequence[str] = ()) -> _Document:
    """For a response: a stream whose events hold one of these, or one of the texts as it is."""
    every: list[type[BaseModel]] = [*models, ErrorEnvelope]
    shapes = [_schema_of(model) for model in every]
    content = {"contentMediaType": "application/json", "contentSchema": {"anyOf": shapes}}
    data = {"type": "string", "anyOf": [content, *({"const": text} for text in also)]}
    event = {"type": "object", "required": ["data"], "properties": {"data": data}}
    return {
        "headers": {REQUEST_ID: {"schema": {"type": "string"}}},
        "content": {"text/event-stream": {"itemSchema": event}},
    }


def document_keys(document: _Document, open_paths: Collection[str]) -> None:
    """Writes into a whole document that all paths but these want a key."""
    schemes = document["components"].setdefault("securitySchemes", {})
    schemes["key"] = {"type": "http", "scheme": "bearer"}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["security"] = [] if path in open_paths else [{"key": []}]


def documented_errors(*statuses: int) -> dict[int | str, _Document]:
    """For `responses`: errors of these statuses, in the one envelope."""
    documents: dict[int | str, _Document] = {
        status: {"model": ErrorEnvelope} for status in statuses
    }
    for status, header in ((401, "WWW-Authenticate"), (429, "Retry-After")):
        if status in documents:
            documents[status]["headers"] = {header: {"schema": {"type": "string"}}}
    return documents


def _schema_of(model: type[BaseModel]) -> _Document:
    document = model.model_json_schema()
    definitions = document.pop("$defs", {})
    inlined: _Document = _inlined(document, definitions)
    return inlined


def _inlined(node: Any, definitions: _Document) -> Any:
    """The same schema with its definitions in the place of references to them."""
    if isinstance(node, list):
        return [_inlined(child, definitions) for child in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        node = {**definitions[node["$ref"].rpartition("/")[2]], **node}
        del node["$ref"]
    return {key: _inlined(child, definitions) for key, child in node.items()}
