"""The two networks of a run, new, or the model of a checkpoint that is kept."""

from dataclasses import replace
from pathlib import Path

import torch

from specdec.checkpoint import load_model
from specdec.kinds import build_prophet
from specdec.model import ByteLlama
from specdec.prophet import Prophet
from train.config import TrainConfig
from train.memory import (
    require_memory_for_batch,
    require_memory_for_model,
    require_memory_for_prophet,
)


def networks(config: TrainConfig, device: torch.device) -> tuple[ByteLlama, Prophet]:
    """On the CPU, to be trained on `device`.

    ValueError, by flag, for what neither fits there nor into the context of a frozen model.
    """
    shape = config.shape
    model, prophet_config = None, shape.prophet
    if config.frozen:
        model = load_model(Path(config.frozen))
        block = model.config.block
        prophet_config = replace(prophet_config, block=block, model_hidden_size=block.hidden_size)
    else:
        require_memory_for_model(shape.model, device)
    model_config = model.config if model else shape.model
    if max(config.windows) > model_config.max_position_embeddings:
        raise ValueError(
            f"--windows: {max(config.windows)} exceeds the model's context of "
            f"{model_config.max_position_embeddings}"
        )
    require_memory_for_prophet(prophet_config, device)
    rows = max(config.rows_of(length) * length for length in config.windows)
    require_memory_for_batch(rows, model_config, device)
    if model is None:
        model = ByteLlama(model_config)
    return model, build_prophet(prophet_config, model_config.max_position_embeddings)
