"""What goes along when a checkpoint is cut, and what does not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import vocab_helpers
from huggingface_hub import constants
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

from hf_glmd.cli import main
from hf_glmd.errors import UsageError
from hf_glmd.shrinking.checkpoint_files import find_carried_files

POOLING = "sentence_transformers.models.Pooling"
CARRIED = {
    "1_Pooling/config.json": '{"word_embedding_dimension": 16}',
    "2_Dense/config.json": '{"in_features": 16}',
    "2_Dense/model.safetensors": "weights",
    "LICENSE.txt": "terms",
    "NOTICE": "names",
    "USE_POLICY.md": "use",
    "config_sentence_transformers.json": '{"prompts": {"query": "markness: ", "document": ""}}',
    "preprocessor_config.json": '{"size": 8}',
    "sentence_bert_config.json": '{"max_seq_length": 24}',
}
WEIGHTS = "weights in another format, with the whole vocabulary"
LEFT_BEHIND = {
    "onnx/model.onnx": WEIGHTS,
    "pytorch_model.bin": WEIGHTS,
    "rng/LICENSE": "in a folder that is none of the model's modules",
    "training_args.bin": "a state of training",
}
LEFT = tuple(LEFT_BEHIND)


def modules(*entries: tuple[str, str]) -> str:
    """modules.json of (path, type) after the transformer itself."""
    rows = [("", "sentence_transformers.models.Transformer"), *entries]
    return json.dumps([{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(rows)])


def repository(folder: Path, *, modules_json: str | None = None, **files: str) -> Path:
    """A tiny encoder as sentence-transformers writes it, with a corpus beside it."""
    model = vocab_helpers.tiny_class("BertModel", vocab_helpers._SMALL, vocab_helpers.V)
    model.save_pretrained(folder)
    tokenizer = vocab_helpers.generic_tokenizer(model_max_length=24)
    tokenizer.backend_tokenizer.enable_truncation(24)
    tokenizer.backend_tokenizer.enable_padding(pad_id=0, pad_token="[PAD]", length=24)
    tokenizer.save_pretrained(folder)
    if modules_json is None:
        modules_json = modules(("1_Pooling", POOLING), ("2_Dense", "x.Dense"), ("3_Normalize", "x.Normalize"))
    for name, content in {
        **CARRIED,
        "modules.json": modules_json,
        **dict.fromkeys(LEFT, "?"),
        "README.md": "old",
        **files,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (folder.parent / "corpus.txt").write_text("\n".join(vocab_helpers.texts(80)))
    return folder


def shrink(model: str | Path, output: Path, *words: str) -> int:
    corpus = str(output.parent / "corpus.txt")
    return main(["shrink", str(model), "--corpus", corpus, "--output", str(output), "--size", "131", *words])


def test_all_that_is_still_true_goes_along(tmp_path, capsys):
    source, small = repository(tmp_path / "source"), tmp_path / "small"
    assert shrink(source, small, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["carried"] == sorted([*CARRIED, "modules.json"])
    assert said["left_behind"] == LEFT_BEHIND
    for name in [*CARRIED, "modules.json"]:
        assert (small / name).read_bytes() == (source / name).read_bytes()
    assert not any((small / name).exists() for name in LEFT)
    card = (small / "README.md").read_text(encoding="utf-8")
    assert "library_name: sentence-transformers" in card and "pipeline_tag: sentence-similarity" in card
    assert "SentenceTransformer(name)" in card and "AutoModel" not in card
    assert AutoModel.from_pretrained(small).config.vocab_size == 131
    assert "markness" in AutoTokenizer.from_pretrained(small).get_vocab()  # of the prompt, and rare in the corpus


def test_people_are_told(tmp_path, capsys):
    assert shrink(repository(tmp_path / "source"), tmp_path / "small") == 0
    said = capsys.readouterr().out
    assert "Carried along: 1_Pooling/config.json, 2_Dense/config.json, 2_Dense/" in said
    assert f"Left behind, {WEIGHTS}: onnx/model.onnx, pytorch_model.bin." in said
    assert "Left behind, a state of training: training_args.bin." in said


def test_without_the_prompt_its_token_would_go(tmp_path):
    source = repository(tmp_path / "source", **{"config_sentence_transformers.json": '{"prompts": {}}'})
    assert shrink(source, tmp_path / "small") == 0
    assert "markness" not in AutoTokenizer.from_pretrained(tmp_path / "small").get_vocab()


def test_an_output_that_says_how_many_tokens_there_are_is_told_the_new_number(tmp_path):
    config = json.dumps({"pooling_strategy": "max", "word_embedding_dimension": vocab_helpers.V, "embedding_dimension": None})
    splade = modules(("1_SpladePooling", "sentence_transformers.sparse_encoder.models.SpladePooling"))
    source = repository(tmp_path / "source", modules_json=splade, **{"1_SpladePooling/config.json": config})
    assert shrink(source, tmp_path / "small") == 0
    written = json.loads((tmp_path / "small" / "1_SpladePooling" / "config.json").read_text())
    assert written == {"pooling_strategy": "max", "word_embedding_dimension": 131, "embedding_dimension": None}
    assert not (tmp_path / "small" / "1_Pooling").exists()  # in the folder, but none of its modules


@pytest.mark.parametrize(
    ("entry", "files", "message"),
    [
        (("../outside", POOLING), {}, "outside of the repository"),
        (("/etc", POOLING), {}, "outside of the repository"),
        (
            ("1_WordWeights", "sentence_transformers.models.WordWeights"),
            {},
            "WordWeights in '1_WordWeights' has an entry per token",
        ),
        (("1_Other", "sentence_transformers.models.Transformer"), {"1_Other/tokenizer.json": "{}"}, "by the path '1_Other'"),
    ],
)
def test_modules_that_cannot_go_along_are_refused_before_the_counting(tmp_path, capsys, entry, files, message):
    source = repository(tmp_path / "source", modules_json=modules(entry), **files)
    (tmp_path / "corpus.txt").unlink()
    assert shrink(source, tmp_path / "small") == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-glmd: ")]
    assert message in said
    assert not (tmp_path / "small").exists()


def test_a_damaged_list_of_modules_is_refused(tmp_path):
    with pytest.raises(UsageError, match="modules.json' cannot be read"):
        find_carried_files(repository(tmp_path / "source", modules_json="[{"))


def test_nothing_that_another_checkpoint_left_changes_how_the_folder_is_read(tmp_path):
    source, small = repository(tmp_path / "source"), tmp_path / "small"
    assert shrink(source, small) == 0
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "preprocessor_config.json"):
        (source / name).unlink()
    assert shrink(source, small, "--overwrite") == 0
    assert {path.name for path in small.glob("*.json")} == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab_report.json",
    }


def test_from_the_cache_of_the_hub(tmp_path, monkeypatch, caplog):
    """Offline, with a cache that holds the repository as the Hub's client leaves it."""
    cache = tmp_path / "home" / "hub" / "models--org--encoder"
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository(cache / "snapshots" / revision)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(revision)
    (tmp_path / "corpus.txt").write_text("\n".join(vocab_helpers.texts(80)))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache.parent))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert shrink("org/encoder", tmp_path / "small") == 0
    assert "only files in the cache are carried along" in caplog.text
    assert (tmp_path / "small" / "1_Pooling" / "config.json").read_text() == CARRIED["1_Pooling/config.json"]


class Code:
    """A pickle that runs code when it is read without care."""

    def __reduce__(self):
        return print, ("this ran",)


def test_further_weights_go_along_unless_they_have_an_entry_per_token(tmp_path, capsys):
    """As in bge-m3: colbert_linear.pt and sparse_linear.pt beside the model."""
    source, small = repository(tmp_path / "source"), tmp_path / "small"
    torch.save({"weight": torch.ones(5, 16), "bias": torch.ones(5)}, source / "colbert_linear.pt")
    save_file({"weight": torch.ones(1, 16)}, source / "sparse_linear.safetensors")
    torch.save({"table": [torch.ones(vocab_helpers.V, 3)]}, source / "per_token.pt")
    save_file({"idf": torch.ones(vocab_helpers.V)}, source / "idf.safetensors")
    torch.save(Code(), source / "object.pt")
    (source / "handler.py").write_text("class EndpointHandler: ...")
    (source / "requirements.txt").write_text("FlagEmbedding")
    (source / "settings.json").write_text('{"layers": [1, 2]}')
    (source / "idf.json").write_text(json.dumps({"size": vocab_helpers.V}))
    (source / "picture.png").write_text("?")
    assert shrink(source, small, "--json") == 0
    output = capsys.readouterr().out
    assert "this ran" not in output
    left = json.loads(output)["left_behind"]
    per_token = "it has an entry per token"
    assert {name: left[name] for name in left if name not in LEFT} == {
        "per_token.pt": per_token,
        "idf.safetensors": per_token,
        "idf.json": per_token,
        "object.pt": "reading it would run code",
        "picture.png": "neither weights nor settings",
    }
    for name in ("colbert_linear.pt", "sparse_linear.safetensors", "handler.py", "requirements.txt", "settings.json"):
        assert (small / name).read_bytes() == (source / name).read_bytes()
    assert not any((small / name).exists() for name in left)


@pytest.mark.parametrize("name", ["LICENSE.txt", "1_Pooling/config.json", "handler.py"])
def test_a_link_out_of_the_folder_is_refused(tmp_path, capsys, name):
    source = repository(tmp_path / "source")
    secret = tmp_path / "id_rsa"
    secret.write_text("secret")
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to(secret)
    assert shrink(source, tmp_path / "small") == 2
    assert f"'{source / name}' is a link to '{secret}', outside of the folder" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_links_inside_of_the_folder_and_of_the_cache_are_followed(tmp_path):
    cache = tmp_path / "models--org--encoder"
    source = repository(cache / "snapshots" / "0123")
    (tmp_path / "corpus.txt").write_text("\n".join(vocab_helpers.texts(80)))
    (cache / "blobs").mkdir()
    (source / "LICENSE.txt").rename(cache / "blobs" / "abc")
    (source / "LICENSE.txt").symlink_to("../../blobs/abc")
    (source / "LICENSE-2.txt").symlink_to("NOTICE")
    assert shrink(source, tmp_path / "small") == 0
    assert (tmp_path / "small" / "LICENSE.txt").read_text() == CARRIED["LICENSE.txt"]
    assert not (tmp_path / "small" / "LICENSE-2.txt").is_symlink()


def test_a_model_in_a_folder_of_its_own_is_put_at_the_top(tmp_path, capsys):
    """The layout of old sentence-transformers repositories: 0_Transformer/, 1_Pooling/."""
    source = repository(tmp_path / "source")
    own = source / "0_Transformer"
    own.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json"):
        shutil.move(source / name, own / name)
    torch.save({"weight": torch.ones(vocab_helpers.V, 2)}, own / "per_token.pt")
    rows = json.loads((source / "modules.json").read_text())
    rows[0]["path"] = "0_Transformer"
    (source / "modules.json").write_text(json.dumps(rows))
    assert shrink(source, tmp_path / "small", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["carried"] == sorted([*CARRIED, "modules.json"])
    assert said["left_behind"]["0_Transformer/per_token.pt"] == "it has an entry per token"
    small = tmp_path / "small"
    assert json.loads((small / "modules.json").read_text()) == [{**rows[0], "path": ""}, *rows[1:]]
    assert AutoModel.from_pretrained(small).config.vocab_size == 131
    assert (small / "sentence_bert_config.json").read_text() == CARRIED["sentence_bert_config.json"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"modules.json": '[{"path": "", "type": "sentence_transformers.models.StaticEmbedding"}]'},
            "the module StaticEmbedding in '.' has an entry per token",
        ),
        ({"config.json": '{"model_type": "model2vec", "architectures": ["StaticModel"]}'}, "is a model2vec table"),
        ({"modules.json": '["Pooling"]'}, "is no list of modules with path and type"),
    ],
)
def test_tables_without_a_transformer_are_refused_as_what_they_are(tmp_path, capsys, files, message):
    source = tmp_path / "source"
    source.mkdir()
    (tmp_path / "corpus.txt").write_text("a text")
    vocab_helpers.generic_tokenizer().save_pretrained(source)
    save_file({"embeddings": torch.ones(vocab_helpers.V, 8)}, source / "model.safetensors")
    for name, content in files.items():
        (source / name).write_text(content)
    assert shrink(source, tmp_path / "small") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "small").exists()
