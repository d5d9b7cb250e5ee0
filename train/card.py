"""The model card (README.md) of a checkpoint, from what was recorded and measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from train.demonstration import readable
from train.measurement import Acceptance
from train.record import Record, phases


@dataclass(frozen=True)
class Domain:
    """Unseen bytes of one kind: bits per byte, acceptance, (temperature, prompt, output).

    `scored` are the bytes that the bits are of, from the first on; `prompts` and `prompt_bytes`,
    `new_bytes` say how many prompts were continued, how long they are and their outputs.
    """

    name: str
    scored: int
    bits: float
    prompts: int
    prompt_bytes: int
    new_bytes: int
    acceptance: Sequence[Acceptance]
    samples: Sequence[tuple[float, bytes, bytes]]


def model_card(
    record: Record, domains: Sequence[Domain], sums: Mapping[str, str], about_data: str
) -> str:
    lines = [
        "# Model card",
        "",
        _networks(record),
        "",
        "## Training",
        "",
        about_data,
        "",
        *_phases(record),
        "",
        "Every hyperparameter, the seeds and the curve are in training.json.",
        "",
        "## Unseen bytes",
        "",
        "Bits per byte of the model over the first bytes of each file; windows of its whole "
        "context overlap by half, so that all but the first bytes are scored after at least half a "
        "context.",
        "",
        "| file | bytes scored | bits per byte |",
        "|---|---|---|",
    ]
    lines += [f"| {d.name} | {d.scored:,} | {d.bits:.3f} |" for d in domains]
    if any(domain.acceptance for domain in domains):
        prompts = ", ".join(f"{domain.prompts} of {domain.name}" for domain in domains)
        lines += [
            "",
            "Mean bytes per round (one pass of the model) over evenly spread prompts "
            f"({prompts}) of {domains[0].prompt_bytes} bytes, {domains[0].new_bytes} generated for "
            "each, and the share of rounds in which the first, second, … draft was accepted. Left "
            "out: what a greedy output writes after it has begun to repeat itself to its end.",
            "",
            "| bytes of | γ | temperature | bytes per round | accepted by position |",
            "|---|---|---|---|---|",
        ]
    for domain in domains:
        for item in domain.acceptance:
            shares = " ".join(f"{share:.2f}" for share in item.by_position)
            lines.append(
                f"| {domain.name} | {item.draft_length} | {item.temperature} "
                f"| {item.bytes_per_round:.2f} | {shares} |"
            )
    lines += ["", "## Samples", ""]
    lines += ["The first prompt of each file, then ⟶, then what the model wrote; not chosen.", ""]
    for domain in domains:
        for temperature, prompt, output in domain.samples:
            text = readable(prompt[-64:]) + "⟶" + readable(output)
            lines += [f"{domain.name}, temperature {temperature}:", "", "````", text, "````", ""]
    lines += ["## Files", ""]
    lines += [f"- `{name}` sha256 {digest}" for name, digest in sums.items()]
    return "\n".join(lines) + "\n"


def _networks(record: Mapping[str, Any]) -> str:
    shape = record["architecture"]
    text = (
        f"A byte-level Llama of {record['parameters'] / 1e6:.2f} M parameters "
        f"({shape['hidden_size']} wide, {shape['depth']} layers, {shape['heads']} heads, "
        f"{shape['kv_heads']} of them for keys and values, context {shape['context']})"
    )
    if record["config"]["starts"]:
        shape = record["config"]["shape"]
        kind = shape["prophet_kind"]
        what = f"{shape['prophet_depth']} layer, {shape['leading_states']} leading states"
        if kind == "parallel":
            what = "one block over the whole past, then a recurrent cell byte by byte"
        text += f" and a prophet of {record['prophet_parameters'] / 1e6:.2f} M ({kind}: {what})"
    return text + "."


def _phases(record: Record) -> list[str]:
    """One line per run that the weights went through, the frozen model's first."""
    lines = [
        "| trained | steps | MB seen | minutes | windows | prophet's loss | matrices in |",
        "|---|---|---|---|---|---|---|",
    ]
    for phase in phases(record):
        config = phase["config"]
        what = "model and prophet" if config["starts"] else "model"
        loss = config["prophet_loss"] if config["starts"] else "–"
        if config["starts"] and config.get("prophet_reach"):
            loss += ", by reach"
        lines.append(
            f"| {'prophet, model frozen' if config['frozen'] else what} | {phase['steps']} "
            f"| {phase['bytes_seen'] / 1e6:.1f} | {phase['seconds'] / 60:.0f} "
            f"| {', '.join(map(str, config['windows']))} | {loss} | {phase['dtype']} |"
        )
    lines += [
        "",
        f"On {record['processor']} ({record['device']}, {record['threads']} threads, "
        f"{record['processes']} {'process' if record['processes'] == 1 else 'processes'}), "
        f"torch {record['torch']}.",
    ]
    return lines
