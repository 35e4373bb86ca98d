from __future__ import annotations

import json
import math
import tomllib
from dataclasses import Field, FrozenInstanceError, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import tttnn
from tttnn import config
from tttnn.cli.flags import config_file_flag, settings_flags
from tttnn.settings import Config, check, read, text_of

CLASSES = sorted(config.Config.__subclasses__(), key=lambda cls: cls.__name__)
FIELDS = [pytest.param(cls, field, id=f"{cls.__name__}.{field.name}") for cls in CLASSES for field in fields(cls)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_neighbors": -1}, ["num_neighbors", "0", "-1"]),
        ({"learning_rate": float("nan")}, ["learning_rate", "nan"]),
        ({"num_neighbors": 1.5}, ["num_neighbors", "whole", "1.5"]),
        ({"num_neighbors": True}, ["num_neighbors", "True"]),
        ({"schedule": "cosine"}, ["schedule", "constant", "cosine"]),
        ({"seed": None}, ["seed", "None"]),
        ({"learning_rte": 1e-4}, ["learning_rate", "learning_rte"]),
        ({"max_length": "1024"}, ["max_length", "1024"]),
    ],
)
def test_bad_setting_names_subject_rule_and_value(change: dict, words: list[str]) -> None:
    with pytest.raises(tttnn.ConfigError) as caught:
        tttnn.AdaptConfig().with_(**change)
    for word in words:
        assert word in str(caught.value)


def test_settings_cannot_change_after_creation() -> None:
    with pytest.raises(FrozenInstanceError):
        tttnn.AdaptConfig().seed = 3  # type: ignore[misc]


def test_every_setting_says_what_it_is_for() -> None:
    for cls in config.Config.__subclasses__():
        for field in fields(cls):
            assert field.metadata["help"], f"{cls.__name__}.{field.name}"


def test_paper_presets_hold_the_published_settings() -> None:
    gpt2, neo = tttnn.preset("paper-gpt2"), tttnn.preset("paper-gpt-neo")
    assert (gpt2.learning_rate, gpt2.max_length, gpt2.max_neighbor_tokens) == (2e-5, 1024, None)
    assert (neo.learning_rate, neo.max_length, neo.schedule) == (5e-6, 2048, "constant")
    assert gpt2.clip_norm == 1.0
    assert gpt2.optimizer_state == "fresh"
    with pytest.raises(tttnn.ConfigError, match="paper-gpt3"):
        tttnn.preset("paper-gpt3")


def values_of(hint: Any, field: Field[Any]) -> st.SearchStrategy[Any]:
    """All that a field may hold."""
    low, high = field.metadata["minimum"], field.metadata["maximum"]
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) is tuple:
        return st.lists(values_of(get_args(hint)[0], field), max_size=4).map(tuple)
    if get_args(hint):
        return st.one_of(*(values_of(kind, field) for kind in get_args(hint)))
    return {
        bool: st.booleans(),
        type(None): st.none(),
        int: st.integers(low, high),
        float: st.floats(low, high, allow_nan=False, allow_infinity=False),
        str: st.from_regex(r"[a-zA-Zü_*.][a-zA-Zü_*. -]{0,20}[a-z*]", fullmatch=True),
    }[hint]


def flag_of(field: Field[Any]) -> str:
    """Return the flag of a setting."""
    return f"--{(field.metadata['flag'] or field.name).replace('_', '-')}"


def through_flags(cls: type[Config], arguments: list[str]) -> Any:
    """Run a command that has the flags of a class; return its settings, or what it printed where it failed."""
    seen: list[Any] = []

    @click.command()
    @config_file_flag
    @settings_flags(cls, "given")
    def command(given: dict[str, Any]) -> None:
        """Collect."""
        seen.append(cls(**given))

    result = CliRunner().invoke(command, arguments, prog_name="command")
    return seen[0] if result.exit_code == 0 else result.output


@pytest.mark.parametrize(("cls", "field"), FIELDS)
def test_a_setting_survives_every_way_in(cls: type[Config], field: Field[Any], tmp_path_factory: Any) -> None:
    hint = get_type_hints(cls)[field.name]
    flag = flag_of(field)
    file = tmp_path_factory.mktemp("toml") / "settings.toml"

    @given(values_of(hint, field))
    @settings(max_examples=8, deadline=None, derandomize=True)
    def survives(value: Any) -> None:
        held = cls(**{field.name: value})
        assert getattr(held, field.name) == value
        assert cls().with_read({field.name: text_of(value)}) == held
        assert cls().with_read(json.loads(json.dumps(held.to_dict()))) == held
        if hint is bool:
            assert through_flags(cls, [flag if value else f"--no-{flag[2:]}"]) == held
        else:
            assert through_flags(cls, [f"{flag}={text_of(value)}"]) == held
        written = json.dumps("none" if value is None else value, ensure_ascii=False)
        file.write_text(f"{field.metadata['flag'] or field.name} = {written}\n", encoding="utf-8")
        assert through_flags(cls, ["--config", str(file)]) == held
        (read_again,) = tomllib.loads(file.read_text(encoding="utf-8")).values()
        assert cls().with_read({field.name: read_again}) == held

    survives()


WRONG = ["", "1,", "[", "nan", "inf", "nil", -1e300, math.inf, math.nan, [], {}, [None], None, object()]


@pytest.mark.parametrize(("cls", "field"), FIELDS)
def test_a_wrong_value_is_one_sentence_wherever_it_comes_from(cls: type[Config], field: Field[Any]) -> None:
    refused = 0
    for wrong in WRONG:
        try:
            held = cls().with_read({field.name: wrong})
        except tttnn.ConfigError as error:
            said = str(error)
        else:
            assert json.dumps(held.to_dict(), allow_nan=False)
            continue
        refused += 1
        assert said.startswith(f"{field.name} must be "), said
        if isinstance(wrong, str) and get_type_hints(cls)[field.name] is not bool:
            shown = through_flags(cls, [f"{flag_of(field)}={wrong}"])
            assert said in " ".join(shown.split())
    assert refused


def test_numbers_of_numpy_are_numbers() -> None:
    made = tttnn.AdaptConfig(num_neighbors=np.int64(3), learning_rate=np.float32(0.5), deadline_ms=2)  # type: ignore[arg-type]
    assert json.dumps(made.to_dict())
    assert (made.num_neighbors, made.learning_rate, type(made.deadline_ms)) == (3, 0.5, float)


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (int | None, " NONE ", None),
        (Literal["none", "query"], "none", "none"),
        (Literal["none", "query"], None, "none"),
        (Literal["a"] | None, "none", None),
        (tuple[str, ...] | None, "none", None),
        (tuple[str, ...] | None, "a, b", ("a", "b")),
        (str | int, "7", 7),
        (str | int, "seven", "seven"),
    ],
)
def test_types_that_no_setting_has_yet_are_read_too(hint: Any, text: Any, value: Any) -> None:
    assert check(hint, read(hint, text)) == value


def test_every_number_has_a_smallest_value() -> None:
    for cls in CLASSES:
        for field in fields(cls):
            if {int, float} & {get_type_hints(cls)[field.name], *get_args(get_type_hints(cls)[field.name])}:
                assert field.metadata["minimum"] is not None, f"{cls.__name__}.{field.name}"
