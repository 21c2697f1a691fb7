"""Makes a Llama student small enough for tests: two layers, its own byte-level BPE.

It learns five short chats by heart in a second or two, because next to random weights every token is a toss-up and
"the same top token" means nothing.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from pathlib import Path

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATS = [
    ("What is 12 + 30?", "The sum of 12 and 30 is 42."),
    ("Solve x + 5 = 20.", "x is 15."),
    ("How many legs do three cats and two birds have?", "They have 16 legs."),
    ("Write add.", "def add(a, b):\n    return a + b\n"),
    ("Say hello.", "naïve café 你好 Привет 🙂"),
]
STEPS = 120


def make_tokenizer(folder: Path, pre: str = "smollm") -> int:
    """Write a byte-level BPE and a chat template into the folder; returns the size of the vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from soloist.targets.pretokenizers import by_name

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*itertools.chain.from_iterable(CHATS)] * 20, trainer)
    content = json.loads(tokenizer.to_str())
    content["pre_tokenizer"] = by_name(pre).spec
    content["model"]["ignore_merges"] = by_name(pre).ignore_merges
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    settings = {
        "tokenizer_class": "TokenizersBackend",
        "backend": "tokenizers",
        "model_max_length": 2048,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return tokenizer.get_vocab_size()


def make(folder: Path, pre: str = "smollm", seed: int = 0) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    size = make_tokenizer(folder, pre)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        rope_theta=10000.0,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.08,
    )
    model = LlamaForCausalLM(config)
    _train(model, folder)
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar for one small file
        model.save_pretrained(str(folder))
    return folder


def _train(model, folder: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    chats = [[{"role": "user", "content": a}, {"role": "assistant", "content": b}] for a, b in CHATS]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right", return_token_type_ids=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(STEPS):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.3, f"the tiny student has not learned its chats (loss {loss.item():.2f})"
