"""LoRA on a shrunk model, loaded again onto it in a process without this package."""

import interop_helpers
import pytest
import torch
from transformers import AutoModelForCausalLM

READ = """
import json, torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
adapter, base, text = sys.argv[1:]
model = AutoPeftModelForCausalLM.from_pretrained(adapter).eval()
inputs = AutoTokenizer.from_pretrained(base)(text, return_tensors="pt")
with torch.no_grad():
    print(json.dumps([model(**inputs).logits.tolist(), model.merge_and_unload()(**inputs).logits.tolist()]))
"""


def test_lora_is_trained_saved_and_loaded_onto_the_shrunk_model(causal, tmp_path, tool):
    tool("peft", "LoRA on a shrunk model, trained, saved and loaded onto it in another process, merged too: logits")
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    tokenizer, text = causal.small_tokenizer, interop_helpers.TEXTS[0]
    # With the whole embedding among what is trained and saved: it has the smaller vocabulary's rows.
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["embed_tokens"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(causal.small), config)
    inputs = tokenizer(interop_helpers.TEXTS[:4], padding=True, return_tensors="pt")
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.05)
    losses = []
    for _ in range(3):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    model.eval().save_pretrained(tmp_path)
    one = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        trained, base = model(**one).logits, causal.small_model(**one).logits
    loaded, merged = (torch.tensor(values) for values in interop_helpers.fresh_process(READ, tmp_path, causal.small, text))
    assert (trained - base).abs().max() > 0.1
    torch.testing.assert_close(loaded, trained)
    torch.testing.assert_close(merged, trained, rtol=1e-4, atol=1e-4)
    assert loaded.shape[-1] == causal.vocab_map.size


@pytest.mark.interop
def test_sft_trainer(causal, tmp_path, tool, record_property):
    tool("trl", "`SFTTrainer` on a shrunk causal model: a few steps lower the loss, and what is saved is read again")
    record_property("result", "as said")
    import datasets
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(
        str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=5e-3,
        max_length=32,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    rows = datasets.Dataset.from_dict({"text": interop_helpers.TEXTS})
    # By its path, so that trl loads model and tokenizer itself.
    trainer = SFTTrainer(str(causal.small), args=args, train_dataset=rows)
    assert trainer.model.config.vocab_size == len(trainer.processing_class) == causal.vocab_map.size  # nothing was added
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 6 and losses[-1] < losses[0] - 0.1
    trainer.save_model(str(tmp_path / "saved"))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(saved.get_input_embeddings().weight, trainer.model.get_input_embeddings().weight)
