"""What people bring from transformers, trl and PEFT: rows, collators, models and arguments of their making."""

import copy

import datasets
import optuna
import peft
import pytest
import torch
import training_helpers as helpers
import vocab_helpers
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
)

from hf_glmd import AdaptersOffTeacher, GLMDTrainer, LiveTeacher
from hf_glmd.data.collators import ClassCollator, WordPredictionCollator
from hf_glmd.errors import UsageError
from hf_glmd.models.loading import load_word_model, merged_copy

TOKENIZER = helpers.TOKENIZER
PAD = TOKENIZER.pad_token_id


def padded_rows(rows, side="right", width=24):
    """As `padding="max_length"` leaves them."""

    def longer(row):
        ids, room = row["input_ids"], width - len(row["input_ids"])
        pads, zeros = [PAD] * room, [0] * room
        ones = [1] * len(ids)
        return {
            "input_ids": ids + pads if side == "right" else pads + ids,
            "attention_mask": ones + zeros if side == "right" else zeros + ones,
        }

    return rows.map(longer, remove_columns=["unused"])


def causal(**settings):
    return vocab_helpers.tiny_model("llama", num_hidden_layers=1, **settings)


def causal_trainer(folder, **settings):
    parts = {"model": causal(), "teacher": vocab_helpers.tiny_model("llama", num_hidden_layers=2)}
    return helpers.trainer(folder, **{**parts, **settings})


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_that_rows_bring_along_is_neither_read_nor_counted(side, tmp_path):
    rows = helpers.rows(11)
    for build in (helpers.trainer, causal_trainer):
        plain = build(tmp_path, eval_dataset=rows).evaluate()
        brought = build(tmp_path, eval_dataset=padded_rows(rows, side)).evaluate()
        assert brought["eval_loss"] == pytest.approx(plain["eval_loss"], rel=1e-6)


def test_classifiers_do_not_read_it_either():
    rows = [{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9, PAD, PAD], "attention_mask": [1, 1, 0, 0]}]
    batch = ClassCollator(TOKENIZER)([rows[0] | {"attention_mask": [1, 1, 1]}, rows[1]])
    assert batch["input_ids"].shape == (2, 3) and batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [5, 6], "attention_mask": [1]}, "2 input_ids and 1 attention_mask"),
        ({"input_ids": [5, -100]}, "the id -100 in input_ids"),
        ({"input_ids": [5, 6], "attention_mask": [0, 0]}, "it is padding"),
    ],
)
def test_rows_that_contradict_themselves_are_refused(row, message):
    with pytest.raises(UsageError, match=message):
        WordPredictionCollator(TOKENIZER, mlm_probability=0.0)([row])


def test_special_tokens_that_a_row_names_are_not_masked():
    row = {"input_ids": list(range(10, 60)), "special_tokens_mask": [1, 0] * 25}
    batch = WordPredictionCollator(TOKENIZER, "masked", mlm_probability=0.9)([row])
    assert (batch["targets"][0, 1::2] != -100).any() and (batch["targets"][0, ::2] == -100).all()


def test_each_model_reads_the_columns_its_own_forward_takes(tmp_path):
    rows = helpers.rows(9).map(lambda row: {"token_type_ids": [n % 2 for n in range(len(row["input_ids"]))]})
    teacher = helpers.teacher()
    student = vocab_helpers.tiny_model("distilbert")
    trainer = helpers.trainer(
        tmp_path, model=student, teacher=teacher, eval_dataset=rows, train_dataset=rows, mlm_probability=0.0
    )
    seen = []
    teacher.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs.get("token_type_ids")), with_kwargs=True)
    trainer.evaluate()
    assert seen and all(types is not None and types.any() for types in seen)


def labelled(rows):
    return rows.map(lambda row: {"labels": [-100, -100, *row["input_ids"][2:]]}, remove_columns=["unused"])


def test_only_completions_are_learnt_where_labels_say_so(tmp_path):
    rows = labelled(helpers.rows(7))
    trainer = causal_trainer(tmp_path, eval_dataset=rows, train_dataset=rows, positions="labels", temperature=1.0)
    found = trainer.evaluate()["eval_loss"]
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        student, teacher = (model(input_ids=ids).logits[0].log_softmax(-1) for model in (trainer.model, trainer.teacher.model))
        kl = (teacher.exp() * (teacher - student)).sum(-1)[1:-1]  # what predicts the third token and those behind it
        total, count = total + float(kl.sum()), count + len(kl)
    assert found == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("mlm", [True, False])
def test_collators_of_transformers_work(mlm, tmp_path):
    rows = helpers.rows(12).remove_columns("unused")
    collator = DataCollatorForLanguageModeling(TOKENIZER, mlm=mlm)
    build = helpers.trainer if mlm else causal_trainer
    trainer = build(tmp_path, train_dataset=rows, eval_dataset=rows, data_collator=collator, max_steps=2)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    if not mlm:  # all but the last position of each row predicts
        own = causal_trainer(tmp_path, eval_dataset=labelled(rows.add_column("unused", [0] * 12)), positions="labels")
        batch = trainer.data_collator([rows[0], rows[1]])
        assert batch["prediction_mask"].sum() == sum(len(rows[n]["input_ids"]) - 1 for n in (0, 1)) and own


def test_a_collator_without_labels_counts_all_tokens(tmp_path):
    rows = helpers.rows(12).remove_columns("unused")
    trainer = causal_trainer(tmp_path, eval_dataset=rows, data_collator=DataCollatorWithPadding(TOKENIZER))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(causal_trainer(tmp_path, eval_dataset=rows).evaluate()["eval_loss"])


def test_prompts_are_read_and_completions_learnt(tmp_path):
    rows = datasets.Dataset.from_list([{"prompt": f"{text} ", "completion": "walking home"} for text in vocab_helpers.texts(8)])
    trainer = causal_trainer(tmp_path, train_dataset=rows, eval_dataset=rows, max_steps=1)
    row = trainer.train_dataset[0]
    kept = [label for label in row["labels"] if label != -100]
    assert trainer.args.positions == "labels" and row["labels"][0] == -100
    assert "walking home" in TOKENIZER.decode(kept, skip_special_tokens=True)
    trainer.train()


def test_messages_need_a_template_and_go_through_it(tmp_path):
    rows = datasets.Dataset.from_list([{"messages": [{"role": "user", "content": text}]} for text in vocab_helpers.texts(4)])
    with pytest.raises(UsageError, match="no chat template"):
        causal_trainer(tmp_path, train_dataset=rows, eval_dataset=None)
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}{% endfor %}"
    trainer = causal_trainer(tmp_path, train_dataset=rows, eval_dataset=None, processing_class=tokenizer)
    assert tokenizer.decode(trainer.train_dataset[0]["input_ids"]).startswith("user")


def test_evaluation_sees_all_rows_whatever_training_drops(tmp_path):
    rows = helpers.rows(11)
    losses = {
        helpers.trainer(tmp_path, eval_dataset=rows, dataloader_drop_last=drop, per_device_eval_batch_size=4).evaluate()[
            "eval_loss"
        ]
        for drop in (True, False)
    }
    assert len(losses) == 1


@pytest.mark.parametrize(
    ("metric", "greater"), [("eval_kl", False), ("perplexity", False), ("eval_de_loss", False), ("agreement", True)]
)
def test_the_better_checkpoint_is_the_better_one(metric, greater, tmp_path):
    args = helpers.arguments(
        tmp_path, metric_for_best_model=metric, load_best_model_at_end=True, save_strategy="steps", eval_strategy="steps"
    )
    assert args.greater_is_better is greater


def test_outputs_have_logits_for_a_loss_of_ones_own(tmp_path):
    class WithHardLabels(GLMDTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
            self.plain = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch).item(), loss.item()
            wanted = inputs["targets"][inputs["prediction_mask"]]
            # Of a batch without a masked token the mean is NaN, at which training would stop.
            hard = F.cross_entropy(outputs.logits[inputs["prediction_mask"]], wanted, reduction="sum") / max(len(wanted), 1)
            return (loss + hard, outputs) if return_outputs else loss + hard

    trainer = WithHardLabels(
        helpers.student(),
        helpers.teacher(),
        helpers.arguments(tmp_path, positions="masked"),
        helpers.rows(),
        processing_class=TOKENIZER,
    )
    trainer.train()
    assert trainer.plain[0] == pytest.approx(trainer.plain[1], rel=1e-5)
    with pytest.raises(UsageError, match="compute_loss_func is not called"):
        GLMDTrainer(
            helpers.student(), helpers.teacher(), helpers.arguments(tmp_path), processing_class=TOKENIZER, compute_loss_func=print
        )


def test_a_function_makes_the_student_of_each_run(tmp_path):
    parts = {"train_dataset": helpers.rows(), "eval_dataset": helpers.rows(7), "processing_class": TOKENIZER}
    options = {"args": helpers.arguments(tmp_path), "model_init": lambda: helpers.student()}
    trainer = GLMDTrainer(None, helpers.teacher(), **parts, **options)
    losses = [trainer.train().training_loss for _ in range(2)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and trainer.evaluate()["eval_loss"] > 0
    with pytest.raises(UsageError, match="the student is missing"):
        GLMDTrainer(None, helpers.teacher(), helpers.arguments(tmp_path), processing_class=TOKENIZER)


def test_hyperparameters_are_searched_for_the_least_kl(tmp_path):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    parts = {"train_dataset": helpers.rows(), "eval_dataset": helpers.rows(7), "processing_class": TOKENIZER}
    args = helpers.arguments(tmp_path, metric_for_best_model="eval_kl", max_steps=3, eval_strategy="steps", eval_steps=3)
    trainer = GLMDTrainer(None, helpers.teacher(), args, model_init=lambda: helpers.student(), **parts)
    rates = [1e-2, 1e-8]
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", rates)},
        compute_objective=lambda scores: scores["eval_kl"],
        direction="minimize",
        backend="optuna",
        n_trials=2,
        sampler=optuna.samplers.GridSampler({"learning_rate": rates}),
    )
    assert best.hyperparameters == {"learning_rate": 1e-2}


def test_a_name_a_raw_tokenizer_and_the_student_as_its_own_teacher(tmp_path):
    student = helpers.student()
    student.save_pretrained(tmp_path / "student")
    TOKENIZER.save_pretrained(tmp_path / "student")
    trainer = helpers.trainer(tmp_path / "a", model=str(tmp_path / "student"), processing_class=TOKENIZER.backend_tokenizer)
    assert trainer.model.dtype == torch.float32 and isinstance(trainer.processing_class, PreTrainedTokenizerFast)
    with pytest.raises(UsageError, match="the teacher is the student itself"):
        helpers.trainer(tmp_path / "b", model=student, teacher=student)
    adapted = peft.get_peft_model(helpers.student(), peft.LoraConfig(target_modules="all-linear"))
    assert helpers.trainer(tmp_path / "c", model=adapted, teacher=AdaptersOffTeacher(adapted)).teacher


@pytest.mark.parametrize(("token", "message"), [(-100, "input_ids hold -100 in row 3"), (1000, "input_ids hold 1000 in row 3")])
def test_ids_of_no_token_are_found_before_training(token, message, tmp_path):
    rows = helpers.rows(6).to_list()
    rows[3]["input_ids"][1] = token
    with pytest.raises(UsageError, match=message):
        helpers.trainer(tmp_path, train_dataset=datasets.Dataset.from_list(rows))
    trainer = (
        helpers.trainer(tmp_path, train_dataset=datasets.Dataset.from_list(rows).to_iterable_dataset()) if token > 0 else None
    )
    if trainer:
        with pytest.raises(UsageError, match="input_ids hold 1000"):
            trainer.train()


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", ["lm_head", "embed_tokens"]])
@pytest.mark.parametrize("way", ["target_modules", "modules_to_save"])
def test_adapters_of_a_tied_table_untie_it(way, target, tmp_path):
    target = [target] if isinstance(target, str) else target
    base = causal(tie_word_embeddings=True)
    options = {way: target} | ({} if way == "target_modules" else {"target_modules": ["q_proj"]})
    model = peft.get_peft_model(base, peft.LoraConfig(**options, r=2, init_lora_weights=False))
    if way == "modules_to_save":
        for name, weight in model.named_parameters():
            if "modules_to_save" in name:
                with torch.no_grad():
                    weight.add_(torch.randn_like(weight))
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = model.eval()(input_ids=ids).logits
    merged_copy(model).save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(model(input_ids=ids).logits, expected)  # the given one is as it was
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(read(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert not read.config.tie_word_embeddings
    base = causal(tie_word_embeddings=True)
    base.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
        peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    wanted = adapted.eval()(input_ids=ids).logits
    torch.testing.assert_close(load_word_model(tmp_path / "adapter")(input_ids=ids).logits, wanted, rtol=1e-4, atol=1e-4)
    assert load_word_model(tmp_path / "adapter").config.tie_word_embeddings  # untouched tables stay tied


def test_a_token_without_a_row_is_left_out_with_a_note(tmp_path, caplog):
    rows = TOKENIZER.vocab_size - 1
    models = {}
    for name, size in (("student", rows), ("teacher", rows + 64)):
        models[name] = vocab_helpers.tiny_model("bert", vocab_size=size)
        models[name].save_pretrained(tmp_path / name)
        TOKENIZER.save_pretrained(tmp_path / name)
    student = AutoModelForMaskedLM.from_pretrained(tmp_path / "student")
    trainer = helpers.trainer(tmp_path / "out", model=student, teacher=LiveTeacher(tmp_path / "teacher"))
    assert trainer.teacher.size == rows and "1 tokens have no row" in caplog.text


@pytest.mark.parametrize("kind", ["texts", "prompts", "classes"])
def test_the_saved_tokenizer_is_set_as_it_was_before_the_rows_were_tokenised(kind, tmp_path):
    """As the file of a sentence encoder is, which truncates and pads by itself."""
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.backend_tokenizer.enable_truncation(max_length=23)
    tokenizer.backend_tokenizer.enable_padding(pad_id=PAD, pad_token=tokenizer.pad_token, length=19)
    wanted = tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding
    texts = vocab_helpers.texts(12)
    if kind == "texts":
        trainer = helpers.trainer(tmp_path, train_dataset=texts, processing_class=tokenizer)
    elif kind == "prompts":
        rows = [{"prompt": text, "completion": text} for text in texts]
        trainer = causal_trainer(tmp_path, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer)
    else:
        model, teacher = (
            vocab_helpers.tiny_class("BertForSequenceClassification", vocab_helpers._SMALL, vocab_helpers.V) for _ in range(2)
        )
        rows = datasets.Dataset.from_dict({"text": texts})
        trainer = helpers.trainer(
            tmp_path, model=model, teacher=teacher, train_dataset=rows, processing_class=tokenizer, objective="soft_label"
        )
    trainer.processing_class("a call", truncation=True, max_length=5)
    trainer.save_model(tmp_path / "saved")
    backend = PreTrainedTokenizerFast.from_pretrained(tmp_path / "saved").backend_tokenizer
    assert (backend.truncation, backend.padding) == wanted


def test_evaluate_and_predict_take_what_the_constructor_takes(tmp_path):
    """Text in a list, a data set, a dict or a file, and rows of ids: the same figures, which are those of eval_dataset."""
    texts = vocab_helpers.texts(9)
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    data = datasets.Dataset.from_dict({"text": texts})
    trainer = helpers.trainer(tmp_path / "out", eval_dataset=data)
    wanted = trainer.evaluate()
    for given in (data, texts, str(tmp_path / "texts.txt"), trainer.eval_dataset):
        found = trainer.evaluate(given)
        assert found["eval_kl"] == wanted["eval_kl"] and found["eval_loss"] == wanted["eval_loss"]
    both = trainer.evaluate({"one": data, "two": texts})
    assert both["eval_one_kl"] == both["eval_two_kl"] == wanted["eval_kl"]
    assert trainer.predict(texts).metrics["test_kl"] == wanted["eval_kl"]
    with pytest.raises(UsageError, match=r"text_column|column"):
        trainer.evaluate(datasets.Dataset.from_dict({"body": texts}))


def test_evaluate_knows_its_named_data_sets(tmp_path):
    data = datasets.Dataset.from_dict({"text": vocab_helpers.texts(9)})
    trainer = helpers.trainer(tmp_path, eval_dataset={"one": data, "two": data.select(range(4))})
    wanted = trainer.evaluate()
    assert trainer.evaluate("two", metric_key_prefix="eval_two")["eval_two_kl"] == wanted["eval_two_kl"]
