"""The tokenizer inside a GGUF file as llama.cpp reads it: the vocabulary is loaded, the weights are not."""

from __future__ import annotations

import ctypes
from pathlib import Path

from soloist.targets.llama_library import llama


class Vocabulary:
    """What llama.cpp makes of a text and of tokens; `add` asks for what the file says is added in front."""

    def __init__(self, file: Path) -> None:
        self.lib = llama()
        params = self.lib.llama_model_default_params()
        params.vocab_only = True
        self.model = self.lib.llama_model_load_from_file(str(file).encode(), params)
        assert self.model, f"llama.cpp cannot load {file}"
        self.vocab = self.lib.llama_model_get_vocab(self.model)

    def tokenize(self, text: str, *, add: bool = False) -> list[int]:
        data = text.encode()
        room = (ctypes.c_int32 * (len(data) + 8))()
        count = self.lib.llama_tokenize(self.vocab, data, len(data), room, len(room), add, True)
        assert count >= 0, repr(text)
        return list(room[:count])

    def text(self, tokens: list[int]) -> str:
        data = b""
        for token in tokens:
            piece = ctypes.create_string_buffer(256)
            size = self.lib.llama_token_to_piece(self.vocab, token, piece, len(piece), 0, True)
            data += piece.raw[: max(size, 0)]
        return data.decode("utf-8", "replace")

    def metadata(self, key: str) -> str:
        value = ctypes.create_string_buffer(1 << 17)
        assert self.lib.llama_model_meta_val_str(self.model, key.encode(), value, len(value)) >= 0, key
        return value.value.decode()

    def ends(self) -> tuple[int, int]:
        """The tokens that begin and end a text."""
        return self.lib.llama_vocab_bos(self.vocab), self.lib.llama_vocab_eos(self.vocab)

    def reads_grammar(self, grammar: str) -> bool:
        sampler = self.lib.llama_sampler_init_grammar(self.vocab, grammar.encode(), b"root")
        if sampler:
            self.lib.llama_sampler_free(sampler)
        return bool(sampler)

    def close(self) -> None:
        self.lib.llama_model_free(self.model)
