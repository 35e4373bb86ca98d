"""Directories of sentence-transformers: what their files say is computed as that library's `encode`, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tttnn
from tests.encoders import byte_tokenizer, save_encoder, tiny_bert
from tttnn.config import EmbedConfig
from tttnn.datastore.manifest import FORMAT
from tttnn.errors import ConfigError, DatastoreMismatchError
from tttnn.files import digest_of, read_manifest, write_manifest

EXACT = EmbedConfig(precision="float32")
TEXTS = ["One Text", "", "ÄNOTHER, rather longer TEXT of many words and more of them", "🐍 naïve", "a b " * 90]

Change = Callable[[Path], Any]


def edited(name: str, **fields: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(content | fields))

    return change


def of_encode(
    *,
    prompt: str = "",
    lower: bool = False,
    side: str = "right",
    max_length: int = 48,
    skip: int = 0,
    pooling: str = "mean",
    normalize: bool = True,
    width: int | None = None,
) -> np.ndarray:
    """What `SentenceTransformer.encode` does, in its order, one text after the other."""
    model, tokenizer = tiny_bert().eval(), byte_tokenizer()
    tokenizer.truncation_side = side
    rows = []
    for text in TEXTS:
        whole = prompt + text or " "
        ids = tokenizer(whole.lower() if lower else whole, truncation=True, max_length=max_length, return_tensors="pt")
        with torch.no_grad():
            states = model(**ids).last_hidden_state[0]
        row = states[skip:].mean(0) if pooling == "mean" else states[skip]
        row = torch.nn.functional.normalize(row, dim=0) if normalize else row
        rows.append(row[:width])
    return torch.stack(rows).numpy()


SETTINGS = "config_sentence_transformers.json"
READING = "sentence_bert_config.json"
PROMPTS = {"query": "Query: ", "document": "PASSAGE: "}
PROMPT_STATES = len("[") + len("Query: ")  # the token before the text, and the prompt's bytes

FOLLOWED: dict[str, tuple[Change, dict[str, Any]]] = {
    "a default prompt": (
        edited(SETTINGS, prompts=PROMPTS, default_prompt_name="document"),
        {"prompt": "PASSAGE: "},
    ),
    "prompts of which none is the default": (edited(SETTINGS, prompts=PROMPTS), {}),
    "a default prompt without text": (edited(SETTINGS, prompts={}, default_prompt_name="query"), {}),
    "a prompt that is not pooled": (
        lambda folder: (
            edited(SETTINGS, prompts=PROMPTS, default_prompt_name="query")(folder),
            edited("1_Pooling/config.json", include_prompt=False)(folder),
        ),
        {"prompt": "Query: ", "skip": PROMPT_STATES},
    ),
    "a prompt before the first token": (
        lambda folder: (
            edited(SETTINGS, prompts=PROMPTS, default_prompt_name="query")(folder),
            edited(
                "1_Pooling/config.json",
                include_prompt=False,
                pooling_mode_mean_tokens=False,
                pooling_mode_cls_token=True,
            )(folder),
        ),
        {"prompt": "Query: ", "skip": PROMPT_STATES, "pooling": "cls"},
    ),
    "no prompt to leave out of pooling": (edited("1_Pooling/config.json", include_prompt=False), {}),
    "lower case": (edited(READING, do_lower_case=True), {"lower": True}),
    "lower case, after a prompt": (
        lambda folder: (
            edited(SETTINGS, prompts=PROMPTS, default_prompt_name="document")(folder),
            edited(READING, do_lower_case=True)(folder),
        ),
        {"prompt": "PASSAGE: ", "lower": True},
    ),
    "fewer dimensions": (edited(SETTINGS, truncate_dim=10), {"width": 10}),
    "more dimensions than there are": (edited(SETTINGS, truncate_dim=1000), {}),
    "the beginning is cut": (edited("tokenizer_config.json", truncation_side="left"), {"side": "left"}),
    "no length": (edited(READING, max_seq_length=None), {"max_length": 64}),
    "the tokenizer's length": (
        lambda folder: (
            edited(READING, max_seq_length=None)(folder),
            edited("tokenizer_config.json", model_max_length=20)(folder),
        ),
        {"max_length": 20},
    ),
    "a name of earlier versions": (
        lambda folder: (folder / READING).replace(folder / "sentence_roberta_config.json"),
        {},
    ),
    "fields that change no vector": (
        lambda folder: (
            edited(SETTINGS, similarity_fn_name="dot", model_type="SentenceTransformer", __version__={})(folder),
            edited(
                READING,
                transformer_task="feature-extraction",
                modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
                module_output_name="token_embeddings",
                model_args={},
                query_length=7,
            )(folder),
        ),
        {},
    ),
}


def with_module(kind: str, at: int = 3) -> Change:
    """Put a module into the list, at a place."""

    def change(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text())
        modules.insert(at, {"idx": at, "name": str(at), "path": f"{at}_More", "type": kind})
        (folder / "modules.json").write_text(json.dumps(modules))

    return change


def typed(names: dict[str, str]) -> Change:
    """Give modules other classes."""

    def change(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text())
        for module in modules:
            module["type"] = names.get(module["type"].rsplit(".", 1)[-1], module["type"])
        (folder / "modules.json").write_text(json.dumps(modules))

    return change


FOLLOWED["classes where the library has them now"] = (
    typed(
        {
            "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
            "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
            "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
        }
    ),
    {},
)
FOLLOWED["dropout"] = (with_module("sentence_transformers.models.Dropout"), {})


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_is_followed_is_computed_as_encode_does(name: str, tmp_path: Path) -> None:
    change, expected = FOLLOWED[name]
    change(save_encoder(tmp_path / "m"))
    vectors = tttnn.Embedder.load(tmp_path / "m", EXACT).embed(TEXTS)
    np.testing.assert_allclose(vectors, of_encode(**expected), atol=1e-5)


@pytest.mark.parametrize("name", ["a prompt that is not pooled", "a prompt before the first token"])
def test_a_prompt_is_left_out_of_pooling_where_texts_are_padded_too(name: str, tmp_path: Path) -> None:
    change, expected = FOLLOWED[name]
    change(save_encoder(tmp_path / "m"))
    edited("config.json", attn_implementation="eager", _attn_implementation="eager")(tmp_path / "m")
    embedder = tttnn.Embedder.load(tmp_path / "m", EXACT)
    embedder._encoder.packed = None
    np.testing.assert_allclose(embedder.embed(TEXTS), of_encode(**expected), atol=1e-5)


REFUSED: dict[str, tuple[Change, str]] = {
    "another pooling": (
        edited("1_Pooling/config.json", pooling_mode_mean_tokens=False, pooling_mode_lasttoken=True),
        "pooling must be mean or cls, got lasttoken",
    ),
    "two poolings": (edited("1_Pooling/config.json", pooling_mode=["mean", "cls"]), "got mean and cls"),
    "no pooling": (lambda folder: (folder / "1_Pooling" / "config.json").unlink(), "1_Pooling/config.json: must be"),
    "half a listing": (
        lambda folder: (folder / "modules.json").write_text((folder / "modules.json").read_text()[:90]),
        "modules.json: must be JSON, but it is damaged",
    ),
    "a listing of another kind": (lambda folder: (folder / "modules.json").write_text("{}"), "must be a JSON array"),
    "a layer": (with_module("sentence_transformers.models.LSTM"), "module must be .* got LSTM"),
    "a layer of one's own": (typed({"Transformer": "my_code.Transformer"}), r"got my_code\.Transformer"),
    "another order": (
        typed({"Normalize": "sentence_transformers.models.Transformer"}),
        "must be Transformer, Pooling and then",
    ),
    "no transformer": (typed({"Transformer": "sentence_transformers.models.Dropout"}), "must be Transformer, Pooling"),
    "a prompt that is not there": (
        edited(SETTINGS, prompts={"a": "A: "}, default_prompt_name="b"),
        "default_prompt_name must be one of a, got 'b'",
    ),
    "a prompt of special tokens": (
        edited(SETTINGS, prompts={"a": "[SEP]: "}, default_prompt_name="a"),
        "prompt must be plain text",
    ),
    "a prompt longer than the texts": (
        edited(SETTINGS, prompts={"a": "A" * 46}, default_prompt_name="a"),
        "max_length must be more than 48 .the prompt and the special tokens., got 48",
    ),
    "half a dimension": (edited(SETTINGS, truncate_dim=0.5), "truncate_dim must be a whole number"),
    "a sparse encoder": (edited(SETTINGS, model_type="SparseEncoder"), "model_type must be SentenceTransformer"),
    "chat templates": (
        edited(READING, modality_config={"message": {"method": "forward"}}),
        "modality_config must be left out",
    ),
    "arguments for the model": (
        edited(READING, model_args={"attn_implementation": "eager"}),
        "model_args must be left",
    ),
    "what nobody knows yet": (edited(READING, new_field=3), "new_field must be left out"),
    "scaled tokens": (
        lambda folder: (
            (folder / "2_Normalize").mkdir(),
            (folder / "2_Normalize" / "config.json").write_text('{"module_input_name": "token_embeddings"}'),
        ),
        "module_input_name must be sentence_embedding",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_followed_is_refused_by_name(name: str, tmp_path: Path) -> None:
    change, expected = REFUSED[name]
    change(save_encoder(tmp_path / "m"))
    with pytest.raises(ConfigError, match=expected):
        tttnn.Embedder.load(tmp_path / "m", EXACT)


def test_settings_take_the_place_of_files(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "m")
    edited(SETTINGS, prompts=PROMPTS, default_prompt_name="document", truncate_dim=10)(folder)
    edited(READING, do_lower_case=True)(folder)
    plain = tttnn.Embedder.load(folder, EXACT.with_(prompt="", lower_case="no", truncate_dim=32))
    np.testing.assert_allclose(plain.embed(TEXTS), of_encode(), atol=1e-5)
    chosen = tttnn.Embedder.load(save_encoder(tmp_path / "n"), EXACT.with_(prompt="Q: ", truncation="left"))
    np.testing.assert_allclose(chosen.embed(TEXTS), of_encode(prompt="Q: ", side="left"), atol=1e-5)


def test_what_files_say_is_part_of_the_identity(tmp_path: Path) -> None:
    plain = tttnn.Embedder.load(save_encoder(tmp_path / "plain")).identity
    # Fields that mean what was always computed are not there, so that datastores of earlier versions still open.
    assert sorted(plain) == sorted(
        ["architecture", "weights", "tokenizer", "dim", "pooling", "normalize", "max_length"]
    )
    for name in (
        "a default prompt",
        "lower case",
        "fewer dimensions",
        "the beginning is cut",
        "a prompt that is not pooled",
    ):
        folder = save_encoder(tmp_path / name)
        FOLLOWED[name][0](folder)
        assert tttnn.Embedder.load(folder).identity != plain, name


def test_lower_case_that_changes_nothing_is_no_difference(tmp_path: Path) -> None:
    """Many directories ask for lower case of tokenizers that have only that."""
    from tokenizers import normalizers

    folders = []
    for asked in (False, True):
        folder = save_encoder(tmp_path / str(asked))
        tokenizer = byte_tokenizer()
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()])
        tokenizer.save_pretrained(folder)
        edited(READING, do_lower_case=asked)(folder)
        folders.append(folder)
    first, second = (tttnn.Embedder.load(folder) for folder in folders)
    assert first.identity == second.identity


def test_a_datastore_of_an_earlier_version_is_read_as_it_was_computed(tmp_path: Path) -> None:
    """It has no word of prompts, lower case or fewer dimensions: there was none."""
    folder = save_encoder(tmp_path / "m")
    edited(READING, do_lower_case=True)(folder)
    edited(SETTINGS, prompts=PROMPTS, default_prompt_name="document", truncate_dim=10)(folder)
    then = tttnn.Embedder.load(folder, EXACT.with_(prompt="", lower_case="no", truncate_dim=32))
    texts = ["the CAT", "a Dog", "Some birds"]
    tttnn.Datastore.build(tmp_path / "ds", texts, then)
    path = tmp_path / "ds" / "manifest.json"
    manifest = read_manifest(path, format_version=FORMAT)
    assert not {"prompt", "lower_case", "truncation", "include_prompt"} & {*manifest["embedder"]["identity"]}
    for field in ("prompt", "lower_case", "truncate_dim", "truncation"):
        del manifest["settings"]["embed"][field]
    manifest["id"] = digest_of({key: value for key, value in manifest.items() if key != "id"})
    write_manifest(path, manifest)
    opened = tttnn.Datastore.open(tmp_path / "ds")
    assert opened.search("the CAT", 1)[0].distance == pytest.approx(0, abs=1e-6)
    with pytest.raises(DatastoreMismatchError, match=r"prompt is 'PASSAGE: ', expected ''.*dim is 10, expected 32"):
        tttnn.Datastore.open(tmp_path / "ds", tttnn.Embedder.load(folder))
