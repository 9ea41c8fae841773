"""Rows are told apart by what a teacher reads in them, and by nothing else."""

import pytest
import torch

from hf_glmd import UsageError
from hf_glmd.teachers.keys import row_keys


def test_keys_tell_apart_all_that_a_teacher_reads():
    ids, mask = torch.tensor([[5, 6, 7, 0]]), torch.tensor([[1, 1, 1, 0]])
    counted = mask.bool()

    def key(**inputs):
        counts = inputs.pop("counted", counted)
        return row_keys(inputs, counts).tobytes()

    plain = key(input_ids=ids, attention_mask=mask)
    assert plain == key(input_ids=ids[:, :3], attention_mask=mask[:, :3], counted=counted[:, :3])
    assert plain == key(input_ids=ids[:, :3], counted=counted[:, :3])
    packed = torch.tensor([[0, 1, 0, 0]])
    others = [
        key(input_ids=ids, counted=counted),
        key(input_ids=ids + 1, attention_mask=mask),
        key(input_ids=ids, attention_mask=mask, counted=torch.tensor([[True, True, False, False]])),
        key(input_ids=ids, attention_mask=mask, position_ids=packed),
        key(input_ids=ids, attention_mask=mask, position_ids=torch.arange(4)[None]),
        key(input_ids=ids, attention_mask=mask, decoder_input_ids=ids),
        key(input_ids=ids, attention_mask=mask, decoder_input_ids=ids + 1),
        key(input_ids=ids, attention_mask=mask[:, [3, 0, 1, 2]], counted=counted[:, [3, 0, 1, 2]]),
    ]
    assert len({plain, *others}) == len(others) + 1
    # Packed causal rows and decoders have no mask: their padding is behind all that counts.
    longer = torch.nn.functional.pad(ids, (0, 3)), torch.nn.functional.pad(counted, (0, 3))
    assert key(input_ids=ids, position_ids=packed) == key(
        input_ids=longer[0], position_ids=torch.tensor([[0, 1, 0, 0, 1, 2, 3]]), counted=longer[1]
    )
    assert key(input_ids=ids, attention_mask=mask, decoder_input_ids=ids) == key(
        input_ids=ids, attention_mask=mask, decoder_input_ids=longer[0], counted=longer[1]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": torch.zeros(2, 3)}, r"'input_ids' is float32 \(2, 3\)"),
        ({"attention_mask": torch.ones(2, 1, 3, 3)}, r"attention mask \(2, 1, 3, 3\) does not fit 'input_ids' \(2, 3\)"),
        ({"attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}, "or padding"),
        ({"positions": torch.ones(2, 4).bool()}, r"prediction_mask \(2, 4\)"),
    ],
)
def test_rows_that_have_no_key(change, message):
    inputs = {"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(2, 3)} | change
    with pytest.raises(UsageError, match=message):
        row_keys(inputs, inputs.pop("positions", torch.ones(2, 3).bool()))
