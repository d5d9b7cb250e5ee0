"""From settings to a running engine: checkpoint, device, row-invariance check, warm-up, costs."""

import logging
import time

import torch

from server.draft_lengths import LENGTHS
from server.engine import Engine
from server.messages import EngineInfo, Exactness
from server.profiling import measure_costs
from server.settings import Settings
from specdec.build import Kernels, Model, build_decoder, runs_natively, slot_bytes, spare_slots
from specdec.checkpoint import hugging_face_tensors, load_model, load_prophet
from specdec.decoder import Decoder, Job, generate
from specdec.graph_round import GraphRounds
from specdec.invariance import measure_invariance
from specdec.model import ByteLlama
from specdec.native_stack import NativeModel
from specdec.sampling import SamplingParams

logger = logging.getLogger(__name__)

_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
    "int8": torch.int8,
}


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one.  ValueError where what is asked for is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda was asked for, and this torch finds no CUDA device")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device, kernels: Kernels) -> torch.dtype:
    """`auto` is float32 on processors for which neither torch nor the compiled core has anything
    faster, else bfloat16."""
    if name != "auto":
        return _DTYPES[name]
    if device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.bfloat16
    native = runs_natively(kernels, device, torch.bfloat16)
    return torch.bfloat16 if native else torch.float32


def load_engine(settings: Settings) -> Engine:
    """A started engine.  ValueError, naming file or setting, for what cannot be served."""
    began = time.monotonic()
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device, settings.kernels)
    model = load_model(settings.checkpoint)
    prophet_directory = settings.prophet or settings.checkpoint
    prophet = load_prophet(prophet_directory, model_directory=settings.checkpoint)
    if prophet is None and settings.prophet:
        raise ValueError(f"prophet: {settings.prophet} has none: no prophet_config.json lies there")
    longest = model.config.max_position_embeddings
    context = settings.max_context or longest
    if context > longest:
        raise ValueError(f"max_context: {context} exceeds the model's context of {longest}")
    if prophet is None and settings.mode == "speculative":
        raise ValueError(
            f"mode: speculative was asked for, and {settings.checkpoint} has no prophet"
        )
    prophet_config = prophet.config if prophet else None
    each = slot_bytes(model.config, prophet_config, context, device, dtype, settings.kernels)
    spare = spare_slots(settings.kernels, device, dtype)
    slots = _slots(settings, each, spare)
    decoder = build_decoder(
        model,
        prophet,
        slots=slots,
        context=context,
        device=device,
        dtype=dtype,
        kernels=settings.kernels,
        draft_lengths=LENGTHS,
    )
    if isinstance(decoder.model, NativeModel):
        # the core has threads of its own: torch's would spin on their processors after each of
        # its operations, which are small here
        torch.set_num_threads(1)
    invariance = measure_invariance(decoder.model)
    if not invariance.finite:
        name, value = _largest(model)
        raise ValueError(
            f"{settings.checkpoint}: the model's logits overflow in {_name(dtype)}, so there is "
            f"nothing to choose bytes by; the largest value of its tensors is {value:g}, in {name}"
        )
    longest_draft = decoder.drafter.longest if decoder.drafter else 0
    if isinstance(decoder.run_round, GraphRounds):
        decoder.run_round.prepare()
    _warm_up(decoder, min(settings.draft_length, longest_draft))
    longest_lookup = settings.lookup_length if decoder.in_core else 0
    costs = measure_costs(decoder, longest_lookup)
    info = EngineInfo(
        model_name=settings.model_name,
        device=str(device),
        dtype=_name(dtype),
        exactness=Exactness.EXACT if invariance.exact else Exactness.FAST,
        context=context,
        max_batch=slots,
        eos=model.config.eos_token_id,
        longest_draft=longest_draft,
        longest_lookup=longest_lookup if costs else 0,
        parameters=sum(p.numel() for p in model.parameters()),
        prophet_parameters=sum(p.numel() for p in prophet.parameters()) if prophet else 0,
        cache_bytes=(slots + spare) * each,
    )
    logger.info(
        "loaded %s on %s in %s: %.1f M parameters, %d slots of %d bytes, cache %.1f MiB; "
        "rows differ at %d of %d places (%s); %.1f s",
        info.model_name,
        info.device,
        info.dtype,
        info.parameters / 1e6,
        info.max_batch,
        info.context,
        info.cache_bytes / 2**20,
        invariance.differing,
        invariance.places,
        info.exactness,
        time.monotonic() - began,
    )
    engine = Engine(decoder, info, costs, settings.draft_p_min)
    engine.start()
    return engine


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _largest(model: ByteLlama) -> tuple[str, float]:
    """The tensor with the largest value, as it is called in the file."""
    tensors = hugging_face_tensors(model)
    largest = {name: float(tensor.abs().max()) for name, tensor in tensors.items()}
    return max(largest.items(), key=lambda item: item[1])


def _slots(settings: Settings, each: int, spare: int) -> int:
    """How many requests may run at a time, with so many bytes of cache each and for the `spare`."""
    if settings.cache_mib is None:
        return settings.max_batch
    fitting = settings.cache_mib * 2**20 // each - spare
    if fitting < 1:
        needed = -(-each * (1 + spare) // 2**20)
        raise ValueError(f"cache_mib: {settings.cache_mib} MiB hold no slot, one takes {needed}")
    if fitting < settings.max_batch:
        logger.info("%d MiB of cache hold %d slots", settings.cache_mib, fitting)
    return min(fitting, settings.max_batch)


def _warm_up(decoder: Decoder[Model], draft_length: int) -> None:
    """A few rounds of each path, so that the first request meets no first-call cost."""
    room = min(16, decoder.context - 1)
    for draft in {0, draft_length}:
        for temperature in (0.0, 1.0):
            params = SamplingParams(temperature=temperature)
            generate(decoder, [Job(b"\n", room, params, draft_length=draft)])
