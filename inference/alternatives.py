"""Which answers does a constraint allow, where they can be listed one by one? Pure.

For an engine without grammars: it scores what may stand in each place and chooses. A grammar that is
nothing but literals, and a flat object of enums, can be listed; everything else is `Unsupported`.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Literal, NoReturn

import msgspec

from .errors import Unsupported

ALTERNATIVES_MAX = 256
FIELDS_MAX = 64

Part = tuple[str, ...]
"""What may stand in one place of an answer; where there is only one, it does."""

_LITERAL = r'"(?:[^"\\\r\n]|\\.)*"'
_RULE = re.compile(rf"\s*root\s*::=\s*({_LITERAL}(?:\s*\|\s*{_LITERAL})*)\s*")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))")
_SIGNS = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "[": "[", "]": "]"}
Value = str | int | float | bool | None
_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,), "boolean": (bool,), "null": (type(None),), "integer": (int,),
    "number": (int, float),
}  # fmt: skip


class _Field(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    enum: tuple[Value, ...] | msgspec.UnsetType = msgspec.UNSET
    const: Value | msgspec.UnsetType = msgspec.UNSET
    type: Literal["string", "boolean", "null", "integer", "number"] | None = None
    title: str = ""
    description: str = ""


class _Flat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A JSON schema of this kind; every other has another keyword, or another type of one."""

    type: Literal["object"]
    properties: dict[str, _Field]
    required: tuple[str, ...] = ()
    additional: bool = msgspec.field(default=False, name="additionalProperties")
    title: str = ""
    description: str = ""
    schema: str = msgspec.field(default="", name="$schema")


def of_grammar(grammar: str) -> list[Part]:
    """Return the one place of a grammar such as `root ::= "low" | "high"`.

    Raises:
        Unsupported: it is any other.
    """
    rule = _RULE.fullmatch(grammar)
    if rule is None:
        _refuse('a grammar of literals only, as root ::= "low" | "high"')
    literals = [_unescaped(one[1:-1]) for one in re.findall(_LITERAL, rule[1])]
    if not all(literals):
        _refuse("a grammar whose literals are not empty")
    return [_part(literals)]


def of_schema(schema: Mapping[str, Any]) -> list[Part]:
    """Return the places of a flat object of enums, written as JSON, each choice with what ends it.

    Every property is filled in, also those that need not be.

    Raises:
        Unsupported: it is any other schema.
    """
    try:
        flat = msgspec.convert(schema, _Flat)
    except (msgspec.ValidationError, RecursionError):
        _refuse("a schema that is an object of enums")
    if not 1 <= len(flat.properties) <= FIELDS_MAX:
        _refuse(f"a schema of 1 to {FIELDS_MAX} fields")
    if not set(flat.required) <= set(flat.properties):
        _refuse("a schema that requires only what it describes")
    parts: list[Part] = []
    for at, (name, field) in enumerate(flat.properties.items()):
        end = "}" if at == len(flat.properties) - 1 else ","
        parts.append((f"{' ' if at else '{'}{_json(name)}: ",))
        parts.append(_part([_json(value) + end for value in _values(field)]))
    return parts


def _values(field: _Field) -> tuple[Value, ...]:
    if (field.enum is msgspec.UNSET) is (field.const is msgspec.UNSET):
        _refuse("a schema whose fields are enums")
    values = (field.const,) if field.enum is msgspec.UNSET else field.enum
    found = tuple(one for one in values if one is not msgspec.UNSET)
    if not found:
        _refuse("a schema whose enums are not empty")
    allowed = _TYPES[field.type] if field.type is not None else (object,)
    # True is an int to Python, and not to JSON.
    if not all(
        isinstance(one, allowed) and (not isinstance(one, bool) or field.type in (None, "boolean"))
        for one in found
    ):
        _refuse("a schema whose enums are of their field's type")
    return found


def _part(texts: list[str]) -> Part:
    distinct = tuple(dict.fromkeys(texts))
    if len(distinct) > ALTERNATIVES_MAX:
        _refuse(f"a choice of at most {ALTERNATIVES_MAX}, not {len(distinct)},")
    return distinct


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _unescaped(text: str) -> str:
    def sign(found: re.Match[str]) -> str:
        code = found[1] or found[2] or found[3]
        if code is not None:
            number = int(code, 16)
            if number > 0x10FFFF or 0xD800 <= number < 0xE000:
                _refuse("a grammar of characters that exist")
            return chr(number)
        if found[4] not in _SIGNS:
            _refuse(f"a grammar without the escape \\{found[4]}")
        return _SIGNS[found[4]]

    return _ESCAPE.sub(sign, text)


def _refuse(what: str) -> NoReturn:
    raise Unsupported(
        f"the engine ctransformers keeps to {what}, and no other constraint; ask a model that runs "
        "on llama.cpp, which keeps to any: covey models ls"
    )
