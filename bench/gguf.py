"""A checkpoint as a GGUF file, the way llama.cpp reads a Llama.

Knows the names, metadata and order of rows that llama.cpp expects.  The file has no vocabulary: a
token is a byte, and whoever reads the file is to be fed with bytes.  Needs the package `gguf`.
"""

from pathlib import Path

import numpy as np
import torch
from gguf import (
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    get_tensor_name_map,
)
from gguf.quants import quantize
from torch import Tensor

from specdec.checkpoint import hugging_face_tensors
from specdec.config import VOCAB_SIZE
from specdec.model import ByteLlama

TYPES = {
    torch.bfloat16: (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    torch.float16: (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    torch.float32: (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
}


def write_gguf(path: Path, model: ByteLlama, dtype: torch.dtype) -> None:
    """Matrices are stored in `dtype`, one of TYPES, and norms in float32, as llama.cpp wants them.

    A tied head is left out: llama.cpp takes the embedding then.
    """
    config, block = model.config, model.config.block
    kind, file_type = TYPES[dtype]
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[MODEL_ARCH.LLAMA])
    writer.add_file_type(file_type)
    writer.add_vocab_size(VOCAB_SIZE)
    writer.add_tokenizer_model("none")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(block.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(block.intermediate_size)
    writer.add_head_count(block.num_attention_heads)
    writer.add_head_count_kv(block.num_key_value_heads)
    writer.add_key_length(block.head_dim)
    writer.add_value_length(block.head_dim)
    writer.add_rope_dimension_count(block.head_dim)
    writer.add_rope_freq_base(block.rope_theta)
    writer.add_layer_norm_rms_eps(block.rms_norm_eps)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for theirs, tensor in hugging_face_tensors(model).items():
        if theirs.endswith((".q_proj.weight", ".k_proj.weight")):
            tensor = in_pairs(tensor, block.head_dim)
        stored = GGMLQuantizationType.F32 if tensor.ndim == 1 else kind
        array = quantize(np.ascontiguousarray(tensor.float().numpy()), stored)
        name = names.get_name(theirs, try_suffixes=(".weight",))
        assert name is not None, theirs
        writer.add_tensor(name, array, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def in_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """Rows [H·d, D] of queries or keys as llama.cpp turns them.

    Here and in Hugging Face's files a rotation is of row i and row i + d/2 of a head; there it is
    of two rows that lie together.

    >>> in_pairs(torch.arange(8)[:, None], 4).flatten().tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    heads = weight.unflatten(0, (-1, 2, head_dim // 2))
    return heads.transpose(1, 2).reshape(weight.shape)
