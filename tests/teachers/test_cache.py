"""A cached teacher says what the live one says, however the rows come."""

import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import vocab_helpers

from hf_glmd import LiveTeacher, UsageError, VocabMap
from hf_glmd.data.collators import model_inputs
from hf_glmd.losses.topk import dense_topk_loss, top_tokens
from hf_glmd.models.heads import HeadInputs
from hf_glmd.teachers.cache import TeacherCache
from hf_glmd.teachers.ensemble import TeacherEnsemble
from hf_glmd.teachers.keys import teacher_fingerprint

ROWS, HIDDEN = 24, 16


def model(name: str = "bert", factor: float = 3.0, **settings) -> torch.nn.Module:
    made = vocab_helpers.tiny_model(name, **settings)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:  # a random model predicts nearly nothing; this one has opinions
                parameter.mul_(factor)
    return made


def rows(size: int = vocab_helpers.V, seed: int = 0) -> list[tuple[list[int], list[bool]]]:
    """Rows of ids of different lengths, and which of their positions count; in the second row none does."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(ROWS):
        ids = rng.integers(5, size, size=4 + number % 9).tolist()
        made.append((ids, (rng.random(len(ids)) < (0.0 if number == 1 else 0.7)).tolist()))
    return made


def batch(some: list[tuple[list[int], list[bool]]], width: int = 0, left: bool = False) -> dict[str, torch.Tensor]:
    width = max(width, *(len(ids) for ids, _ in some))
    made = {
        "input_ids": torch.zeros(len(some), width, dtype=torch.int64),
        "attention_mask": torch.zeros(len(some), width, dtype=torch.int64),
        "prediction_mask": torch.zeros(len(some), width, dtype=torch.bool),
    }
    for number, (ids, counted) in enumerate(some):
        place = slice(width - len(ids), None) if left else slice(len(ids))
        made["input_ids"][number, place] = torch.tensor(ids)
        made["attention_mask"][number, place] = 1
        made["prediction_mask"][number, place] = torch.tensor(counted)
    return made


def batches(some: list[tuple[list[int], list[bool]]], size: int) -> list[dict[str, torch.Tensor]]:
    return [batch(some[start : start + size]) for start in range(0, len(some), size)]


def arguments(some: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    return model_inputs(some), some["prediction_mask"]


def files(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def teacher() -> LiveTeacher:
    return LiveTeacher(model())


@pytest.fixture(scope="module")
def cached(teacher, tmp_path_factory) -> Path:
    """Of several shards."""
    directory = tmp_path_factory.mktemp("cached") / "cache"
    TeacherCache.build(
        teacher, batches(rows(), 6), directory, dtype="fp32", shard_mib=2e-3, fingerprint={"data": {"mask_share": 0.15}}
    )
    assert len(list(directory.glob("shard-*.safetensors"))) > 2
    return directory


# What it says


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 0.0), ("fp16", 2**-11), ("bf16", 2**-8), ("int8", 1 / 127)])
def test_hidden_states_are_those_of_the_teacher_up_to_their_dtype(teacher, tmp_path, dtype, tolerance):
    some = batches(rows(), 6)
    cache = TeacherCache.build(teacher, some, tmp_path / "cache", dtype=dtype)
    for one in some:
        live, read = teacher.head_inputs(*arguments(one)), cache.head_inputs(*arguments(one))
        worst = (read.hidden.float() - live.hidden).abs()
        assert (worst <= tolerance * live.hidden.abs().amax(1, keepdim=True)).all()
        assert torch.equal(read.weight, live.weight) and torch.equal(read.bias, live.bias)
        spread = live.logits().std()
        torch.testing.assert_close(
            cache.logits(*arguments(one)), live.logits(), rtol=0, atol=float(20 * tolerance * spread) + 1e-5
        )
    assert cache.size == teacher.size and cache.fallback is None and cache.models == []
    assert cache.rows == ROWS - 1 and cache.positions == sum(int(one["prediction_mask"].sum()) for one in some)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "t5", "bert"])
def test_scale_softcap_and_offset_are_kept(name, tmp_path):
    live = LiveTeacher(model(name, 1.0))
    one = batch(rows())
    if name == "t5":
        one["decoder_input_ids"] = one["input_ids"]
    cache = TeacherCache.build(live, [one], tmp_path, dtype="fp32")
    torch.testing.assert_close(cache.logits(*arguments(one)), live.logits(*arguments(one)))


def test_channels_of_very_different_size_survive_int8(tmp_path):
    made = model()
    norm = made.cls.predictions.transform.LayerNorm
    with torch.no_grad():
        norm.weight[3] *= 300
        norm.bias[3] *= 300
        made.cls.predictions.decoder.weight[:, 3] /= 300
    live, one = LiveTeacher(made), batch(rows())
    cache = TeacherCache.build(live, [one], tmp_path)
    wanted, read = live.head_inputs(*arguments(one)), cache.head_inputs(*arguments(one))
    assert wanted.hidden[:, 3].abs().mean() > 50 * wanted.hidden.abs().mean(0).median()
    p, q = (torch.log_softmax(head.logits(), -1) for head in (wanted, read))
    plain = wanted.hidden.abs().amax(1, keepdim=True) / 127
    without = torch.log_softmax(type(read)((wanted.hidden / plain).round() * plain, read.weight, read.bias).logits(), -1)
    error, error_without = ((p.exp() * (p - other)).sum(-1).mean() for other in (q, without))
    assert error < 1e-3 and error < 0.01 * error_without


def test_rows_are_found_however_the_batch_is_cut(teacher, cached):
    cache, some = TeacherCache.load(cached), rows()
    order = np.random.default_rng(1).permutation(ROWS).tolist()
    shuffled = [some[number] for number in order]
    reference = cache.head_inputs(*arguments(batch(shuffled))).hidden
    for size in (1, 5, ROWS):
        cuts = [cache.head_inputs(*arguments(one)).hidden for one in batches(shuffled, size)]
        assert torch.equal(torch.cat(cuts), reference)
    for layout in ({"width": 31}, {"left": True}):
        assert torch.equal(cache.head_inputs(*arguments(batch(shuffled, **layout))).hidden, reference)
    live = torch.cat([teacher.head_inputs(*arguments(one)).hidden for one in batches(shuffled, 5)])
    torch.testing.assert_close(reference, live, rtol=1e-4, atol=1e-4)


def test_an_inputs_dtype_is_no_matter_and_nothing_counted_is_no_row(cached):
    cache, one = TeacherCache.load(cached), batch(rows())
    reference = cache.head_inputs(*arguments(one)).hidden
    assert torch.equal(cache.head_inputs(*arguments(one | {"input_ids": one["input_ids"].int()})).hidden, reference)
    foreign = batch([([9, 8, 7], [False] * 3)])
    empty = cache.head_inputs(*arguments(foreign))
    assert empty.hidden.shape == (0, HIDDEN) and empty.logits().shape == (0, vocab_helpers.V)


# Vocabularies


def test_one_cache_serves_any_cut_of_the_vocabulary(tmp_path):
    made, large, small = model(), vocab_helpers.tiny_map(149), vocab_helpers.tiny_map(97)
    shared = [VocabMap(np.union1d(large.kept_ids, small.kept_ids), vocab_helpers.V), large]
    ids = np.intersect1d(large.kept_ids, small.kept_ids)
    original = [(np.random.default_rng(number).choice(ids, 7).tolist(), [True] * 7) for number in range(ROWS)]

    def in_small(vocab_map):
        return batch([(vocab_map.to_small(row), counted) for row, counted in original])

    TeacherCache.build(LiveTeacher(made, large), [in_small(large)], tmp_path, dtype="fp32")
    for vocab_map in (large, small, *shared):
        live = LiveTeacher(made, vocab_map)
        cache = TeacherCache.load(tmp_path, vocab_map)
        one = in_small(vocab_map)
        assert cache.size == vocab_map.size == cache.logits(*arguments(one)).shape[1]
        torch.testing.assert_close(cache.logits(*arguments(one)), live.logits(*arguments(one)), rtol=1e-4, atol=1e-4)
    whole = TeacherCache.load(tmp_path)
    torch.testing.assert_close(
        whole.logits(*arguments(batch(original))), LiveTeacher(made).logits(*arguments(batch(original))), rtol=1e-4, atol=1e-4
    )


def test_the_teacher_may_read_what_the_student_cannot(tmp_path):
    kept = vocab_helpers.tiny_map().kept_ids
    small = np.searchsorted(kept, np.arange(vocab_helpers.V)).clip(max=96)
    vocab_map = VocabMap(kept, vocab_helpers.V, removed="nearest", old_to_small=small)
    live, original = LiveTeacher(model(), vocab_map), batch(rows())
    ours = vocab_map.to_small(original["input_ids"])
    one = original | {"input_ids": ours, "original_input_ids": original["input_ids"]}
    reads = model_inputs(one) | {"original_input_ids": original["input_ids"]}, one["prediction_mask"]
    cache = TeacherCache.build(live, [one], tmp_path, dtype="fp32")
    torch.testing.assert_close(cache.logits(*reads), live.logits(*reads))
    assert not torch.equal(live.logits(*reads), live.logits(*arguments(one)))
    with pytest.raises(UsageError, match="not in the cache"):
        cache.logits(*arguments(one))  # as if the teacher read the replaced ones, too


# The top tokens


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize("with_map", [False, True])
def test_the_likeliest_tokens_are_the_teachers(tmp_path, dtype, with_map):
    vocab_map = vocab_helpers.tiny_map() if with_map else None
    live, some = LiveTeacher(model(), vocab_map), batches(rows(97), 6)
    cache = TeacherCache.build(live, some, tmp_path, "topk", dtype, k=16, temperature=2.0, shard_mib=1e-3)
    generator = torch.Generator().manual_seed(0)
    for one in some:
        logits = live.logits(*arguments(one))
        wanted, read = top_tokens(logits, 16, 2.0), TeacherCache.load(tmp_path, vocab_map).top_tokens(*arguments(one), 2.0)
        assert torch.equal(read.ids, wanted.ids) and torch.equal(read.log_tail, wanted.log_tail)
        student = logits + torch.randn(logits.shape, generator=generator)
        tolerance = 1e-6 if dtype == "fp32" else 2e-3
        torch.testing.assert_close(
            dense_topk_loss(student, read), dense_topk_loss(student, wanted), rtol=tolerance, atol=tolerance
        )
    assert "top tokens only" in cache.fallback
    empty = cache.top_tokens(*arguments(batch([([9, 8, 7], [False] * 3)])), 2.0)
    assert empty.ids.shape == (0, 16)


def test_several_teachers_are_cached_by_their_likeliest_tokens(tmp_path):
    ensemble = TeacherEnsemble([LiveTeacher(model()), LiveTeacher(model(factor=2.0))])
    one = batch(rows())
    cache = TeacherCache.build(ensemble, [one], tmp_path, "topk", "fp32", k=8, temperature=2.0)
    wanted = top_tokens(ensemble.logits(*arguments(one), 2.0), 8, 2.0)
    torch.testing.assert_close(cache.top_tokens(*arguments(one), 2.0).logits, wanted.logits)
    with pytest.raises(UsageError, match="no hidden states can be cached: several teachers are averaged.*kind='topk'"):
        TeacherCache.build(ensemble, [one], tmp_path / "other")


# Writing


def test_a_row_is_stored_once_and_batches_can_be_added(teacher, tmp_path):
    some = rows()
    first = TeacherCache.build(teacher, batches(some[:12] + some[:12], 5), tmp_path, dtype="fp32")
    assert first.rows == 11
    before = files(tmp_path)
    again = TeacherCache.build(teacher, batches(some[:12], 4), tmp_path, dtype="fp32")
    assert again.rows == 11 and files(tmp_path) == before
    both = TeacherCache.build(teacher, batches(some, 6), tmp_path, dtype="fp32")
    assert both.rows == ROWS - 1 and {name: files(tmp_path)[name] for name in before if "shard" in name} == {
        name: content for name, content in before.items() if "shard" in name
    }
    torch.testing.assert_close(
        both.logits(*arguments(batch(some))), teacher.logits(*arguments(batch(some))), rtol=1e-4, atol=1e-4
    )


KILLED = """
import sys, time
from pathlib import Path
import torch
import test_cache as test
from hf_glmd import LiveTeacher
from hf_glmd.teachers.cache import TeacherCache

torch.set_num_threads(1)

def slowly(batches):
    for number, batch in enumerate(batches):
        print(number, flush=True)
        yield batch
        time.sleep(0.1 if number < 7 else 60)

TeacherCache.build(LiveTeacher(test.model()), slowly(test.batches(test.rows(), 2)), sys.argv[1], shard_mib=3e-4)
"""


def test_killed_and_started_again_it_writes_the_same_files(tmp_path):
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(vocab_helpers.__file__).parent)])
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
    while int(process.stdout.readline()) < 7:
        pass
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    left = list((tmp_path / "killed").glob("shard-*.json"))
    with pytest.raises(UsageError, match="unfinished. Build it again"):
        TeacherCache.load(tmp_path / "killed")
    (tmp_path / "killed" / ".shard-00000-00099.safetensors.1.partial").write_bytes(b"half")
    times = {file: file.stat().st_mtime_ns for file in left}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in ("whole", "killed"):
            TeacherCache.build(LiveTeacher(model()), batches(rows(), 2), tmp_path / name, shard_mib=3e-4)
    finally:
        torch.set_num_threads(threads)
    assert 2 <= len(left) < len(list((tmp_path / "whole").glob("shard-*.json")))
    assert {file: file.stat().st_mtime_ns for file in left} == times  # these were not written again
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_shards_of_several_processes_are_one_cache(teacher, tmp_path, monkeypatch):
    some = rows()

    def build_as(rank: int, part: list) -> TeacherCache:
        state = SimpleNamespace(
            process_index=rank,
            is_main_process=rank == 0,
            is_local_main_process=rank == 0,
            main_process_first=nullcontext,
            wait_for_everyone=lambda: None,
        )
        monkeypatch.setattr("hf_glmd.teachers.cache.PartialState", lambda: state)
        return TeacherCache.build(teacher, batches(part, 5), tmp_path, dtype="fp32")

    build_as(0, some[:14])
    build_as(1, some[10:])
    cache = build_as(0, some[:14])  # the main process lists what is there when all have ended
    assert {file.name[:11] for file in tmp_path.glob("shard-*")} == {"shard-00000", "shard-00001"}
    torch.testing.assert_close(
        cache.logits(*arguments(batch(some))), teacher.logits(*arguments(batch(some))), rtol=1e-4, atol=1e-4
    )


TWO_PROCESSES = """
import sys
import test_cache as test
from accelerate import PartialState
from hf_glmd import LiveTeacher
from hf_glmd.teachers.cache import TeacherCache

state = PartialState(cpu=True)
assert state.num_processes == 2
cache = TeacherCache.build(LiveTeacher(test.model()), test.batches(test.rows()[state.process_index::2], 5), sys.argv[1])
assert cache.rows == test.ROWS - 1
"""


@pytest.mark.slow
def test_two_processes_write_one_cache(tmp_path):
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(vocab_helpers.__file__).parent)])
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [*command, tmp_path / "script.py", tmp_path / "cache"], env={**os.environ, "PYTHONPATH": path}, check=True, timeout=300
    )
    one = batch(rows())
    read, live = TeacherCache.load(tmp_path / "cache").logits(*arguments(one)), LiveTeacher(model()).logits(*arguments(one))
    torch.testing.assert_close(read, live, rtol=0.1, atol=0.1)


# Reading


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux how much memory is the process's own")
def test_the_files_are_not_loaded(tmp_path):
    def own_memory_mib() -> float:
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) / 1024

    class Wide(LiveTeacher):  # so that a large cache is made in no time
        def head_inputs(self, inputs, positions):
            hidden = inputs["input_ids"][positions].float()[:, None].expand(-1, 1024)
            return HeadInputs(hidden, torch.zeros(2, 1024))

    ids = torch.randint(5, vocab_helpers.V, (512, 40), generator=torch.Generator().manual_seed(0))
    some = [{"input_ids": part, "prediction_mask": torch.ones_like(part).bool()} for part in ids.split(32)]
    cache = TeacherCache.build(Wide(model()), some, tmp_path, dtype="fp32", shard_mib=8)
    assert cache.file_bytes > 80 * 2**20
    del cache
    before = own_memory_mib()
    cache = TeacherCache.load(tmp_path)
    for one in some:
        cache.head_inputs(*arguments(one))
    assert own_memory_mib() - before < 25


def test_it_is_checked_what_it_was_made_from(teacher, cached):
    cache = TeacherCache.load(cached, fingerprint={"teacher": teacher_fingerprint(teacher.model), "data": {"mask_share": 0.15}})
    with pytest.raises(UsageError, match=r"teacher is '[0-9a-f]+\.\.\. there and '[0-9a-f]+\.\.\. here"):
        cache.check({"teacher": teacher_fingerprint(model(factor=2.0))})
    with pytest.raises(UsageError, match="something else: data.mask_share is 0.15 there and 0.25 here"):
        TeacherCache.load(cached, fingerprint={"data": {"mask_share": 0.25}})
    with pytest.raises(UsageError, match="tokenizer is not recorded there and 'abc' here"):
        cache.check({"tokenizer": "abc"})


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "logits"}, "kind='logits' is unknown. Use 'hidden' or 'topk'"),
        ({"dtype": "int4"}, "dtype='int4' is unknown for kind='hidden'. Use one of int8, bf16"),
        ({"kind": "topk", "dtype": "int8"}, "dtype='int8' is unknown for kind='topk'"),
        ({"k": 5}, "k=5 and temperature=None belong to kind='topk'"),
        ({"kind": "topk", "k": 0}, "k=0 is out of range: the teacher predicts 211 tokens"),
        ({"kind": "topk", "k": 212}, "k=212 is out of range"),
        ({"kind": "topk", "temperature": 0.0}, "temperature=0.0 is not positive"),
        ({"shard_mib": 0}, "shard_mib=0 leaves no room"),
    ],
)
def test_settings_that_make_no_sense(teacher, tmp_path, settings, message):
    with pytest.raises(UsageError, match=message):
        TeacherCache.build(teacher, batches(rows(), 6), tmp_path / "cache", **settings)
    assert not (tmp_path / "cache").exists()


def test_what_cannot_be_cached(teacher, cached, tmp_path):
    with pytest.raises(UsageError, match="holds another cache: dtype is 'fp32' there and 'int8' here"):
        TeacherCache.build(teacher, batches(rows(), 6), cached, fingerprint={"data": {"mask_share": 0.15}})
    assert TeacherCache.load(cached).rows == ROWS - 1
    with pytest.raises(UsageError, match="holds another cache: fingerprint.data.mask_share is 0.15 there and not recorded here"):
        TeacherCache.build(teacher, batches(rows(), 6), cached, dtype="fp32")
    with pytest.raises(UsageError, match="a batch has input_ids, but no prediction_mask.*WordPredictionCollator"):
        TeacherCache.build(teacher, [{"input_ids": torch.ones(2, 3)}], tmp_path / "bare")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        TeacherCache.build(teacher, batches(rows(), 6), tmp_path / "file")
    with pytest.raises(UsageError, match="no position of the batches counts"):
        TeacherCache.build(teacher, [batch([([7, 8], [False, False])])], tmp_path / "nothing")
    with pytest.raises(UsageError, match="TeacherCache runs no model"):
        TeacherCache.build(TeacherCache.load(cached), batches(rows(), 6), tmp_path / "again")
    broken = LiveTeacher(model())
    broken.model.cls.predictions.transform.LayerNorm.bias[0] = torch.nan
    for settings in ({}, {"dtype": "bf16"}, {"kind": "topk"}):
        with pytest.raises(UsageError, match="not finite|predicts NaN"):
            TeacherCache.build(broken, batches(rows(), 6), tmp_path / str(len(settings)) / str(settings), **settings)
    packed = batch(rows()) | {"position_ids": torch.zeros(ROWS, 12, dtype=torch.int64)}
    del packed["attention_mask"]
    with pytest.raises(UsageError, match="packed texts of a causal model, the teacher BertForMaskedLM reads from both sides"):
        TeacherCache.build(teacher, [packed], tmp_path / "packed")


def test_a_row_that_is_not_there(cached):
    one = batch(rows())
    one["input_ids"][4, 0] = 6
    with pytest.raises(UsageError, match=r"1 of 23 rows are not in the cache .*ids \[6, .*each epoch masks other words"):
        TeacherCache.load(cached).head_inputs(*arguments(one))
    other = batch(rows())
    other["prediction_mask"] = other["attention_mask"].bool()
    with pytest.raises(UsageError, match="choice of positions"):
        TeacherCache.load(cached).head_inputs(*arguments(other))


def test_a_cache_used_for_what_it_does_not_hold(teacher, cached, tmp_path):
    top = TeacherCache.build(teacher, batches(rows(), 6), tmp_path, "topk", k=8, temperature=2.0)
    one = arguments(batch(rows()))
    with pytest.raises(UsageError, match="is for temperature 2.0, the loss is at 15.0. Train at 2.0, or .*kind='hidden'"):
        top.top_tokens(*one, 15.0)
    for use in (top.head_inputs, top.logits):
        with pytest.raises(UsageError, match="top tokens only.*kind='hidden'"):
            use(*one)
    with pytest.raises(UsageError, match="holds hidden states, use head_inputs"):
        TeacherCache.load(cached).top_tokens(*one, 2.0)
    with pytest.raises(UsageError, match="top ones of 211 tokens, which are not the 97 of the vocabulary map"):
        TeacherCache.load(tmp_path, vocab_helpers.tiny_map())
    with pytest.raises(UsageError, match="map comes from 307 tokens, the teacher of the cache .* predicts 211"):
        TeacherCache.load(cached, vocab_helpers.tiny_map(original_size=307))


def test_damaged_caches(teacher, tmp_path):
    def damaged(name: str) -> Path:
        directory = tmp_path / name
        TeacherCache.build(teacher, batches(rows(), 6), directory, shard_mib=1e-3)
        return directory

    with pytest.raises(UsageError, match="there is no cache at .*TeacherCache.build"):
        TeacherCache.load(tmp_path / "nothing")

    directory = damaged("missing")
    shard = sorted(directory.glob("shard-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(UsageError, match=f"{shard.name}' is missing. Delete .* build the cache again"):
        TeacherCache.load(directory)
    shard.with_suffix(".json").unlink()
    with pytest.raises(UsageError, match=f"{shard.name}' is missing"):
        TeacherCache.load(directory)
    whole = damaged("whole")
    TeacherCache.build(teacher, batches(rows(), 6), directory, shard_mib=1e-3)  # mends it
    assert files(directory) == files(whole)

    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(UsageError, match=f"has {len(content) - 1} bytes, {len(content)} were written"):
        TeacherCache.load(directory)
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    TeacherCache.load(directory, verify=False)
    with pytest.raises(UsageError, match="is corrupt: its checksum differs"):
        TeacherCache.load(directory)
    shard.write_bytes(b"\xff" * len(content))
    with pytest.raises(UsageError, match="is corrupt"):
        TeacherCache.load(directory)

    head = whole / "head.safetensors"
    saved = head.read_bytes()
    head.unlink()
    with pytest.raises(UsageError, match="head.safetensors' is missing or corrupt"):
        TeacherCache.load(whole)
    TeacherCache.build(teacher, batches(rows(), 6), whole, shard_mib=1e-3)
    assert head.read_bytes() == saved
    (whole / "cache.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(UsageError, match="does not describe a cache of version 1"):
        TeacherCache.load(whole)
    (whole / "cache.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        TeacherCache.load(whole)
