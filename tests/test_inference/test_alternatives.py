"""Constraints whose answers can be listed, and the reason for every other."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.inference.alternatives import ALTERNATIVES_MAX, of_grammar, of_schema
from covey.inference.errors import Unsupported


def flat(**fields: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("grammar", "literals"),
    [
        ('root ::= "normal" | "critical"', ("normal", "critical")),
        ('  root::="a"|"b"|\n"a"  ', ("a", "b")),
        ('root ::= "😀 𒀀 日本"', ("😀 𒀀 日本",)),
        (r'root ::= "a \"b\" \\ \n\t" | "\x41\u00e9\U0001F600"', ('a "b" \\ \n\t', "Aé😀")),
        ('root ::= "|" | "::="', ("|", "::=")),
    ],
)
def test_a_grammar_of_literals_is_one_place_with_each_of_them_once(
    grammar: str, literals: tuple[str, ...]
) -> None:
    assert of_grammar(grammar) == [literals]


@pytest.mark.parametrize(
    "grammar",
    [
        "",
        "nonsense",
        'root ::= "',
        'root ::= "a" root',
        'root ::= "a" "b"',
        'root ::= "a"*',
        "root ::= [a-z]",
        'root ::= word\nword ::= "a"',
        'root ::= ""',
        r'root ::= "\q"',
        r'root ::= "\ud800"',
        r'root ::= "\UFFFFFFFF"',
        "root ::= " + " | ".join(f'"{n}"' for n in range(ALTERNATIVES_MAX + 1)),
    ],
)
def test_any_other_grammar_is_unsupported_and_the_engine_that_can_is_named(grammar: str) -> None:
    with pytest.raises(Unsupported, match=r"ctransformers keeps to .*llama\.cpp"):
        of_grammar(grammar)


def test_a_flat_object_of_enums_is_its_places_in_order_each_choice_with_what_ends_it() -> None:
    schema = flat(
        metric={"enum": ["speed", 'a "quote"']},
        unit={"type": "string", "enum": ["°C"], "description": "of the value"},
        value={"enum": [1, 1.5, True, None]},
        kind={"const": "reading"},
    )
    assert of_schema(schema) == [
        ('{"metric": ',),
        ('"speed",', '"a \\"quote\\"",'),
        (' "unit": ',),
        ('"°C",',),
        (' "value": ',),
        ("1,", "1.5,", "true,", "null,"),
        (' "kind": ',),
        ('"reading"}',),
    ]


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "nonsense"},
        {"type": "string", "enum": ["a"]},
        {"type": "object"},
        {"type": "object", "properties": {}},
        {"type": "object", "properties": []},
        {**flat(a={"enum": ["x"]}), "required": ["b"]},
        {**flat(a={"enum": ["x"]}), "required": 7},
        {**flat(a={"enum": ["x"]}), "oneOf": []},
        {**flat(a={"enum": ["x"]}), "additionalProperties": {"type": "string"}},
        flat(a={"type": "string"}),
        flat(a={"type": "object", "properties": {"b": {"enum": ["x"]}}}),
        flat(a={"enum": []}),
        flat(a={"enum": "xy"}),
        flat(a={"enum": [["x"]]}),
        flat(a={"enum": ["x"], "minLength": 3}),
        flat(a={"enum": ["x"], "const": "x"}),
        flat(a={"type": "string", "enum": ["x", 1]}),
        flat(a={"type": "integer", "enum": [True]}),
        flat(a={"type": ["string"], "enum": ["x"]}),
        flat(a=7),
        flat(a={"enum": list(range(ALTERNATIVES_MAX + 1))}),
        flat(**{f"f{n}": {"enum": ["x"]} for n in range(65)}),
    ],
)
def test_any_other_schema_is_unsupported_and_the_engine_that_can_is_named(
    schema: dict[str, Any],
) -> None:
    with pytest.raises(Unsupported, match=r"ctransformers keeps to .*llama\.cpp"):
        of_schema(schema)


VALUES = st.one_of(st.text(), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
                   st.booleans(), st.none())  # fmt: skip


@given(
    st.dictionaries(st.text(), st.lists(VALUES, min_size=1, max_size=4), min_size=1, max_size=4),
    st.integers(0, 3),
)
def test_whatever_is_chosen_the_answer_is_json_that_the_schema_allows(
    fields: dict[str, list[Any]], choice: int
) -> None:
    schema = flat(**{name: {"enum": values} for name, values in fields.items()})
    answer = "".join(part[min(choice, len(part) - 1)] for part in of_schema(schema))
    jsonschema.validate(json.loads(answer), schema)
