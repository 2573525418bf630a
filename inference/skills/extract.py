"""Skill `extract`: which values does a text give for these fields? Every value is a span of the
input.

For each sentence the candidates of each field are found by rules; where more than one is left, the
model chooses among them by a schema that allows nothing else. So it cannot invent, only mistake one
span for another. Numbers are converted by code.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jsonschema
import msgspec

from covey.inference.engine import ChatMessage, GenerateRequest
from covey.inference.errors import BadRequest, Unsupported

from .skill import Context, Skill, check_items
from .spans import Span, find_spans

FIELDS_MAX = 16
ITEMS_MAX = 200
CANDIDATES_MAX = 24
_TYPES = ("string", "number", "integer", "boolean")
_KEYWORDS = frozenset({"type", "description", "enum", "title", "examples"})
_ROOT_KEYWORDS = frozenset(
    {
        "type",
        "properties",
        "required",
        "additionalProperties",
        "title",
        "description",
        "$schema",
        "$id",
    }
)
# Which kinds of span a field of this name is likely to be; the first that the sentence has is used.
_HINTS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("unit",), ("unit",)),
    (("time", "date", "when", "timestamp"), ("time",)),
    (("ip", "address", "host"), ("address", "identifier")),
    (("path", "file", "directory", "mount"), ("path", "quoted")),
    (("message", "quote", "title"), ("quoted", "word")),
    (("metric", "quantity", "measure", "property", "what", "kind", "symptom"), ("word",)),
    (
        (
            "machine",
            "device",
            "sensor",
            "id",
            "name",
            "package",
            "service",
            "unit_id",
            "component",
            "node",
        ),
        ("identifier", "quoted", "word"),
    ),
)
_ANY = ("identifier", "quoted", "path", "address", "time", "word", "unit")


class ExtractRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A flat JSON schema, and texts: given here, or the last `tail` lines of the task's data source."""

    schema: dict[str, Any]
    text: str | None = None
    items: tuple[str, ...] = ()
    tail: int = 20
    model: str | None = None


class Extracted(msgspec.Struct, frozen=True, kw_only=True):
    """What one text says; null where it says nothing."""

    line: int
    fields: dict[str, str | float | int | bool | None]
    spans: dict[str, tuple[int, int]]
    """Where in the text each value stands."""
    missing: tuple[str, ...] = ()
    """Required fields for which the text has no candidate."""
    chosen_by: dict[str, str] = {}
    """`only` candidate, or `model`."""


class ExtractResult(msgspec.Struct, frozen=True, kw_only=True):
    """One entry for each text."""

    items: tuple[Extracted, ...]
    model: str = ""


class _Field(msgspec.Struct, frozen=True):
    name: str
    type: str
    description: str
    choices: tuple[str, ...]


EXAMPLES = (
    (
        (
            "Sentence: fan-7 shows a temperature of 61 °C, limit 80 °C.\n"
            "Fields: metric (temperature, limit), value (61, 80)"
        ),
        '{"metric": "temperature", "value": "61"}',
    ),
    (
        (
            "Sentence: At 14:05 mixer_2 measured pressure 3.1 bar while fan-7 was off.\n"
            "Fields: machine (mixer_2, fan-7)"
        ),
        '{"machine": "mixer_2"}',
    ),
)


async def run(request: ExtractRequest, context: Context) -> ExtractResult:
    """Extract from every text."""
    fields = read_schema(request.schema)
    required = frozenset(request.schema.get("required", ()))
    items = (request.text,) if request.text is not None else request.items
    check_items(items, items_max=ITEMS_MAX)
    found: list[Extracted] = []
    used = ""
    for line, text in enumerate(items, start=1):
        if len(items) > 1:
            context.progress(f"{line} of {len(items)}")
        candidates = {field.name: candidates_for(field, text) for field in fields}
        chosen, by, used_now = await _choose(fields, text, candidates, request.model, context)
        used = used_now or used
        found.append(_extracted(line, fields, chosen, by, required))
    return ExtractResult(items=tuple(found), model=used)


def read_schema(schema: Mapping[str, Any]) -> list[_Field]:
    """Return the fields of a flat object schema.

    Raises:
        BadRequest: it is no JSON schema.
        Unsupported: it asks for what spans cannot give; names the place.
    """
    try:
        jsonschema.Draft202012Validator.check_schema(dict(schema))
    except jsonschema.SchemaError as error:
        raise BadRequest(f"not a JSON schema: {error.message}") from error
    if schema.get("type") != "object" or not schema.get("properties"):
        raise Unsupported("the schema must be an object with properties, at '$'")
    if unknown := set(schema) - _ROOT_KEYWORDS:
        raise Unsupported(f"extract cannot do {min(unknown)!r}, at '$'; it fills flat fields only")
    properties: dict[str, Any] = schema["properties"]
    if len(properties) > FIELDS_MAX:
        raise Unsupported(f"at most {FIELDS_MAX} fields, not {len(properties)}")
    fields = [_field(name, entry) for name, entry in properties.items()]
    if strange := set(schema.get("required", ())) - set(properties):
        raise BadRequest(f"required field {min(strange)!r} is not among the properties")
    return fields


def _field(name: str, entry: Any) -> _Field:
    place = f"$.properties.{name}"
    try:
        described = msgspec.convert(entry, dict[str, Any])
    except msgspec.ValidationError as error:
        raise Unsupported(f"a field is described by an object, at {place!r}") from error
    kind = described.get("type", "string" if "enum" in described else None)
    if kind not in _TYPES:
        raise Unsupported(f"extract fills {', '.join(_TYPES)}, not {kind!r}, at {place!r}")
    if unknown := set(described) - _KEYWORDS:
        raise Unsupported(f"extract cannot do {min(unknown)!r}, at {place!r}")
    choices = described.get("enum", ())
    if not all(isinstance(choice, str) for choice in choices):
        raise Unsupported(f"an enum of texts only, at {place!r}")
    return _Field(name, kind, str(described.get("description", "")), tuple(choices))


def candidates_for(field: _Field, text: str) -> list[Span]:
    """Return the spans of `text` that could be the field's value."""
    spans = find_spans(text)
    if field.choices:
        return [
            Span(at, at + len(choice), choice, "choice")
            for choice in field.choices
            if (at := text.lower().find(choice.lower())) >= 0
        ]
    if field.type in ("number", "integer"):
        numbers = [span for span in spans if span.kind == "number"]
        whole = [span for span in numbers if _is_whole(span.text)]
        return (whole if field.type == "integer" else numbers)[:CANDIDATES_MAX]
    if field.type == "boolean":
        return [
            Span(at, at + len(word), word, "choice")
            for word in ("true", "false")
            if (at := text.find(word)) >= 0
        ]
    for kind in _kinds(field):
        matching = [span for span in spans if span.kind == kind]
        if matching:
            return matching[:CANDIDATES_MAX]
    return []


def _kinds(field: _Field) -> Sequence[str]:
    words = set(
        f"{field.name} {field.description}".lower().replace("_", " ").replace("-", " ").split()
    )
    for names, kinds in _HINTS:
        if words & set(names):
            return kinds
    return _ANY


async def _choose(
    fields: Sequence[_Field],
    text: str,
    candidates: Mapping[str, list[Span]],
    model: str | None,
    context: Context,
) -> tuple[dict[str, Span], dict[str, str], str]:
    chosen: dict[str, Span] = {}
    by: dict[str, str] = {}
    open_fields: list[_Field] = []
    for field in fields:
        texts = {span.text for span in candidates[field.name]}
        if len(texts) == 1:
            chosen[field.name], by[field.name] = candidates[field.name][0], "only"
        elif texts:
            open_fields.append(field)
    if not open_fields:
        return chosen, by, ""
    options = {
        field.name: list(dict.fromkeys(span.text for span in candidates[field.name]))
        for field in open_fields
    }
    answer, used = await _ask_model(open_fields, text, options, model, context)
    for field in open_fields:
        wanted = answer.get(field.name)
        span = next((one for one in candidates[field.name] if one.text == wanted), None)
        # A model that was cut short chose nothing; the first candidate would be a guess.
        if span is not None:
            chosen[field.name], by[field.name] = span, "model"
    return chosen, by, used


async def _ask_model(
    fields: Sequence[_Field],
    text: str,
    options: Mapping[str, list[str]],
    model: str | None,
    context: Context,
) -> tuple[dict[str, Any], str]:
    described = "; ".join(
        field.name
        + (f" - {field.description}" if field.description else "")
        + f" ({', '.join(options[field.name])})"
        for field in fields
    )
    messages = [
        ChatMessage(
            "system", "Choose for each field the value that the sentence gives. Answer in JSON."
        )
    ]
    for asked, answered in EXAMPLES:
        messages += [ChatMessage("user", asked), ChatMessage("assistant", answered)]
    messages.append(ChatMessage("user", f"Sentence: {text}\nFields: {described}"))
    completion = await context.models.generate(
        GenerateRequest(
            messages=tuple(messages),
            max_tokens=48 + 24 * len(fields),
            json_schema={
                "type": "object",
                "properties": {name: {"enum": values} for name, values in options.items()},
                "required": list(options),
                "additionalProperties": False,
            },
        ),
        model=model,
        deadline_s=context.deadline_s,
    )
    try:
        answer = msgspec.json.decode(completion.text, type=dict[str, Any])
    except msgspec.MsgspecError:
        answer = {}
    return answer, completion.model


def _extracted(
    line: int,
    fields: Sequence[_Field],
    chosen: Mapping[str, Span],
    by: dict[str, str],
    required: frozenset[str],
) -> Extracted:
    return Extracted(
        line=line,
        fields={field.name: _value(field, chosen.get(field.name)) for field in fields},
        spans={name: (span.start, span.end) for name, span in chosen.items()},
        missing=tuple(sorted(required - set(chosen))),
        chosen_by=by,
    )


def _value(field: _Field, span: Span | None) -> str | float | int | bool | None:
    if span is None:
        return None
    if field.type == "integer":
        return int(float(span.text))
    if field.type == "number":
        return float(span.text)
    if field.type == "boolean":
        return span.text == "true"
    return span.text


def _is_whole(text: str) -> bool:
    return float(text).is_integer()


SKILL = Skill("extract", ExtractRequest, run, ("text",), takes_data=True)
