"""The model card (README.md) of a checkpoint, from what was recorded and measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from train.demonstration import readable
from train.measurement import Acceptance


@dataclass(frozen=True)
class Domain:
    """Unseen bytes of one kind: bits per byte, acceptance, (temperature, prompt, output)."""

    name: str
    bits: Mapping[str, Any]
    acceptance: Sequence[Acceptance]
    samples: Sequence[tuple[float, bytes, bytes]]


def model_card(
    record: Mapping[str, Any], domains: Sequence[Domain], sums: Mapping[str, str], about_data: str
) -> str:
    config = record["config"]
    shape = config["shape"]
    lines = [
        "# Model card",
        "",
        f"A byte-level Llama of {record['parameters'] / 1e6:.2f} M parameters "
        f"({shape['hidden_size']} wide, {shape['depth']} layers, {shape['heads']} heads, "
        f"{shape['kv_heads']} of them for keys and values, context {shape['context']}) and an "
        f"autoregressive prophet of {record['prophet_parameters'] / 1e6:.2f} M "
        f"({shape['prophet_depth']} layer, {shape['leading_states']} leading states).",
        "",
        "## Training",
        "",
        about_data,
        "",
        f"{record['steps']} steps, {record['bytes_seen'] / 1e6:.1f} MB seen, "
        f"{record['seconds'] / 60:.0f} minutes on {record['device']} ({record['threads']} "
        f"threads), torch {record['torch']}, {config['dtype']} autocast. Every hyperparameter, the "
        "seed and the curve are in training.json.",
        "",
        "## Unseen bytes",
        "",
        "Bits per byte of model and prophet (the prophet's over its drafted places).",
        "",
        "| validation file | model | prophet |",
        "|---|---|---|",
    ]
    lines += [f"| {d.name} | {d.bits.get('model')} | {d.bits.get('prophet')} |" for d in domains]
    lines += [
        "",
        "Mean bytes per round (one pass of the model), and the share of rounds in which the first, "
        "second, … draft was accepted.",
        "",
        "| validation file | γ | temperature | bytes per round | accepted by position |",
        "|---|---|---|---|---|",
    ]
    for domain in domains:
        for item in domain.acceptance:
            shares = " ".join(f"{share:.2f}" for share in item.by_position)
            lines.append(
                f"| {domain.name} | {item.draft_length} | {item.temperature} "
                f"| {item.bytes_per_round:.2f} | {shares} |"
            )
    lines += ["", "## Samples", "", "Prompt, then ⟶, then what the model wrote; not chosen.", ""]
    for domain in domains:
        for temperature, prompt, output in domain.samples:
            text = readable(prompt[-64:]) + "⟶" + readable(output)
            lines += [f"{domain.name}, temperature {temperature}:", "", "````", text, "````", ""]
    lines += ["## Files", ""]
    lines += [f"- `{name}` sha256 {digest}" for name, digest in sums.items()]
    return "\n".join(lines) + "\n"
