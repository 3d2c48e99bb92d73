"""Saved models by their folder: which kind it holds, and the model with its tokenizer, ready to be asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError

from nashpref.llm.decoding.models import FarmaModel, PrefixValueModel
from nashpref.llm.encoding import Encoder
from nashpref.llm.logprobs import check_model
from nashpref.llm.preferences.models import (
    BradleyTerryModel,
    GeneralPreferenceModel,
    PairwisePreferenceModel,
    PreferenceModel,
)

Guiding = BradleyTerryModel | PrefixValueModel | FarmaModel

PREFERENCES: dict[str, type[PreferenceModel]] = {
    kind.__name__: kind for kind in (PairwisePreferenceModel, GeneralPreferenceModel, BradleyTerryModel)
}
REWARDS: dict[str, type[Guiding]] = {
    kind.__name__: kind for kind in (BradleyTerryModel, PrefixValueModel, FarmaModel)
}


class Policy(NamedTuple):
    """A causal language model with its way from texts to tokens."""

    model: Any
    encoder: Encoder


def architecture(folder: str) -> str:
    """The class of the model in a folder, as its config.json names it: a preference, reward or causal one.

    Raises:
        ValueError: no folder, no config.json in it, or a model of another kind.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    path = Path(folder)
    config = path / "config.json"
    if not config.is_file():
        inner = path / "model"
        hint = f"did you mean {inner}?" if (inner / "config.json").is_file() else "name a saved model"
        what = "holds no config.json" if path.is_dir() else "is no folder"
        raise ValueError(f"{folder}: {what}; {hint}")
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        name = str(content["architectures"][0])
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"{config}: names no architecture; save the model with save_pretrained") from None
    if name not in {*PREFERENCES, *REWARDS, *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()}:
        known = ", ".join(PREFERENCES | REWARDS)
        raise ValueError(f"{folder}: holds a {name}; a causal language model or one of {known} is needed")
    return name


def load_preference(folder: str) -> PreferenceModel:
    """The preference model in a folder, on the GPU if there is one; long sequences lose their beginning.

    Raises:
        ValueError: another kind of model, a file that is damaged, or no tokenizer.
    """
    kind = architecture(folder)
    if kind not in PREFERENCES:
        raise ValueError(f"{folder}: holds a {kind}; one of {', '.join(PREFERENCES)} is needed")
    model: PreferenceModel = _load_head(PREFERENCES[kind], folder)
    return model


def load_reward(folder: str) -> Guiding:
    """The model in a folder that gives responses and their beginnings a reward, likewise.

    Raises:
        ValueError: another kind of model, a file that is damaged, or no tokenizer.
    """
    kind = architecture(folder)
    if kind not in REWARDS:
        raise ValueError(
            f"{folder}: holds a {kind}, which has no rewards; one of {', '.join(REWARDS)} is needed"
        )
    model: Guiding = _load_head(REWARDS[kind], folder)
    return model


def load_policy(folder: str) -> Policy:
    """The causal language model in a folder, on the GPU if there is one, and its encoder.

    Raises:
        ValueError: another kind of model, a file that is damaged, or no tokenizer.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    kind = architecture(folder)
    if kind in PREFERENCES | REWARDS:
        raise ValueError(f"{folder}: holds a {kind}; a policy, a causal language model, is needed")
    model = _load(AutoModelForCausalLM, folder, use_safetensors=True)
    check_model(model)
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return Policy(model, Encoder(AutoTokenizer.from_pretrained(folder), room))


def _load_head(kind: Any, folder: str) -> Any:
    model = _load(kind, folder)
    if model.config.max_tokens is None:
        model.config.max_tokens = getattr(model.backbone.config, "max_position_embeddings", None)
    return model


def _load(kind: Any, folder: str, **options: Any) -> Any:
    if not (Path(folder) / "tokenizer_config.json").is_file():
        raise ValueError(f"{folder}: no tokenizer beside the model; add it with tokenizer.save_pretrained")
    try:
        model = kind.from_pretrained(folder, dtype="auto", **options)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ValueError(f"{folder}: not a whole model ({error})") from None
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
