"""The schemas of the chart's custom resources, as much of them as is used there."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

_CRDS = Path(__file__).resolve().parents[2] / "deploy" / "chart" / "csi-local" / "crds"
_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "boolean": bool,
    "number": (int, float),
}


@cache
def _schemas() -> Mapping[str, Mapping[str, Any]]:
    found = {}
    for path in _CRDS.glob("*.yaml"):
        spec = yaml.safe_load(path.read_text())["spec"]
        found[spec["names"]["plural"]] = spec["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def complaint(plural: str, made: Mapping[str, Any]) -> str:
    """Say what the schema has against an object; a field that it does not know counts, though the API drops it."""
    schema = _schemas().get(plural)
    if schema is None:
        return ""
    return _wrong(schema, {key: value for key, value in made.items() if key in ("spec", "status")}, "")


def _wrong(schema: Mapping[str, Any], value: Any, path: str) -> str:  # noqa: ANN401 (JSON)
    if value is None:
        return "" if schema.get("nullable") else f"{path} is null"
    kind = _TYPES[schema["type"]]
    if not isinstance(value, kind) or (schema["type"] == "integer" and isinstance(value, bool)):
        return f"{path} is no {schema['type']}: {value!r}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{path}: {value!r} is none of {schema['enum']}"
    if isinstance(value, str) and not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 1 << 30):
        return f"{path}: {value!r} is too short or too long"
    if isinstance(value, int) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        return f"{path}: {value!r} is too little or too much"
    if isinstance(value, dict):
        return _wrong_object(schema, value, path)
    if isinstance(value, list):
        found = (_wrong(schema["items"], one, f"{path}[{index}]") for index, one in enumerate(value))
        return next(filter(None, found), "")
    return ""


def _wrong_object(schema: Mapping[str, Any], value: Mapping[str, Any], path: str) -> str:
    missing = [name for name in schema.get("required", ()) if name not in value]
    if missing:
        return f"{path} lacks {missing}"
    for name, one in value.items():
        inner = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
        if inner is None:
            return f"{path}.{name} is unknown"
        if wrong := _wrong(inner, one, f"{path}.{name}"):
            return wrong
    return ""
