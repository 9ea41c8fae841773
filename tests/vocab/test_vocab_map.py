from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hf_glmd.errors import UsageError
from hf_glmd.vocab import vocab_map as vocab_map_module
from hf_glmd.vocab.vocab_map import VocabMap, nearest_kept

V = 211
KEPT = st.sets(st.integers(0, V - 1), min_size=1).map(sorted)


@given(kept=KEPT, data=st.data())
def test_there_and_back(kept, data):
    vocab_map = VocabMap(kept, V)
    small = data.draw(st.lists(st.one_of(st.just(-100), st.integers(0, len(kept) - 1))))
    old = vocab_map.to_original(small)
    assert [kept[i] if i != -100 else -100 for i in small] == old
    assert vocab_map.to_small(old) == small
    assert vocab_map.keeps(range(V)).sum() == vocab_map.size == len(kept)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16])
def test_tensors_keep_shape_and_dtype(dtype):
    vocab_map = VocabMap([2, 5, 200], V)
    ids = torch.tensor([[5, -100, 200], [2, 2, 2]], dtype=dtype)
    small = vocab_map.to_small(ids)
    assert small.dtype == dtype and small.tolist() == [[1, -100, 2], [0, 0, 0]]
    assert torch.equal(vocab_map.to_original(small), ids)
    assert ids[0, 0] == 5  # not changed in place
    assert vocab_map.to_small(ids[:0]).shape == (0, 3)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int16])
def test_arrays_keep_shape_and_dtype(dtype):
    vocab_map = VocabMap([2, 5, 200], V)
    ids = np.array([[5, -100, 200]], dtype=dtype)
    assert vocab_map.to_small(ids).dtype == dtype and vocab_map.to_small(ids).tolist() == [[1, -100, 2]]
    assert np.array_equal(vocab_map.to_original(vocab_map.to_small(ids)), ids)


def test_lists_and_single_ids():
    vocab_map = VocabMap(np.array([2, 5, 200]), V)
    assert vocab_map.to_small([[5], [2, -100], []]) == [[1], [0, -100], []]
    assert vocab_map.to_small(5) == 1 and type(vocab_map.to_small(5)) is int
    assert vocab_map.to_original([]) == []


def test_ids_that_no_longer_fit_their_dtype_are_refused():
    with pytest.raises(UsageError, match="int8"):
        VocabMap([2, 200], V).to_original(torch.tensor([1], dtype=torch.int8))


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_a_removed_id_is_named(kind):
    with pytest.raises(UsageError, match="original id 17 was removed"):
        VocabMap([2, 5], V).to_small(kind([5, 17]))


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
@pytest.mark.parametrize("wrong", [V, -1, -99])
def test_an_id_of_no_vocabulary_is_refused(kind, wrong):
    vocab_map = VocabMap([2, 5], V)
    with pytest.raises(UsageError, match=str(wrong)):
        vocab_map.to_small(kind([5, wrong]))
    with pytest.raises(UsageError):
        vocab_map.to_original(kind([2]))


@pytest.mark.parametrize("ids", [[1.0], [True], "12", None, torch.tensor([0.5]), np.array([0.5]), torch.tensor([True])])
def test_what_is_no_id_is_refused(ids):
    with pytest.raises(UsageError):
        VocabMap(range(5), V).to_small(ids)


@pytest.mark.parametrize("kept", [[], [3, 2], [2, 2], [-1, 2], [V], [1.5]])
def test_impossible_kept_ids_are_refused(kept):
    with pytest.raises(UsageError, match="kept_ids"):
        VocabMap(kept, V)


def test_the_map_cannot_be_changed_by_accident():
    kept = np.array([1, 2])
    vocab_map = VocabMap(kept, V)
    kept[0] = 0
    assert vocab_map.kept_ids.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        vocab_map.kept_ids[0] = 0


def test_a_saved_map_is_the_same(tmp_path):
    vocab_map = VocabMap([2, 5, 200], V)
    vocab_map.save(tmp_path / "new" / "folder")
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == ["vocab_map.safetensors"]
    assert VocabMap.load(tmp_path / "new" / "folder") == vocab_map
    assert VocabMap.load(tmp_path / "new" / "folder").original_size == V


def test_a_full_map_survives_saving(tmp_path):
    full = np.array([0, 0, 1, 1])
    vocab_map = VocabMap([1, 2], 4, removed="nearest", old_to_small=full, similarity="cosine")
    loaded = VocabMap.load(vocab_map.save(tmp_path / "map.safetensors"))
    assert loaded == vocab_map and loaded.similarity == "cosine" and loaded.removed == "nearest"
    assert loaded.to_small([0, 1, 2, 3, -100]) == [0, 0, 1, 1, -100]
    assert loaded.keeps([0, 1, 2, 3]).tolist() == [False, True, True, False]


def test_what_is_not_a_map_is_refused(tmp_path):
    with pytest.raises(UsageError, match="There is no vocabulary map"):
        VocabMap.load(tmp_path)
    (tmp_path / "vocab_map.safetensors").write_text("nothing")
    with pytest.raises(UsageError, match="does not hold"):
        VocabMap.load(tmp_path)
    with pytest.raises(UsageError, match="map every kept id to itself"):
        VocabMap([1, 2], 4, removed="unk", old_to_small=np.array([0, 1, 1, 1]))
    with pytest.raises(UsageError, match="goes with old_to_small"):
        VocabMap([1, 2], 4, removed="unk")


SIMILARITIES = ("dot", "cosine", "euclidean")


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("chunk_mib", "candidates", "block"), [(64.0, 8192, 64), (1e-9, 24, 8), (1e-2, 7, 64)])
def test_nearest_kept_is_the_best_of_all_pairs(similarity, dtype, chunk_mib, candidates, block, monkeypatch):
    monkeypatch.setattr(vocab_map_module, "CANDIDATES", candidates)
    monkeypatch.setattr(vocab_map_module, "BLOCK", block)
    table = torch.randn(V + 13, 8, generator=torch.Generator().manual_seed(0)).to(dtype)  # 13 rows of padding
    kept = np.sort(np.random.default_rng(0).choice(V, 60, replace=False))
    special = kept[:5]
    result = nearest_kept(table, kept, similarity, special, original_size=V, chunk_mib=chunk_mib)
    assert result.dtype == np.int64 and np.array_equal(kept[result[kept]], kept)
    removed, others = np.setdiff1d(np.arange(V), kept), kept[5:]
    rows, columns = table[removed].double(), table[others].double()
    scores = {
        "dot": rows @ columns.T,
        "cosine": torch.cosine_similarity(rows[:, None], columns[None], dim=-1),
        "euclidean": -torch.cdist(rows, columns),
    }[similarity]
    assert kept[result[removed]].tolist() == others[scores.argmax(-1)].tolist()
    VocabMap(kept, V, removed="nearest", old_to_small=result)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize(("candidates", "block"), [(8192, 64), (6, 3), (4, 64)])
def test_nearest_kept_ties_go_to_the_lowest_id(similarity, candidates, block, monkeypatch):
    monkeypatch.setattr(vocab_map_module, "CANDIDATES", candidates)
    monkeypatch.setattr(vocab_map_module, "BLOCK", block)
    axes = torch.eye(3).repeat(20, 1)  # each row is one of three, so all sums are exact
    kept = np.sort(np.random.default_rng(0).choice(60, 24, replace=False))
    result = kept[nearest_kept(axes, kept, similarity)]
    for old in np.setdiff1d(np.arange(60), kept):
        assert result[old] == min(k for k in kept if k % 3 == old % 3)


@given(
    scores=arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 40)), elements=st.integers(-3, 3)),
    block=st.integers(1, 9),
)
def test_the_first_maximum_is_that_of_a_plain_search(scores, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocab_map_module, "BLOCK", block)
        value, place = vocab_map_module._first_maximum(torch.from_numpy(scores))
    assert np.array_equal(place.numpy(), scores.argmax(-1)) and np.array_equal(value.numpy(), scores.max(-1))


def test_nearest_kept_is_never_a_special_token():
    table = torch.ones(6, 4)
    assert nearest_kept(table, np.array([0, 2, 4]), "dot", special_ids=[0]).tolist() == [0, 1, 1, 1, 2, 1]
    assert nearest_kept(table.numpy(), np.array([0, 2, 4]), "dot", special_ids=[0]).tolist() == [0, 1, 1, 1, 2, 1]
    with pytest.raises(UsageError, match="Only special"):
        nearest_kept(table, np.array([0]), special_ids=[0])
    with pytest.raises(UsageError, match="must be kept"):
        nearest_kept(table, np.array([0]), special_ids=[3])
    assert nearest_kept(table[:1], np.array([0]), special_ids=[0]).tolist() == [0]


@pytest.mark.parametrize("row", [0, 1])
def test_nearest_kept_refuses_what_has_no_nearest(row):
    table = torch.ones(6, 4)
    with pytest.raises(UsageError, match="manhattan"):
        nearest_kept(table, np.array([0, 2]), "manhattan")
    with pytest.raises(UsageError, match="V >= 7"):
        nearest_kept(table, np.array([0, 2]), original_size=7)
    table[row, 1] = float("nan")
    with pytest.raises(UsageError, match="not finite"):
        nearest_kept(table, np.array([0, 2]))
