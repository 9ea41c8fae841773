"""A folder worth pushing, a Hub to push it to, and a Hub's client that waits for nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import vocab_helpers
from hub_server import Hub, serving

from hf_glmd import VocabShrinker

TOKEN = "hf_writer"


def point_client_at(hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str | None = TOKEN) -> None:
    """For code in this process; the client reads its settings on import. `environment` is for other processes."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr("hf_glmd.hub.push.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", os.devnull)
    if token is None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    else:
        monkeypatch.setenv("HF_TOKEN", token)


def environment(hub: Hub, home: Path, token: str | None = TOKEN, **more: str) -> dict[str, str]:
    """Of a process that knows no other Hub, and whose cache is empty."""
    names = ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    given = {"HF_TOKEN": token} if token else {}
    return {**kept, **given, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home), **more}


def shrunk_folder(folder: Path, **settings: Any) -> Path:
    """A BERT with fewer words, as `hf-glmd shrink` leaves it."""
    model = vocab_helpers.tiny_model("bert")
    vocab = VocabShrinker(vocab_helpers.generic_tokenizer()).count(vocab_helpers.texts(80)).shrink(size=150, **settings)
    vocab.resize(model).save_pretrained(folder)
    vocab.save_pretrained(folder)
    return folder


__all__ = ["TOKEN", "Hub", "environment", "point_client_at", "serving", "shrunk_folder"]
