"""Which words are hidden, and what counts."""

import pytest
import torch
import vocab_helpers

from hf_glmd import UsageError
from hf_glmd.data.collators import TargetCollator, WordPredictionCollator

TOKENIZER = vocab_helpers.generic_tokenizer()
ROWS = [{"input_ids": TOKENIZER(text)["input_ids"], "extra": "x"} for text in vocab_helpers.texts(12)]
MASK = TOKENIZER.mask_token_id


def test_all_positions_count_but_padding():
    batch = WordPredictionCollator(TOKENIZER, "all", 0.3)(ROWS)
    assert set(batch) == {"input_ids", "attention_mask", "prediction_mask", "targets"}
    assert torch.equal(batch["prediction_mask"], batch["attention_mask"].bool())
    assert (batch["input_ids"] == MASK).any()


def test_targets_are_the_words_that_were_hidden_or_come_next():
    batch = WordPredictionCollator(TOKENIZER, "masked", 0.3)(ROWS)
    plain = WordPredictionCollator(TOKENIZER, "all", 0.0)(ROWS)
    hidden = batch["input_ids"] == MASK
    assert torch.equal(batch["targets"], torch.where(hidden, plain["input_ids"], -100))
    assert (plain["targets"] == -100).all()
    rows = [{"input_ids": [5, 6, 7, 8], "position_ids": [0, 1, 0, 1]}, {"input_ids": [9], "position_ids": [0]}]
    causal = WordPredictionCollator(TOKENIZER, "all", 0.0, causal=True)(rows)
    assert causal["targets"].tolist() == [[6, -100, 8, -100], [-100] * 4]
    assert causal["position_ids"].tolist() == [[0, 1, 0, 1], [0, 0, 1, 2]] and "attention_mask" not in causal


def test_a_decoder_gets_the_rest_of_the_row():
    end = TOKENIZER.sep_token_id
    collator = TargetCollator(TOKENIZER, decoder_start_token_id=0, seed=3)
    batch = collator(ROWS)
    for row, ids, filled, decoder, targets in zip(
        ROWS, batch["input_ids"], batch["attention_mask"], batch["decoder_input_ids"], batch["targets"], strict=True
    ):
        source, target = ids[filled.bool()].tolist(), [token for token in targets.tolist() if token >= 0]
        assert source[:-1] + target == row["input_ids"] and source[-1] == end and len(source) > 1
        assert decoder[: len(target)].tolist() == [0, *target[:-1]]
    assert torch.equal(batch["prediction_mask"], batch["targets"] >= 0)
    alone = collator(ROWS[:1])
    assert alone["input_ids"][0].tolist() == [t for t in batch["input_ids"][0].tolist()][: alone["input_ids"].shape[1]]
    collator.epoch = 1
    assert not torch.equal(collator(ROWS)["targets"], batch["targets"])
    with pytest.raises(UsageError, match="decoder_start_token_id is not set"):
        TargetCollator(TOKENIZER, None)


def test_only_hidden_words_count():
    batch = WordPredictionCollator(TOKENIZER, "masked", 0.3)(ROWS)
    assert torch.equal(batch["prediction_mask"], batch["input_ids"] == MASK)
    assert 0.1 < batch["prediction_mask"].sum() / batch["attention_mask"].sum() < 0.4


def test_a_blank_that_is_there_already_counts():
    row = {"input_ids": [TOKENIZER.cls_token_id, MASK, TOKENIZER.sep_token_id]}
    assert WordPredictionCollator(TOKENIZER, "masked", 0.0)([row])["prediction_mask"].tolist() == [[False, True, False]]


def test_special_tokens_are_never_hidden():
    batch = WordPredictionCollator(TOKENIZER, "masked", 0.9)(ROWS)
    assert (batch["input_ids"][:, 0] == TOKENIZER.cls_token_id).all()


def test_masks_belong_to_the_row_and_not_to_its_batch():
    collator = WordPredictionCollator(TOKENIZER, "masked", 0.3)
    whole = collator(ROWS)["input_ids"]
    for number, row in enumerate(ROWS):
        alone = collator([row])["input_ids"][0]
        assert torch.equal(whole[number, : len(alone)], alone)


def test_every_epoch_and_seed_hides_other_words():
    collators = [WordPredictionCollator(TOKENIZER, "masked", 0.3, seed) for seed in (0, 0, 1)]
    collators[1].epoch = 1
    masks = [collator(ROWS)["prediction_mask"] for collator in collators]
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize(
    ("positions", "share", "message"),
    [("some", 0.1, "positions='some'"), ("all", 1.0, "mlm_probability=1.0"), ("all", -0.1, "-0.1")],
)
def test_settings_out_of_range_are_refused(positions, share, message):
    with pytest.raises(UsageError, match=message):
        WordPredictionCollator(TOKENIZER, positions, share)


def test_a_tokenizer_without_mask_token_can_only_count_everything():
    causal = vocab_helpers.generic_tokenizer()
    causal.mask_token = None
    with pytest.raises(UsageError, match="no mask token"):
        WordPredictionCollator(causal, "masked")
    assert WordPredictionCollator(causal, "all", 0.0)(ROWS)["prediction_mask"].any()


def test_some_chosen_tokens_stay_visible_and_count():
    all_masked = WordPredictionCollator(TOKENIZER, "masked", 0.6)(ROWS)
    some = WordPredictionCollator(TOKENIZER, "masked", 0.6, mask_replace_prob=0.5)(ROWS)
    plain = WordPredictionCollator(TOKENIZER, "all", 0.0)(ROWS)["input_ids"]
    hidden = some["input_ids"] == TOKENIZER.mask_token_id
    visible = some["prediction_mask"] & ~hidden
    assert torch.equal(some["prediction_mask"], all_masked["prediction_mask"])  # the same tokens are chosen
    assert hidden.any() and visible.any()
    assert torch.equal(some["input_ids"][~hidden], plain[~hidden])
    assert torch.equal(some["targets"] != -100, hidden)  # what is visible is no prediction to be scored


def test_a_cache_knows_what_stayed_visible():
    assert "mask_replace_prob" not in WordPredictionCollator(TOKENIZER, "masked", 0.3).choices  # caches of older versions
    assert WordPredictionCollator(TOKENIZER, "masked", 0.3, mask_replace_prob=0.8).choices["mask_replace_prob"] == 0.8


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_the_replaced_share_is_a_share(share):
    with pytest.raises(UsageError, match="mask_replace_prob"):
        WordPredictionCollator(TOKENIZER, "masked", 0.3, mask_replace_prob=share)
