from dataclasses import FrozenInstanceError, fields

import pytest

import tttnn
from tttnn import config


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
