"""Makes a random checkpoint of each model family that GGUF takes, with all that is special about it switched on.

Weights are values float16 holds exactly, so that an F16 file loses none; norms and biases are random too, because
ones and zeros would hide that they were forgotten. Attention is sharp and the text of the tests long, so that a wrong
rotation, window or layer without rotation shows in the logits.
"""

from __future__ import annotations

import contextlib
import io
import json
import runpy
from pathlib import Path

make_tokenizer = runpy.run_path(str(Path(__file__).with_name("tiny_student.py")))["make_tokenizer"]

_SHARED = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16384,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "rms_norm_eps": 1e-5,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
_GEMMA = {
    "full_attention": {"rope_type": "linear", "rope_theta": 100000.0, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
}

# name -> (config class, its settings, the cut of its tokenizer)
VARIANTS = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}, "smollm"),
    "llama-biased": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}, "gpt-2"),
    "llama3": ("LlamaConfig", {"rope_parameters": _LLAMA3, "tie_word_embeddings": True}, "llama-bpe"),
    "llama-wide": (  # as wide as a K-quant's block
        "LlamaConfig",
        {"hidden_size": 256, "intermediate_size": 256, "num_key_value_heads": 4},
        "smollm",
    ),
    "llama-linear": ("LlamaConfig", {"rope_parameters": _LINEAR}, "smollm"),
    "smollm3": ("SmolLM3Config", {"num_hidden_layers": 5, "tie_word_embeddings": True}, "llama-bpe"),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}, "qwen2"),
    "qwen3": ("Qwen3Config", {"head_dim": 32, "tie_word_embeddings": False}, "qwen2"),
    "qwen3-yarn": ("Qwen3Config", {"head_dim": 32, "rope_parameters": _YARN}, "qwen2"),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 16,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": _GEMMA,
            "final_logit_softcapping": 30.0,
        },
        "gpt-2",
    ),
}


def build(folder: Path, variant: str) -> Path:
    """Write the Hugging Face folder of a variant."""
    import torch
    import transformers

    name, settings, pre = VARIANTS[variant]
    size = make_tokenizer(folder, pre)
    config = getattr(transformers, name)(**{**_SHARED, **settings}, vocab_size=size)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "norm" in key:  # steps of 1 / 1024: exact in float32 when 1 is added, too
                middle = 0.0 if name.startswith("Gemma") else 1.0
                weight.copy_(middle + torch.randint(-400, 400, weight.shape) / 1024)
            else:
                weight.copy_(
                    (torch.randn_like(weight) * (0.5 if "bias" in key else 1.6 / config.hidden_size**0.5))
                    .half()
                    .float()
                )
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar for one small file
        model.save_pretrained(str(folder))
    return folder


def build_pieces(folder: Path) -> Path:
    """A Gemma whose tokenizer is of SentencePiece's kind: pieces of three texts, every byte, two added tokens."""
    build(folder, "gemma3")
    content = pieces()
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    settings = {
        "tokenizer_class": "TokenizersBackend",
        "backend": "tokenizers",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    _resize(folder, len(content["model"]["vocab"]) + 3)
    config["vocab_size"] = len(content["model"]["vocab"]) + 3  # rows that no token has
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _resize(folder: Path, rows: int) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(str(folder / "model.safetensors"))
    table = torch.randn(rows, weights["model.norm.weight"].numel(), generator=torch.Generator().manual_seed(1))
    weights["model.embed_tokens.weight"] = (table * 0.2).half().float()
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})


def added(number: int, token: str, special: bool) -> dict:
    """An entry of tokenizer.json's list of added tokens."""
    sides = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": token, **sides, "special": special}


def pieces(prepend: bool = False) -> dict:
    """tokenizer.json as transformers makes it of a SentencePiece model: merges are all splits of each piece."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    spaced = (
        "▁the ▁of ▁a in er on re he nd at ▁an ▁th en ▁in it or is al ar ▁is ing ▁and ion ▁to ▁What ▁sum ▁def ▁return "
        "▁▁ ▁▁▁ ▁▁▁▁ ▁▁▁▁▁▁▁▁ 00 -- == ▁x ▁= ▁+ aa aaa aaaa ▁пр ив ет 你好 café"
    )
    words = [*spaced.split(), "\n\n", "\n\n\n"]
    alphabet = [chr(code) for code in range(33, 127)] + list("▁\n\téпривет你好")
    tokens = dict.fromkeys([*special, *(f"<0x{byte:02X}>" for byte in range(256)), *alphabet])
    steps: dict[str, None] = {}
    for word in words:
        steps |= dict.fromkeys(word[:end] for end in range(2, len(word) + 1))
    vocab = {token: number for number, token in enumerate(tokens | steps)}
    merges = []
    for token in steps:
        for at in range(1, len(token)):
            if token[:at] in vocab and token[at:] in vocab:
                merges.append([token[:at], token[at:]])
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    first = [{"type": "Prepend", "prepend": "▁"}] if prepend else []
    begin = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(vocab[token], token, token in special) for token in [*special, "\n\n", "▁▁"]],
        "normalizer": {"type": "Sequence", "normalizers": [*first, replace]} if prepend else replace,
        "pre_tokenizer": None if prepend else split,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, begin, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [vocab["<bos>"]], "tokens": ["<bos>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prepend else []),
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }
