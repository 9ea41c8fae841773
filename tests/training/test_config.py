"""Settings of a distillation."""

import pytest
import torch

from hf_glmd import GLMDConfig, UsageError


@pytest.mark.parametrize(("objective", "temperature"), [("word_prediction", 15.0), ("soft_label", 1.0)])
def test_the_temperature_follows_the_objective(tmp_path, objective, temperature):
    assert GLMDConfig(output_dir=tmp_path, objective=objective, use_cpu=True).temperature == temperature
    assert GLMDConfig(output_dir=tmp_path, objective=objective, temperature=3.0, use_cpu=True).temperature == 3.0


def test_all_mistakes_are_reported_together(tmp_path):
    with pytest.raises(UsageError) as caught:
        GLMDConfig(output_dir=tmp_path, objective="words", temperature=-1.0, positions="some", mask_share=2.0, max_length=1)
    for part in ("objective='words'", "temperature=-1.0", "positions='some'", "mlm_probability=2.0", "max_length=1"):
        assert part in str(caught.value)


def test_it_can_be_saved_as_the_trainer_does(tmp_path):
    torch.save(GLMDConfig(output_dir=tmp_path, use_cpu=True), tmp_path / "args.bin")
    assert torch.load(tmp_path / "args.bin", weights_only=False).temperature == 15.0


def test_every_field_has_a_help_text():
    ours = set(GLMDConfig.__dataclass_fields__) - set(GLMDConfig.__mro__[1].__dataclass_fields__)
    assert ours and all(GLMDConfig.__dataclass_fields__[name].metadata["help"] for name in ours)


TOKEN = "hf_" + "Ab1" * 12


@pytest.mark.parametrize(
    "options", [{"run_name": f"x_{TOKEN}"}, {"hub_model_id": f"someone/{TOKEN}"}, {"lr_scheduler_kwargs": {"a": TOKEN}}]
)
def test_an_access_token_in_any_other_field_is_refused_and_not_repeated(tmp_path, options):
    with pytest.raises(UsageError, match="holds an access token of the Hub. Give it as hub_token") as refused:
        GLMDConfig(str(tmp_path), use_cpu=True, **options)
    assert TOKEN not in str(refused.value)
    assert GLMDConfig(str(tmp_path), use_cpu=True, hub_token=TOKEN).hub_token == TOKEN
