"""Skill `extract`: which values does a text give for these fields? Every value is a span of the
input.

For each text the candidates of each field are found by rules (`spans`, `candidates`); where more
than one is left, the model chooses among them by a schema that allows nothing else. So it cannot
invent, only mistake one span for another. Numbers are converted by code.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import jsonschema
import msgspec

from covey.inference.engine import ChatMessage, GenerateRequest
from covey.inference.errors import BadRequest, TooLong, Unsupported

from .candidates import Field, candidates_of
from .skill import Context, Skill, check_items
from .spans import Span, number_of

FIELDS_MAX = 16
ITEMS_MAX = 200
NAME_CHARACTERS_MAX = 64
DESCRIPTION_CHARACTERS_MAX = 200
CHOICES_MAX = 64
# What one prompt holds of a text, and of fields with their options, in tokens: with the examples
# and the answer it stays below the 1,024 that a request has by default.
PROMPT_TEXT_TOKENS_MAX = 320
PROMPT_FIELDS_TOKENS_MAX = 280
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
    """Required fields for which no value was found."""
    chosen_by: dict[str, str] = {}
    """`only` candidate, or `model`."""


class ExtractResult(msgspec.Struct, frozen=True, kw_only=True):
    """One entry for each text."""

    items: tuple[Extracted, ...]
    model: str = ""


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
        candidates = candidates_of(fields, text)
        try:
            chosen, by, used_now = await _choose(fields, text, candidates, request.model, context)
        except TooLong as error:
            raise TooLong(f"item {line}: {error}") from error
        used = used_now or used
        found.append(_extracted(line, fields, chosen, by, required))
    return ExtractResult(items=tuple(found), model=used)


def read_schema(schema: Mapping[str, Any]) -> list[Field]:
    """Return the fields of a flat object schema.

    Raises:
        BadRequest: it is no JSON schema.
        Unsupported: it asks for what spans cannot give; names the place.
    """
    try:
        jsonschema.Draft202012Validator.check_schema(dict(schema))
    except jsonschema.SchemaError as error:
        place = error.json_path
        raise BadRequest(f"not a JSON schema, at {place!r}: {_short(error.message)}") from error
    except RecursionError as error:
        raise BadRequest("not a JSON schema that can be read: it is nested too deeply") from error
    if schema.get("type") != "object" or not schema.get("properties"):
        raise Unsupported("the schema must be an object with properties, at '$'")
    if unknown := set(schema) - _ROOT_KEYWORDS:
        raise Unsupported(f"extract cannot do {min(unknown)!r}, at '$'; it fills flat fields only")
    properties: dict[str, Any] = schema["properties"]
    if len(properties) > FIELDS_MAX:
        raise Unsupported(f"at most {FIELDS_MAX} fields, not {len(properties)}, at '$.properties'")
    fields = [_field(name, entry) for name, entry in properties.items()]
    if strange := set(schema.get("required", ())) - set(properties):
        raise BadRequest(
            f"required field {min(strange)!r} is not among the properties, at '$.required'"
        )
    return fields


def _field(name: str, entry: Any) -> Field:
    place = f"$.properties.{_short(name)}"
    if not name.strip() or len(name) > NAME_CHARACTERS_MAX:
        raise BadRequest(f"a field's name has 1 to {NAME_CHARACTERS_MAX} characters, at {place!r}")
    try:
        described = msgspec.convert(entry, dict[str, Any])
    except msgspec.ValidationError as error:
        raise Unsupported(f"a field is described by an object, at {place!r}") from error
    kind = described.get("type", "string" if "enum" in described else None)
    if kind not in _TYPES:
        raise Unsupported(f"extract fills {', '.join(_TYPES)}, not {kind!r}, at {place!r}")
    if unknown := set(described) - _KEYWORDS:
        raise Unsupported(f"extract cannot do {min(unknown)!r}, at {place!r}")
    description = described.get("description", "")
    if len(description) > DESCRIPTION_CHARACTERS_MAX:
        raise BadRequest(
            f"a description has at most {DESCRIPTION_CHARACTERS_MAX} characters, not "
            f"{len(description)}, at {place!r}"
        )
    return Field(name, kind, description, _choices(described, kind, place))


def _choices(described: Mapping[str, Any], kind: str, place: str) -> tuple[str, ...]:
    if "enum" not in described:
        return ()
    choices: list[Any] = described["enum"]
    if kind != "string" or not all(isinstance(one, str) and one.strip() for one in choices):
        raise Unsupported(f"an enum of texts only, at '{place}.enum'")
    if not 1 <= len(choices) <= CHOICES_MAX:
        raise Unsupported(
            f"an enum has 1 to {CHOICES_MAX} texts, not {len(choices)}, at '{place}.enum'"
        )
    return tuple(choices)


def _short(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."


async def _choose(
    fields: Sequence[Field],
    text: str,
    candidates: Mapping[str, list[Span]],
    model: str | None,
    context: Context,
) -> tuple[dict[str, Span], dict[str, str], str]:
    chosen: dict[str, Span] = {}
    by: dict[str, str] = {}
    options: dict[Field, list[str]] = {}
    for field in fields:
        texts = list(dict.fromkeys(span.text for span in candidates[field.name]))
        if len(texts) == 1:
            chosen[field.name], by[field.name] = candidates[field.name][0], "only"
        elif texts:
            options[field] = texts
    used = ""
    for asked in _prompts(options):
        shown = _excerpt(text, min(candidates[field.name][0].start for field in asked))
        answer, used = await _ask_model(asked, shown, model, context)
        for field in asked:
            wanted = answer.get(field.name)
            span = next((one for one in candidates[field.name] if one.text == wanted), None)
            # A model that was cut short chose nothing; the first candidate would be a guess.
            if span is not None:
                chosen[field.name], by[field.name] = span, "model"
    _pair_units(fields, candidates, chosen, by)
    return chosen, by, used


def _pair_units(
    fields: Sequence[Field],
    candidates: Mapping[str, list[Span]],
    chosen: dict[str, Span],
    by: dict[str, str],
) -> None:
    """A unit belongs to its number: where one number and one unit are asked for, it is the one behind it."""
    numbers = [field.name for field in fields if field.type in ("number", "integer")]
    units = [field.name for field in fields if field.wants_unit]
    if len(numbers) != 1 or len(units) != 1 or numbers[0] not in chosen:
        return
    end = chosen[numbers[0]].end
    beside = [span for span in candidates[units[0]] if 0 <= span.start - end <= 1]
    if beside:
        chosen[units[0]], by[units[0]] = beside[0], by[numbers[0]]


def _prompts(options: Mapping[Field, list[str]]) -> list[dict[Field, list[str]]]:
    """Return the fields that the model is asked for, in parts that fit its context."""
    parts: list[dict[Field, list[str]]] = []
    room = 0.0
    for field, texts in options.items():
        size = _tokens(field.name) + _tokens(field.description)
        kept: list[str] = []
        for text in texts:
            if size + _tokens(text) > PROMPT_FIELDS_TOKENS_MAX:
                break
            kept.append(text)
            size += _tokens(text)
        if not kept:
            continue
        if size > room:
            parts.append({})
            room = PROMPT_FIELDS_TOKENS_MAX
        parts[-1][field] = kept
        room -= size
    return parts


def _tokens(text: str) -> float:
    """Return about how many tokens a text is, rather too many."""
    return 1 + sum(map(_share_of_token, text))


def _share_of_token(sign: str) -> float:
    if not sign.isascii():
        return 3.0
    return 0.4 if sign.isalpha() or sign == " " else 1.0


def _excerpt(text: str, first: int) -> str:
    """Return what the model is shown of a text, as one line: of a long one, the part that begins a
    little before the first candidate.
    """
    # Beyond three characters for each token it is too long whatever they are.
    if len(text) > 3 * PROMPT_TEXT_TOKENS_MAX or _tokens(text) > PROMPT_TEXT_TOKENS_MAX:
        text = text[max(0, first - 60) :]
    room = float(PROMPT_TEXT_TOKENS_MAX)
    for at, sign in enumerate(text):
        room -= _share_of_token(sign)
        if room < 0:
            text = text[:at]
            break
    return " ".join(text.split())


async def _ask_model(
    options: Mapping[Field, list[str]], text: str, model: str | None, context: Context
) -> tuple[dict[str, Any], str]:
    described = "; ".join(
        field.name
        + (f" - {field.description}" if field.description else "")
        + f" ({', '.join(texts)})"
        for field, texts in options.items()
    )
    messages = [
        ChatMessage(
            "system", "Choose for each field the value that the sentence gives. Answer in JSON."
        )
    ]
    for asked, answered in EXAMPLES:
        messages += [ChatMessage("user", asked), ChatMessage("assistant", answered)]
    messages.append(ChatMessage("user", f"Sentence: {text}\nFields: {described}"))
    longest = sum(len(field.name) + max(map(len, texts)) for field, texts in options.items())
    completion = await context.models.generate(
        GenerateRequest(
            messages=tuple(messages),
            max_tokens=32 + 16 * len(options) + longest,
            json_schema={
                "type": "object",
                "properties": {field.name: {"enum": texts} for field, texts in options.items()},
                "required": [field.name for field in options],
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
    fields: Sequence[Field],
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


def _value(field: Field, span: Span | None) -> str | float | int | bool | None:
    if span is None:
        return None
    if field.type == "integer":
        return int(_number(span))
    if field.type == "number":
        return float(_number(span))
    if field.type == "boolean":
        return span.text == "true"
    return span.text


def _number(span: Span) -> Decimal:
    number = number_of(span.text)
    assert number is not None, "a candidate that is no number"
    return number


SKILL = Skill("extract", ExtractRequest, run, ("text",), takes_data=True)
