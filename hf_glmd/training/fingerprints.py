"""What tells one teacher from another, and what one fingerprint has that another has not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hf_glmd.errors import UsageError


def teacher_fingerprint(model: nn.Module) -> str:
    """sha256 of a model's class, configuration and weights: of every value, whatever the device and the file it came from.

    The same weights in a wider dtype, up to fp32, are the same teacher. A gigabyte takes about a second. Attached adapters count.

    Raises: UsageError, the weights are sharded over processes.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    digest = hashlib.sha256(json.dumps(_lasting(model.config.to_dict()), sort_keys=True, default=str).encode())
    digest.update(type(model).__name__.encode())
    seen: set[tuple[Any, ...]] = set()
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if not isinstance(tensor, Tensor):
            continue
        if hasattr(tensor, "ds_id") or hasattr(tensor, "full_tensor"):
            raise UsageError(
                f"'{name}' is sharded over processes, so no process can read all of it. Take teacher_fingerprint before the "
                "model is prepared, and pass it as fingerprint={'teacher': ...}."
            )
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if place in seen and tensor.numel():
            continue  # tied
        seen.add(place)
        for part in tensor.detach().reshape(-1).split(2**24):
            part = part.cpu()
            digest.update((part.float() if part.is_floating_point() and part.itemsize < 4 else part).numpy())
    return digest.hexdigest()


_PASSING = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "_commit_hash"}


def _lasting(config: Any) -> Any:
    """A configuration without what says where it came from and how it was loaded."""
    if isinstance(config, dict):
        lasting = {str(name): value for name, value in config.items() if name not in _PASSING}
        return {name: _lasting(value) for name, value in lasting.items() if "attn_impl" not in name}
    return config


def differences(there: Mapping[str, Any], here: Mapping[str, Any], only_given: bool = False) -> list[str]:
    """What the two have otherwise, in words; of what `here` does not name nothing is said if `only_given`."""
    there, here = (_flat(json.loads(json.dumps(values, default=str))) for values in (there, here))
    names = list(here) if only_given else list(there | here)
    return [
        f"{name} is {_short(there, name)} there and {_short(here, name)} here"
        for name in names
        if (name in there, there.get(name)) != (name in here, here.get(name))
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _short(values: Mapping[str, Any], name: str) -> str:
    text = repr(values[name]) if name in values else "not recorded"
    return text if len(text) <= 40 else f"{text[:16]}..."
