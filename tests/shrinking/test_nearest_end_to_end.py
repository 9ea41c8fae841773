"""Similar tokens in place of removed ones, from the counting to a trained student that is loaded again."""

import datasets
import torch
import vocab_helpers

from hf_glmd import GLMDConfig, GLMDTrainer, MappedTokenizer, VocabShrinker, build_student
from hf_glmd.vocab.mapped_tokenizer import load_tokenizer


def test_the_student_reads_stand_ins_and_the_teacher_the_text_as_it_was(tmp_path):
    teacher = vocab_helpers.tiny_model("bert")
    texts = datasets.Dataset.from_dict({"text": vocab_helpers.texts(40)})
    shrinker = VocabShrinker(vocab_helpers.generic_tokenizer()).count(texts["text"], progress=False)
    vocab = shrinker.shrink(size=60, removed="nearest", embeddings=teacher.get_input_embeddings().weight)
    args = GLMDConfig(str(tmp_path), max_steps=2, use_cpu=True, report_to="none", max_length=24, disable_tqdm=True)
    student = build_student(teacher, num_layers=1, vocab=vocab)
    settings = {"processing_class": vocab.tokenizer, "vocab_map": vocab.vocab_map, "eval_dataset": texts}
    trainer = GLMDTrainer(student, teacher, args, texts, **settings)
    row = trainer.train_dataset[0]
    assert row["original_input_ids"] != vocab.vocab_map.to_original(row["input_ids"]), "some token was removed"
    assert vocab.vocab_map.to_small(row["original_input_ids"]) == row["input_ids"]
    batch = trainer.data_collator([row])
    seen = []
    handle = teacher.get_input_embeddings().register_forward_hook(lambda module, args, output: seen.append(args[0]))
    trainer.evaluate()
    masked = batch["input_ids"] == vocab.tokenizer.mask_token_id
    was = torch.tensor([row["original_input_ids"]])
    assert torch.equal(batch["original_input_ids"], torch.where(masked, vocab.vocab_map.to_original(batch["input_ids"]), was))
    assert torch.equal(seen[0][:1, : was.shape[1]], batch["original_input_ids"])
    handle.remove()
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = load_tokenizer(tmp_path / "saved")
    assert isinstance(loaded, MappedTokenizer)
    assert loaded("walking talked")["input_ids"] == vocab.tokenizer("walking talked")["input_ids"]
