"""llama.cpp's C interface by ctypes: the functions called here, from whichever package carries the library.

    xllamacpp          one extension module with all of llama.cpp inside, llama.h's functions exported; wheels for Linux
                       on x86_64 and aarch64. Its Python side is not imported.
    llama-cpp-python   compiled where it is installed, and taken where there is no xllamacpp.

A structure's layout belongs to a version of llama.h and the library cannot be asked for it: read with another one,
nothing fails and flags are wrong. The defaults the library fills in are therefore compared with the layout before
anything else is called. Left out: what is not called here; the quantizer, which llama_quantize.py calls.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Mapping
from ctypes import POINTER, Structure, c_bool, c_byte, c_char_p, c_float, c_int, c_int8, c_int32, c_int64
from ctypes import c_size_t as size
from ctypes import c_uint32 as uint
from ctypes import c_void_p as ptr
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from soloist.kernels.errors import MissingExtraError, ResourceError

PACKAGE = "xllamacpp" if sys.platform == "linux" else "llama_cpp"  # what the extra `gguf` brings here
_FILES = {
    "xllamacpp": ("xllamacpp.abi3.so",),
    "llama_cpp": ("lib/libllama.so", "lib/libllama.dylib", "lib/llama.dll"),
}
# behind a structure: a newer one may be longer; what the library fills in there goes back to it as it is
_ROOM = (c_byte * 256, "room")
_AGAIN = "install the version that Soloist knows: pip install --force-reinstall 'soloist[gguf]'"


def _structure(name: str, *groups: tuple[Any, str]) -> Any:
    """A C structure: its fields in order, in groups of one type."""
    fields = []
    for kind, names in groups:
        for field in names.split():
            fields.append((field, kind))
    return type(name, (Structure,), {"_fields_": fields})


def _context_params(*, moe_cache: bool) -> Any:
    """llama_context_params, which gained `moe_cache_size` shortly before b11549."""
    return _structure(
        "ContextParams",
        (uint, "n_ctx n_batch n_ubatch n_seq_max n_rs_seq n_outputs_max n_outputs_max_per_seq"),
        (c_int32, "n_threads n_threads_batch"),
        (c_int, "ctx_type rope_scaling_type pooling_type attention_type flash_attn_type"),
        (c_float, "rope_freq_base rope_freq_scale yarn_ext_factor yarn_attn_factor yarn_beta_fast yarn_beta_slow"),
        (uint, "yarn_orig_ctx"),
        (c_float, "defrag_thold"),
        (ptr, "cb_eval cb_eval_user_data"),
        (c_int, "type_k type_v"),
        (size, "moe_cache_size" if moe_cache else ""),
        (ptr, "abort_callback abort_callback_data"),
        (c_bool, "embeddings offload_kqv no_perf op_offload swa_full kv_unified"),
        (ptr, "samplers"),
        (size, "n_samplers"),
        (ptr, "ctx_other"),
        _ROOM,
    )


_ModelParams = _structure(
    "ModelParams",
    (ptr, "devices tensor_buft_overrides"),
    (c_int32, "n_gpu_layers"),
    (c_int, "split_mode load_mode lazy_mode"),
    (c_int32, "main_gpu"),
    (ptr, "tensor_split progress_callback progress_callback_user_data kv_overrides"),
    (c_bool, "vocab_only check_tensors use_extra_bufts no_host no_alloc load_mtp"),
    _ROOM,
)
_Batch = _structure(
    "Batch",
    (c_int32, "n_tokens"),
    (POINTER(c_int32), "token"),
    (POINTER(c_float), "embd"),
    (POINTER(c_int32), "pos n_seq_id"),
    (POINTER(POINTER(c_int32)), "seq_id"),
    (POINTER(c_int8), "logits"),
)
_TokenData = _structure("TokenData", (c_int32, "id"), (c_float, "logit p"))
_TokenDataArray = _structure(
    "TokenDataArray", (POINTER(_TokenData), "data"), (size, "size"), (c_int64, "selected"), (c_bool, "sorted")
)
_LogCallback: Any = ctypes.CFUNCTYPE(None, c_int, c_char_p, ptr)
# what the library must fill in: enough fields of each structure that one moved field shows
_CONTEXT_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_outputs_max_per_seq": 1,
    "flash_attn_type": -1,
    "yarn_beta_slow": -1.0,
    "type_k": 1,
    "embeddings": False,
    "offload_kqv": True,
    "no_perf": True,
    "op_offload": True,
    "swa_full": True,
    "kv_unified": False,
    "n_samplers": 0,
}
_MODEL_DEFAULTS = {
    "n_gpu_layers": -1,
    "split_mode": 1,
    "load_mode": -1,
    "lazy_mode": 1,
    "vocab_only": False,
    "check_tensors": False,
    "use_extra_bufts": True,
    "no_host": False,
    "load_mtp": False,
}
_FUNCTIONS: Mapping[str, tuple[Any, ...]] = {  # name -> what it returns, what it takes
    "llama_backend_init": (None,),
    "llama_model_load_from_file": (ptr, c_char_p, _ModelParams),
    "llama_model_free": (None, ptr),
    "llama_model_get_vocab": (ptr, ptr),
    "llama_model_meta_val_str": (c_int32, ptr, c_char_p, c_char_p, size),
    "llama_model_n_embd": (c_int32, ptr),
    "llama_free": (None, ptr),
    "llama_get_memory": (ptr, ptr),
    "llama_memory_clear": (None, ptr, c_bool),
    "llama_memory_seq_rm": (c_bool, ptr, c_int32, c_int32, c_int32),
    "llama_memory_seq_cp": (None, ptr, c_int32, c_int32, c_int32, c_int32),
    "llama_batch_init": (_Batch, c_int32, c_int32, c_int32),
    "llama_batch_free": (None, _Batch),
    "llama_decode": (c_int32, ptr, _Batch),
    "llama_get_logits_ith": (POINTER(c_float), ptr, c_int32),
    "llama_get_embeddings_ith": (POINTER(c_float), ptr, c_int32),
    "llama_set_embeddings": (None, ptr, c_bool),
    "llama_vocab_n_tokens": (c_int32, ptr),
    "llama_vocab_bos": (c_int32, ptr),
    "llama_vocab_eos": (c_int32, ptr),
    "llama_vocab_is_eog": (c_bool, ptr, c_int32),
    "llama_vocab_get_attr": (c_int, ptr, c_int32),
    "llama_tokenize": (c_int32, ptr, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool),
    "llama_token_to_piece": (c_int32, ptr, c_int32, c_char_p, c_int32, c_int32, c_bool),
    "llama_sampler_init_grammar": (ptr, ptr, c_char_p, c_char_p),
    "llama_sampler_apply": (None, ptr, POINTER(_TokenDataArray)),
    "llama_sampler_accept": (None, ptr, c_int32),
    "llama_sampler_free": (None, ptr),
    "llama_log_set": (None, _LogCallback, ptr),
}
_DEFAULTS = ("llama_model_default_params", "llama_context_default_params")
# llama.cpp says on stderr what it loads unless it is given this; it keeps the pointer, so the object must stay
_SILENT = _LogCallback(lambda level, text, data: None)


def library_file() -> Path:
    """The library that is installed, found without importing its package. Raises MissingExtraError."""
    for package, names in _FILES.items():
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for name in names:
                if (Path(folder) / name).is_file():
                    return Path(folder) / name
    raise MissingExtraError(PACKAGE, "gguf")


@cache
def llama() -> SimpleNamespace:
    """The functions and types of the installed library, by llama.h's names, the silent log set.

    Raises:
        MissingExtraError: no library is installed.
        ResourceError: one is whose functions or layout are others than these.
    """
    file = library_file()
    try:
        library = ctypes.CDLL(str(file))
    except OSError as error:
        raise ResourceError(f"{file}: the library cannot be loaded ({error}); {_AGAIN}") from error
    names = bind(library, file)
    names.llama_log_set(_SILENT, None)
    names.llama_backend_init()
    return names


def bind(library: Any, file: Path) -> SimpleNamespace:
    """The functions of an open library with their types, after its layout was checked. Raises ResourceError."""
    missing = [name for name in (*_FUNCTIONS, *_DEFAULTS, "llama_init_from_model") if not hasattr(library, name)]
    if missing:
        raise ResourceError(f"{file}: has no {', '.join(missing)}; {_AGAIN}")
    layouts = [_context_params(moe_cache=True), _context_params(moe_cache=False)]
    model = fitting([_ModelParams], library.llama_model_default_params, _MODEL_DEFAULTS)
    context = fitting(layouts, library.llama_context_default_params, _CONTEXT_DEFAULTS)
    if model is None or context is None:
        raise ResourceError(f"{file}: its llama.h is of another version; {_AGAIN}")
    names = SimpleNamespace(
        llama_token_data=_TokenData,
        llama_token_data_array=_TokenDataArray,
        LLAMA_TOKEN_ATTR_CONTROL=1 << 3,
        LLAMA_TOKEN_ATTR_USER_DEFINED=1 << 4,
    )
    typed = {
        **_FUNCTIONS,
        "llama_model_default_params": (model,),
        "llama_context_default_params": (context,),
        "llama_init_from_model": (ptr, ptr, context),
    }
    for name, (returned, *taken) in typed.items():
        function = getattr(library, name)
        function.restype, function.argtypes = returned, taken
        setattr(names, name, function)
    return names


def fitting(layouts: list[Any], fill: Any, defaults: Mapping[str, Any]) -> Any:
    """The first layout in which what `fill()` returns has the `defaults`, or None."""
    for layout in layouts:
        fill.restype, fill.argtypes = layout, []
        params = fill()
        if all(getattr(params, name) == value for name, value in defaults.items()):
            return layout
    return None
