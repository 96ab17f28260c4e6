"""The OpenAPI document of a gateway, built from the tables of its routes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gateway.passing import QUERY, RELAYS, Relay
from gateway.request_schemas import RELAY_SCHEMAS, SURFACE_SCHEMAS
from gateway.surfaces import SURFACES

__all__ = ["document"]

JSON, EVENTS, FORM = "application/json", "text/event-stream", "multipart/form-data"

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ANY = {JSON: {"schema": {"type": "object"}}}
_FAILED = {
    "description": "what went wrong",
    "content": {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
}


def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), surface in SURFACES.items():
        content = {JSON: {"schema": SURFACE_SCHEMAS[surface.path]}}
        one = surface.counts or surface.decides or surface.endpoint == "embeddings"
        told = {**_ANY} if one else {**_ANY, EVENTS: {}}
        paths[path] = {method.lower(): _operation(method, path, told, content)}
    for relay in RELAYS:
        paths.setdefault(f"/v1{relay.path}", {})[relay.method.lower()] = _relay(relay)
    for path in ("/v1/models", "/v1/models/{id}"):
        paths[path] = {"get": _operation("GET", path, _ANY)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Chorus", "version": "v1"},
        "paths": paths,
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _relay(relay: Relay) -> dict[str, Any]:
    schema = RELAY_SCHEMAS.get(relay.path, {"type": "object"})
    content = {JSON if relay.body == "json" else FORM: {"schema": schema}} if relay.body != "none" else None
    operation = _operation(relay.method, relay.path, {"*/*": {}}, content)
    query = [*sorted(QUERY), "model"] if relay.body == "none" else sorted(QUERY)
    operation["parameters"] += [{"name": key, "in": "query", "schema": {"type": "string"}} for key in query]
    return operation


def _operation(
    method: str, path: str, told: Mapping[str, Any], content: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}_{path.removeprefix('/v1').strip('/')}").strip(
            "_"
        ),
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in re.findall(r"{(\w+)}", path)
        ],
        "responses": {"200": {"description": "the answer", "content": dict(told)}, "default": _FAILED},
    }
    if content is not None:
        operation["requestBody"] = {"required": True, "content": content}
    return operation
