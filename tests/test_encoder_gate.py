"""The gate of encoders: what would give vectors that mean nothing is refused in one sentence, whoever loads it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tttnn
from tests.encoders import byte_tokenizer, save_encoder, tiny_bert, tiny_embedder
from tttnn.config import EmbedConfig
from tttnn.embedding.positions import positions_of
from tttnn.errors import ConfigError, EmbeddingError, TttnnError, UnknownModelError

WEIGHTS = "model.safetensors"
EXACT = EmbedConfig(precision="float32")


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def without(*names: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda weights: {k: v for k, v in weights.items() if not any(name in k for name in names)}


@pytest.mark.parametrize(
    "name",
    [
        "embeddings.word_embeddings.weight",
        "embeddings.token_type_embeddings.weight",
        "layer.0.attention.self.query.weight",
        "layer.1.attention.self.key.bias",
        "layer.0.output.LayerNorm.bias",
        "encoder.layer.1.",
    ],
)
def test_missing_weights_are_refused_by_name(name: str, tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "m")
    rewritten(folder, without(name))
    with pytest.raises(UnknownModelError, match=rf"its files must hold all weights of BertModel, but lack .*{name}"):
        tttnn.Embedder.load(folder)


def test_weights_of_other_names_are_missing(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "m")
    rewritten(folder, lambda weights: {f"student.{name}": weight for name, weight in weights.items()})
    with pytest.raises(UnknownModelError, match=r"but lack embeddings.LayerNorm.bias, .* and 36 more"):
        tttnn.Embedder.load(folder)


def test_a_pooler_that_no_vector_depends_on_may_be_missing(tmp_path: Path) -> None:
    """Files of masked language models have none; it is the same embedder each time it is loaded."""
    whole = tttnn.Embedder.load(save_encoder(tmp_path / "m"), EXACT)
    rewritten(tmp_path / "m", without("pooler"))
    first, second = (tttnn.Embedder.load(tmp_path / "m", EXACT) for _ in range(2))
    assert first.identity == second.identity
    np.testing.assert_array_equal(first.embed(["a text"]), whole.embed(["a text"]))


def test_weights_that_are_not_numbers_are_refused_by_name(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "m")

    def spoiled(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights["encoder.layer.0.output.dense.weight"][0, 0] = float("nan")
        weights["pooler.dense.bias"][3] = float("inf")
        return weights

    rewritten(folder, spoiled)
    said = rf"encoder '{folder}': its weights must be finite, got NaN or infinity in encoder.*weight, pooler.*bias"
    with pytest.raises(EmbeddingError, match=said):
        tttnn.Embedder.load(folder)


def test_a_folder_without_tokenizer_files_is_refused(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "m")
    for path in folder.glob("*token*"):
        path.unlink()
    with pytest.raises(TttnnError, match=f"{folder}.*(tokenizer|could not be loaded)"):
        tttnn.Embedder.load(folder)


def test_a_tokenizer_that_knows_no_word_is_refused() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "zebra": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")
    with pytest.raises(
        UnknownModelError, match=r"encoder 'mine': texts must become different tokens.*\[0, 0, 0, 0, 0\]"
    ):
        tttnn.Embedder(tiny_bert(), tokenizer, name="mine")


def test_a_tokenizer_that_fails_at_a_letter_is_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    for known in ("b", "a"):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({known: 0, "x": 1})))
        said = "encoder 'mine': its tokenizer must read any text, but failed: WordLevel error"
        with pytest.raises(UnknownModelError, match=said):
            tttnn.Embedder(tiny_bert(), tokenizer, name="mine")


def test_a_tokenizer_of_another_model_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["one", "more"])
    said = "encoder 'mine': token ids must be below 259 .the rows of its embedding., got 260 for 'more'"
    with pytest.raises(UnknownModelError, match=said):
        tttnn.Embedder(tiny_bert(), tokenizer, name="mine")


def test_kinds_of_tokens_that_are_not_handed_on_are_refused() -> None:
    from tokenizers import processors

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A:0 [SEP]:0 [CLS]:2", special_tokens=[("[CLS]", 257), ("[SEP]", 258)]
    )
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tttnn.Embedder(tiny_bert(), tokenizer)  # its model is not told of them
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    with pytest.raises(
        UnknownModelError, match=r"must be of kind 0, but its tokenizer gives token_type_ids of \[0, 2\]"
    ):
        tttnn.Embedder(tiny_bert(), tokenizer)


def test_an_encoder_that_does_not_read_is_refused() -> None:
    model = tiny_bert()
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.zero_()
        for layer in model.encoder.layer:
            layer.output.LayerNorm.weight.zero_()
    with pytest.raises(UnknownModelError, match="texts must have different vectors, got the same for all of a probe"):
        tttnn.Embedder(model, byte_tokenizer())


def test_an_encoder_that_draws_at_random_is_refused() -> None:
    model = tiny_bert()
    model.embeddings.register_forward_hook(lambda _, __, states: states + 0.1 * torch.randn_like(states))
    with pytest.raises(UnknownModelError, match="a text must have one vector, got another each time"):
        tttnn.Embedder(model, byte_tokenizer())


def test_what_gives_no_state_for_each_token_is_refused() -> None:
    class Half(type(tiny_bert())):  # type: ignore[misc]
        def forward(self, *args: Any, **options: Any) -> Any:
            out = super().forward(*args, **options)
            out.last_hidden_state = out.last_hidden_state[:, ::2]
            return out

    class Failing(type(tiny_bert())):  # type: ignore[misc]
        def forward(self, *_: Any, **__: Any) -> Any:
            raise ValueError("pixels are needed\nand more lines")

    for kind, said in (
        (Half, "must give one state for each token, got shape"),
        (Failing, "but failed: pixels are needed$"),
    ):
        with pytest.raises(UnknownModelError, match=said):
            tttnn.Embedder(kind(tiny_bert().config), byte_tokenizer())


def test_a_length_beyond_the_encoders_is_refused_and_a_stated_one_cut() -> None:
    with pytest.raises(ConfigError, match=r"max_length must be at most 64 .the limit of encoder 'mine'., got 65"):
        tttnn.Embedder(tiny_bert(), byte_tokenizer(), EmbedConfig(max_length=65), name="mine")
    lying = tiny_bert()
    lying.config.max_position_embeddings = 512  # its table has 64
    embedder = tttnn.Embedder(lying, byte_tokenizer(1000), EXACT)
    assert embedder.max_length == 64
    assert np.isfinite(embedder.embed(["x" * 1000])).all()


def test_a_limit_that_no_table_shows_is_found_by_trying() -> None:
    class Short(type(tiny_bert())):  # type: ignore[misc]
        def forward(self, input_ids: Any, **options: Any) -> Any:
            if input_ids.shape[1] > 37:
                raise IndexError("index out of range in self")
            options["position_ids"] = torch.zeros_like(input_ids)
            return super().forward(input_ids, **options)

    embedder = tttnn.Embedder(Short(tiny_bert().config), byte_tokenizer(1000), EXACT)
    assert embedder.max_length == 37
    assert embedder.embed(["x" * 1000]).shape == (1, 32)


def test_where_positions_begin_and_end_is_seen() -> None:
    from transformers import OPTConfig, OPTModel, RobertaConfig, RobertaModel

    sizes = {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    roberta = RobertaModel(RobertaConfig(**sizes, intermediate_size=48, max_position_embeddings=66, pad_token_id=1))
    opt = OPTModel(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64, pad_token_id=1))
    for model, first, limit in ((tiny_bert(), 0, 64), (roberta, 2, 64), (opt, 2, 64)):
        assert positions_of(model.eval(), [5, 9, 7], "mine") == (first, limit)
        assert tttnn.Embedder(model, byte_tokenizer(1000), EXACT).max_length == limit
    assert tttnn.Embedder(roberta, byte_tokenizer(1000), EXACT)._encoder.packed is not None


def test_a_folder_is_known_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_encoder(tmp_path / "models" / "enc")
    monkeypatch.chdir(tmp_path)
    embedder = tttnn.Embedder.load("models/enc")
    assert embedder.name == str(tmp_path / "models" / "enc")
    monkeypatch.chdir("/")
    again = pickle.loads(pickle.dumps(embedder))
    assert again.identity == embedder.identity
    assert again.config == embedder.config
    assert repr(again) == repr(embedder)
    assert len(repr(embedder)) < 80 + len(embedder.name)


def test_a_pickled_embedder_is_loaded_anew_and_must_be_the_same(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "m")
    pickled = pickle.dumps(tttnn.Embedder.load(folder, EXACT, threads=2))
    assert len(pickled) < 2000
    assert pickle.loads(pickled).threads == 2
    tiny_bert(seed=5).save_pretrained(folder)
    with pytest.raises(UnknownModelError, match=r"must be the one that was pickled, but weights is"):
        pickle.loads(pickled)
    with pytest.raises(TypeError, match=r"made by Embedder.load to be pickled"):
        pickle.dumps(tiny_embedder())
