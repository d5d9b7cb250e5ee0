"""What continues prompts greedily: this server's engine, transformers, llama.cpp.

Each is given a checkpoint and decodes a batch of prompts of one length in this process, on as many
threads as torch has.  They go on over the end-of-document byte.  Knows no clock and no process.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bench.auto import Receiver
from server.loading import load_engine
from server.messages import Mode, Submission
from server.settings import Settings
from specdec.attention import LONGEST_SPAN
from specdec.build import build_decoder
from specdec.checkpoint import load_model
from specdec.config import VOCAB_SIZE
from specdec.sampling import SamplingParams


class Runner(Protocol):
    def generate(self, prompts: list[bytes], tokens: int) -> list[bytes]:
        """So many bytes after each prompt."""

    def logits(self, text: bytes) -> Tensor:
        """What it says after each byte of a text, float32 [T, 256]."""


class Ours:
    """The engine as the server loads it, asked without HTTP.

    With as many slots as prompts; one that still holds a prompt spares it to who asks for it again.
    """

    def __init__(
        self, checkpoint: Path, prophet: Path | None, mode: Mode, batch: int, dtype: torch.dtype
    ) -> None:
        self.checkpoint, self.mode, self.dtype = checkpoint, mode, dtype
        settings = Settings.model_validate(
            {
                "checkpoint": checkpoint,
                "prophet": prophet,
                "device": "cpu",
                "dtype": str(dtype).removeprefix("torch."),
                "max_batch": batch,
            }
        )
        self.engine = load_engine(settings)
        longest = self.engine.info.longest_draft
        self.lookup_length = self.engine.info.longest_lookup if mode is Mode.AUTO else 0
        self.draft_length = {
            Mode.BASE: 0,
            Mode.SPECULATIVE: min(settings.draft_length, longest),
            Mode.AUTO: longest,
        }[mode]

    def generate(self, prompts: list[bytes], tokens: int) -> list[bytes]:
        greedy, receivers = SamplingParams(temperature=0.0), [Receiver() for _ in prompts]
        for index, (prompt, receiver) in enumerate(zip(prompts, receivers, strict=True)):
            self.engine.submit(
                Submission(
                    f"{index}",
                    prompt,
                    tokens,
                    greedy,
                    0,
                    self.mode,
                    self.draft_length,
                    eos=None,
                    lookup_length=self.lookup_length,
                ),
                receiver,
            )
        for receiver in receivers:
            receiver.done.wait()
        return [receiver.output for receiver in receivers]

    def logits(self, text: bytes) -> Tensor:
        decoder = build_decoder(
            load_model(self.checkpoint), None, slots=1, device=torch.device("cpu"), dtype=self.dtype
        )
        parts = []
        for place in torch.arange(len(text)).split(LONGEST_SPAN):
            tokens = torch.tensor([text[i] for i in place])
            slot, rows = torch.zeros_like(place), len(place)
            parts.append(decoder.model.forward(tokens, slot, place, place, ((1, rows),))[1])
        return torch.cat(parts)


class Transformers:
    """`generate` of transformers.

    `compiled`: with a static cache and a forward compiled by inductor; weights are not frozen into
    it, for inductor would freeze that cache too.
    """

    def __init__(self, checkpoint: Path, dtype: torch.dtype, *, compiled: bool = False) -> None:
        from transformers import AutoModelForCausalLM, CompileConfig

        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).eval()
        self.model.generation_config.eos_token_id = None
        self.extra: dict[str, object] = {}
        if compiled:
            config = CompileConfig(mode="default")
            # by itself it compiles for accelerators alone
            config._compile_all_devices = True  # type: ignore[assignment]
            self.extra = {"cache_implementation": "static", "compile_config": config}

    @torch.inference_mode()
    def generate(self, prompts: list[bytes], tokens: int) -> list[bytes]:
        ids = torch.tensor([list(prompt) for prompt in prompts])
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=tokens,
            pad_token_id=0,
            **self.extra,
        )
        return [bytes(row) for row in out[:, ids.shape[1] :].tolist()]

    @torch.inference_mode()
    def logits(self, text: bytes) -> Tensor:
        logits: Tensor = self.model(torch.tensor([list(text)])).logits
        return logits[0].float()


class LlamaCpp:
    """llama.cpp through the plain C functions that llama-cpp-python gives, its greedy sampler
    included: nothing per byte in Python but the call.

    `path` is a GGUF file; a sequence holds `context` bytes at most.
    """

    def __init__(self, path: Path, batch: int, context: int) -> None:
        import llama_cpp

        self.library = llama_cpp
        logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        assert model, f"llama.cpp cannot load {path}"
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = context * batch, batch
        params.n_batch = context
        params.n_threads = params.n_threads_batch = torch.get_num_threads()
        self.context = llama_cpp.llama_init_from_model(model, params)
        assert self.context, "llama.cpp has no room for the cache"
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(context, 0, 1)
        self.greedy = llama_cpp.llama_sampler_init_greedy()

    def generate(self, prompts: list[bytes], tokens: int) -> list[bytes]:
        self.library.llama_memory_clear(self.memory, False)
        outputs = []
        for sequence, prompt in enumerate(prompts):
            ends = [False] * (len(prompt) - 1) + [True]
            self._decode(prompt, range(len(prompt)), [sequence] * len(prompt), ends)
            outputs.append(bytearray([self._choice(-1)]))
        rows, wanted = range(len(prompts)), [True] * len(prompts)
        for _ in range(tokens - 1):
            last = [output[-1] for output in outputs]
            places = [len(p) + len(o) - 1 for p, o in zip(prompts, outputs, strict=True)]
            self._decode(last, places, rows, wanted)
            for row in rows:
                outputs[row].append(self._choice(row))
        return [bytes(output) for output in outputs]

    def logits(self, text: bytes) -> Tensor:
        self.library.llama_memory_clear(self.memory, False)
        size = len(text)
        self._decode(text, range(size), [0] * size, [True] * size)
        values = self.library.llama_get_logits(self.context)
        return torch.from_numpy(np.ctypeslib.as_array(values, (size, VOCAB_SIZE)).copy())

    def _decode(
        self,
        tokens: Sequence[int],
        places: Sequence[int],
        sequences: Sequence[int],
        wanted: Sequence[bool],
    ) -> None:
        batch = self.batch
        batch.n_tokens = len(tokens)
        for row, token in enumerate(tokens):
            batch.token[row], batch.pos[row] = token, places[row]
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequences[row]
            batch.logits[row] = wanted[row]
        status = self.library.llama_decode(self.context, batch)
        assert not status, f"llama_decode gave {status}"

    def _choice(self, row: int) -> int:
        """The likeliest byte by the logits of a row of the last batch."""
        choice: int = self.library.llama_sampler_sample(self.greedy, self.context, row)
        return choice
