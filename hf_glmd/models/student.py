"""build_student: the teacher's architecture with fewer layers, a smaller vocabulary, or other sizes."""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hf_glmd.errors import UsageError, nearest
from hf_glmd.models.config_ids import update_config_ids
from hf_glmd.models.surgery import check_weights, resize_model
from hf_glmd.utils.remote_code import trust_remote_code
from hf_glmd.vocab.vocab_map import VocabMap

_LAYER_COUNTS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_decoder_layers",
    "num_encoder_layers",
    "encoder_layers",
    "decoder_layers",
)
_PER_LAYER = re.compile(r"layer|block|attention_types|attn_type")


def build_student(
    teacher: Any,
    num_layers: int | None = None,
    vocab: Any = None,
    layers: str | Sequence[int] = "spread",
    init: str = "teacher",
    *,
    dtype: torch.dtype | None = None,
    **config_overrides: Any,
) -> Any:
    """A student of the teacher's class; the teacher is untouched.

    With init="teacher" the chosen layers and everything outside of the layers are copied: with all layers chosen the student
    computes what the teacher does. A layer stack is whatever `ModuleList` becomes shorter when the config asks for fewer layers,
    so encoder and decoder are both shortened. Models that share one layer among all depths (ALBERT) just apply it fewer times.

    Args:
        teacher: a transformers model, with weights in memory and not quantised.
        num_layers: layers of the student (of its encoder and of its decoder), 1 to the teacher's number. Default: as many as
            `layers` names, otherwise the teacher's. To give the two halves different numbers name the decoder's by its own
            setting, e.g. num_decoder_layers=2 (T5), decoder_layers=2 (BART).
        vocab: `ShrunkVocab` or `VocabMap`; None keeps the whole vocabulary.
        layers: "spread": evenly over the teacher's, the first and the last among them; or their indices, increasing, counted
            from 0.
        init: "teacher", or "random": fresh weights as the config says (set a seed first).
        dtype: of the student's floating point weights. None: float32, in which they can be trained, or float64 as the teacher.
        **config_overrides: further settings of the config, e.g. hidden_size=256. With init="teacher" only those that leave all
            shapes as they are.
    Returns: a model in the teacher's training mode, on its device, all weights trainable.
    Raises: UsageError, a setting is unknown or out of range, or the teacher's weights do not fit it.
    """
    if init not in ("teacher", "random"):
        raise UsageError(f"init={init!r} is unknown: use 'teacher' or 'random'.")
    check_weights(teacher)
    vocab_map = getattr(vocab, "vocab_map", vocab)
    if vocab_map is not None and not isinstance(vocab_map, VocabMap):
        raise UsageError(f"vocab must be what VocabShrinker.shrink returns (or its vocab_map), not {type(vocab).__name__}.")
    config, chosen = _student_config(teacher.config, num_layers, layers, init, config_overrides)
    if init == "random" and vocab_map is not None:
        update_config_ids(config, vocab_map, table_rows=teacher.get_input_embeddings().weight.shape[0])
    student = _of_config(type(teacher), config, config_overrides)
    stacks = _stacks(teacher, student, chosen)
    if not isinstance(layers, str) and not stacks and any(before != after for before, after in chosen):
        raise UsageError(f"The layers of {type(teacher).__name__} share their weights: give num_layers instead of layers.")
    _match_ties(teacher, student, _sources(teacher, student, stacks))
    if getattr(teacher, "generation_config", None) is not None:
        student.generation_config = copy.deepcopy(teacher.generation_config)
        if init == "random" and vocab_map is not None:
            update_config_ids(student.generation_config, vocab_map, table_rows=teacher.get_input_embeddings().weight.shape[0])
    if init == "teacher":
        _copy_weights(teacher, student, stacks, config_overrides)
    elif teacher.dtype.is_floating_point:
        student.to(teacher.dtype)
    student.to(teacher.device)
    if init == "teacher" and vocab_map is not None:
        student = resize_model(student, vocab_map)
    # In half precision an optimizer's small steps are rounded away.
    student.to(torch.promote_types(student.dtype, torch.float32) if dtype is None else dtype)
    student.config.dtype = student.dtype
    return student.train(teacher.training)


def spread_layers(num_layers: int, teacher_layers: int) -> list[int]:
    """`num_layers` of the indices 0 to teacher_layers - 1, evenly spread, first and last included; for one layer the first.

    >>> spread_layers(4, 12)
    [0, 4, 7, 11]
    """
    if num_layers == 1:
        return [0]
    # Rounded half up in whole numbers, so that no platform rounds another way.
    last, gaps = teacher_layers - 1, num_layers - 1
    return [(2 * i * last + gaps) // (2 * gaps) for i in range(num_layers)]


def _layer_counts(config: Any) -> dict[str, int]:
    """The settings under their own names, not the aliases, that say how many layers there are."""
    return {name: vars(config)[name] for name in _LAYER_COUNTS if isinstance(vars(config).get(name), int)}


def _student_config(
    teacher_config: Any, num_layers: int | None, layers: str | Sequence[int], init: str, overrides: dict[str, Any]
) -> tuple[Any, dict[tuple[int, int], list[int]]]:
    """The student's config, and for each (teacher's, student's) number of layers which layers are taken."""
    config = copy.deepcopy(teacher_config)
    config._name_or_path = ""  # the student is not what the teacher's name stands for
    owner = getattr(config, "text_config", None) or config
    counts = _layer_counts(owner)
    known = {name for name in vars(owner) if not name.startswith("_")} | set(owner.attribute_map or {})
    overrides = {(owner.attribute_map or {}).get(name, name): value for name, value in overrides.items()}
    for name in overrides:
        if name not in known:
            raise UsageError(f"The config of {type(teacher_config).__name__} has no setting '{name}'. {nearest(name, known)}")

    explicit = None
    if not isinstance(layers, str):
        explicit = [int(index) for index in layers]
        if not explicit or any(b <= a for a, b in zip(explicit, explicit[1:], strict=False)):
            raise UsageError(f"layers={explicit} must be increasing layer numbers, each given once.")
        if num_layers is not None and num_layers != len(explicit):
            raise UsageError(f"layers names {len(explicit)} layers, but num_layers={num_layers}: leave num_layers out.")
        num_layers = len(explicit)
        if init == "random":
            raise UsageError("layers chooses teacher layers to copy, so it goes with init='teacher' only.")
    elif layers != "spread":
        raise UsageError(f"layers={layers!r} is unknown: use 'spread' or a list of layer numbers.")
    if num_layers is not None and (isinstance(num_layers, bool) or not isinstance(num_layers, int) or num_layers < 1):
        raise UsageError(f"num_layers={num_layers!r} is not a number of layers: use 1 or more.")
    if num_layers is not None and not counts:
        raise UsageError(f"{type(teacher_config).__name__} does not say how many layers it has: leave num_layers out.")

    chosen: dict[tuple[int, int], list[int]] = {}
    for name, before in counts.items():
        after = overrides.pop(name, before if num_layers is None else num_layers)
        if init == "teacher" and after > before:
            raise UsageError(f"{name}={after} is more than the teacher's {before} layers: use fewer, or init='random'.")
        if explicit is not None and after == len(explicit):
            if explicit[-1] >= before or explicit[0] < 0:
                raise UsageError(f"layers={explicit}: the teacher has the layers 0 to {before - 1} ({name}={before}).")
            chosen[before, after] = explicit
        elif after <= before:
            chosen[before, after] = spread_layers(after, before)
        setattr(owner, name, after)
    for name, value in list(vars(owner).items()):
        # One entry per layer, e.g. layer_types: the chosen layers' entries.
        if not isinstance(value, (list, tuple)) or name in overrides or not _PER_LAYER.search(name):
            continue
        for (before, after), indices in chosen.items():
            if len(value) == before and before != after:
                setattr(owner, name, type(value)(value[i] for i in indices))
                break
    for name, value in overrides.items():
        setattr(owner, name, value)
    return config, chosen


def _stacks(teacher: nn.Module, student: nn.Module, chosen: dict[tuple[int, int], list[int]]) -> dict[str, list[int]]:
    """Path of each list of layers that is shorter in the student -> the teacher's layers that are taken."""
    lengths = {path: len(module) for path, module in teacher.named_modules() if isinstance(module, nn.ModuleList)}
    stacks = {}
    for path, module in student.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) != lengths.get(path, len(module)):
            if (lengths[path], len(module)) in chosen:
                stacks[path] = chosen[lengths[path], len(module)]
    return stacks


def _sources(teacher: nn.Module, student: nn.Module, stacks: dict[str, list[int]]) -> dict[str, str]:
    """Name of each tensor of the student -> name of the teacher's it is copied from."""
    available = teacher.state_dict().keys()
    sources = {}
    for name in student.state_dict():
        source = name
        for path, indices in stacks.items():
            if name.startswith(f"{path}."):
                index, _, rest = name[len(path) + 1 :].partition(".")
                source = f"{path}.{indices[int(index)]}.{rest}"
        # T5 keeps the position biases of all layers in its first one, which may not be among the chosen.
        sources[name] = source if source in available or name not in available else name
    return sources


def check_student_settings(
    teacher_config: Any,
    model_class: Any,
    num_layers: int | None = None,
    layers: str | Sequence[int] = "spread",
    init: str = "teacher",
    **config_overrides: Any,
) -> None:
    """What `build_student` would refuse, found without any weights.

    Args:
        model_class: an Auto class that makes the teacher from its config. The others as of `build_student`.
    Raises: UsageError, as `build_student`.
    """
    config, chosen = _student_config(teacher_config, num_layers, layers, init, config_overrides)
    with torch.device("meta"):
        teacher = model_class.from_config(teacher_config, trust_remote_code=trust_remote_code())
        student = _of_config(type(teacher), config, config_overrides)
    if init == "teacher":
        stacks = _stacks(teacher, student, chosen)
        _check_fit(teacher, student, _sources(teacher, student, stacks), stacks, config_overrides)


def _of_config(model_class: Any, config: Any, overrides: dict[str, Any]) -> Any:
    """A model with fresh weights. Raises: UsageError, it cannot be built with the settings that were asked for."""
    try:
        return model_class(config)
    except Exception as error:
        if not overrides:
            raise
        settings = ", ".join(f"{name}={value!r}" for name, value in overrides.items())
        raise UsageError(f"{model_class.__name__} cannot be built with {settings}: {error}") from error


def _copy_weights(teacher: Any, student: Any, stacks: dict[str, list[int]], overrides: dict[str, Any]) -> None:
    sources = _sources(teacher, student, stacks)
    _check_fit(teacher, student, sources, stacks, overrides)
    theirs = teacher.state_dict()
    for name, tensor in [*student.named_parameters(), *student.named_buffers()]:
        if name in sources:  # some teachers keep a few weights in float32 among others
            tensor.data = tensor.data.to(theirs[sources[name]].dtype)
    student.load_state_dict({name: theirs[source] for name, source in sources.items()}, strict=True)


def _check_fit(
    teacher: Any, student: Any, sources: dict[str, str], stacks: dict[str, list[int]], overrides: dict[str, Any]
) -> None:
    """Raises: UsageError, the teacher's weights do not fit the student."""
    theirs, own = teacher.state_dict(), student.state_dict()
    settings = ", ".join(f"{name}={value!r}" for name, value in overrides.items()) or "these layers"
    for name, source in sources.items():
        if source not in theirs:
            raise UsageError(f"The teacher has no weights for {name}, which {settings} asks for: use init='random'.")
        if own[name].shape != theirs[source].shape:
            raise UsageError(
                f"With {settings} {name} is {list(own[name].shape)}, but {list(theirs[source].shape)} in the teacher: "
                "they do not fit. Use init='random'."
            )
    left_out = tuple(
        f"{path}.{index}."
        for path, indices in stacks.items()
        for index in range(len(teacher.get_submodule(path)))
        if index not in indices
    )
    for name in theirs.keys() - set(sources.values()):
        if not name.startswith(left_out):
            raise UsageError(f"With {settings} the student has no place for the teacher's {name}: use init='random'.")


def _match_ties(teacher: nn.Module, student: nn.Module, sources: dict[str, str]) -> None:
    """Gives the student the teacher's ties. A config may say otherwise: mT5 reports ties its untied checkpoints do not have."""
    theirs = {name: id(tensor) for name, tensor in teacher.named_parameters(remove_duplicate=False)}
    tied: dict[int, list[str]] = defaultdict(list)
    for name, tensor in student.named_parameters(remove_duplicate=False):
        tied[id(tensor)].append(name)
    for names in tied.values():
        for name in names[1:]:
            if theirs.get(sources.get(name, name)) != theirs.get(sources.get(names[0], names[0])):
                _replace(student, name, nn.Parameter(student.get_parameter(name).detach().clone()))
    owners: dict[int, nn.Parameter] = {}
    for name, tensor in list(student.named_parameters(remove_duplicate=False)):
        key = theirs.get(sources.get(name, name))
        if key is not None and owners.setdefault(key, tensor) is not tensor:
            _replace(student, name, owners[key])


def _replace(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, parameter)
