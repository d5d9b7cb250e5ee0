"""`python -m train.samples --checkpoint DIR --data FILE... --out FILE`: a model's own text as data.

A prophet is judged on what its model writes, which is not quite what people wrote.  Stretches of
the data are continued by the model, and prompts and continuations become a file to train a prophet
on.  Resumes behind what the file already holds: each stretch depends on the seed and its number.
"""

import os
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from specdec.build import build_decoder, decoding
from specdec.checkpoint import load_model
from specdec.decoder import Job, generate
from specdec.sampling import SamplingParams
from train.arguments import Parser, path_text, within
from train.data import Corpus
from train.data_files import DataError, DataFiles
from train.limits import BYTES, COUNT, RANGES, WEIGHT
from train.source import Packing

SLOTS = 32


def write_samples(
    checkpoint: Path,
    corpus: Corpus,
    out: Path,
    *,
    total: int,
    prompt_bytes: int,
    new_bytes: int,
    temperature: float,
    seed: int,
) -> int:
    """Appends until the file has `total` bytes or more; returns its size."""
    model = load_model(checkpoint)
    stretch = prompt_bytes + new_bytes
    if stretch > model.config.max_position_embeddings:
        raise ValueError(
            f"prompt_bytes + new_bytes: {stretch} exceed the model's context of "
            f"{model.config.max_position_embeddings}"
        )
    decoder = build_decoder(
        model,
        None,
        slots=SLOTS,
        context=stretch,
        device=torch.device("cpu"),
        dtype=torch.bfloat16,
    )
    group = SLOTS * stretch
    done = out.stat().st_size // group if out.exists() else 0
    # what a killed run wrote of a group is written again
    with decoding(decoder), out.open("r+b" if out.exists() else "wb") as file:
        file.truncate(done * group)
        file.seek(done * group)
        groups = -(-total // group)
        for number in tqdm(range(done, groups), initial=done, total=groups, unit="group"):
            prompts = corpus.batch(seed, number, SLOTS, prompt_bytes)
            # no end-of-document byte: what the model writes behind it is data like any other
            jobs = [
                Job(
                    bytes(prompt.tolist()),
                    new_bytes,
                    SamplingParams(temperature=temperature),
                    seed=number * SLOTS + index,
                )
                for index, prompt in enumerate(prompts)
            ]
            for job, output in zip(jobs, generate(decoder, jobs), strict=True):
                file.write(job.prompt + output.output)
            file.flush()
            os.fsync(file.fileno())
        return file.tell()


def main(arguments: list[str]) -> int:
    parser = Parser(prog="python -m train.samples", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument(
        "--data", nargs="+", required=True, type=path_text, help="where prompts are taken from"
    )
    parser.add_argument(
        "--mix",
        nargs="+",
        type=within(float, WEIGHT),
        default=[],
        help="weight of each data path, a source then",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bytes", type=within(int, BYTES), default=1_000_000)
    parser.add_argument("--prompt-bytes", type=within(int, COUNT), default=64)
    parser.add_argument("--new-bytes", type=within(int, COUNT), default=448)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=within(int, RANGES["seed"]), default=0)
    options = parser.parse_args(arguments)
    if options.mix and len(options.mix) != len(options.data):
        parser.error(f"--mix: {len(options.mix)} weights for {len(options.data)} data paths")
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        corpus = Corpus.open(
            tuple((path,) for path in options.data) if options.mix else (tuple(options.data),),
            tuple(options.mix),
            (),
            Packing(separator=None, by_file=False, validation_fraction=0.05),
            options.prompt_bytes,
            options.out.parent / "data",
            found=DataFiles(own=(options.out, options.out.parent / "data")),
        )
        size = write_samples(
            options.checkpoint,
            corpus,
            options.out,
            total=options.bytes,
            prompt_bytes=options.prompt_bytes,
            new_bytes=options.new_bytes,
            temperature=options.temperature,
            seed=options.seed,
        )
    except (DataError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
