"""Stands for `tensorrt` where it is not, from parsing a graph to running an engine, as far as our scripts call it.

Its names and arguments are held to `tensorrt_api.json`, which was read from the wheels of 10.3, 10.13, 10.16 and 11.4.
It computes with ONNX Runtime, on addresses: `Host` is a GPU's memory that is this process's, and knows its bounds. An
engine is a few lines of JSON. What it refuses on its own: a network that is not strongly typed, shapes outside the
profile, an input without shape or address, addresses that are too small.
"""

from __future__ import annotations

import ctypes
import json
from enum import Enum, IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np

API = json.loads(Path(__file__).with_name("tensorrt_api.json").read_text())
_TYPES = {"tensor(int64)": np.int64, "tensor(float)": np.float32, "tensor(float16)": np.float16}


class Host:
    """Memory in this process under the interface of `run_engine.Gpu`."""

    stream = 7

    def __init__(self):
        self.blocks, self.moved, self.closed = {}, 0, False

    def allocate(self, size):
        block = ctypes.create_string_buffer(max(size, 1))
        self.blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def room(self, address):
        """Bytes from an address to the end of its block."""
        ends = [start + len(block) for start, block in self.blocks.items() if start <= address < start + len(block)]
        assert ends, "an address outside the memory"
        return ends[0] - address

    def upload(self, address, values):
        assert values.nbytes <= self.room(address)
        ctypes.memmove(address, values.ctypes.data, values.nbytes)

    def download(self, values, address):
        assert values.nbytes <= self.room(address)
        ctypes.memmove(values.ctypes.data, address, values.nbytes)

    def move(self, target, source, size):
        assert size <= min(self.room(target), self.room(source))
        apart = target + size <= source or source + size <= target
        assert apart, "copies on a GPU must not overlap"
        ctypes.memmove(target, source, size)
        self.moved += 1

    def wait(self):
        pass

    def close(self):
        self.closed = True


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3


class ILogger:
    WARNING = Severity.WARNING

    def __init__(self):
        self.born = True

    def log(self, severity, message):
        raise NotImplementedError


class ParserError:
    def __init__(self, node, operator, code, reason):
        self._said = node, operator, code, reason

    def node_name(self):
        return self._said[0]

    def node_operator(self):
        return self._said[1]

    def code(self):
        return self._said[2]

    def desc(self):
        return self._said[3]


class INetworkDefinition:
    def __init__(self, flags):
        self.flags, self.graph, self.names = flags, None, []

    num_layers = 12

    @property
    def num_inputs(self):
        return len(self.names)

    def get_input(self, index):
        return SimpleNamespace(name=self.names[index])


class IOptimizationProfile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, input, min, opt, max):
        assert all(0 <= a <= b <= c for a, b, c in zip(min, opt, max, strict=True)), input
        self.shapes[input] = [tuple(min), tuple(opt), tuple(max)]


class ITimingCache:
    def __init__(self, content):
        self.content = content

    def serialize(self):
        return self.content + b"+"


class IBuilderConfig:
    builder_optimization_level = 3
    num_compute_capabilities = 0

    def __init__(self):
        self.profiles, self.flags, self.pools, self.cache, self.capabilities = [], [], {}, None, {}

    def add_optimization_profile(self, profile):
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def set_memory_pool_limit(self, pool, pool_size):
        self.pools[pool.name] = pool_size

    def set_flag(self, flag):
        self.flags.append(flag.name)

    def create_timing_cache(self, serialized_timing_cache):
        return ITimingCache(bytes(serialized_timing_cache))

    def set_timing_cache(self, cache, ignore_mismatch):
        self.cache = cache
        return ignore_mismatch or not cache.content.startswith(b"another device")

    def get_timing_cache(self):
        return self.cache

    def set_compute_capability(self, compute_capability, index):
        self.capabilities[index] = compute_capability.name
        return index < self.num_compute_capabilities


class OnnxParser:
    REFUSALS = ()

    def __init__(self, network, logger):
        assert logger.born, "a logger whose base was not initialized crashes"
        self.network, self.refused = network, []

    def parse_from_file(self, model):
        import onnx

        graph = onnx.load(model, load_external_data=False).graph
        self.network.graph, self.network.names = model, [value.name for value in graph.input]
        self.refused = [ParserError(*refusal) for refusal in self.REFUSALS]
        return not self.refused

    @property
    def num_errors(self):
        return len(self.refused)

    def get_error(self, index):
        return self.refused[index]


class Builder:
    ENGINES = True
    STRONGLY_TYPED = True

    def __init__(self, logger):
        self.logger = logger

    def create_network(self, flags=0):
        assert flags == (1 << 1 if self.STRONGLY_TYPED else 0), "the network's flags are those of another version"
        return INetworkDefinition(flags)

    def create_builder_config(self):
        return IBuilderConfig()

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network(self, network, config):
        if not self.ENGINES:
            self.logger.log(Severity.ERROR, "Error Code 10: no tactic for   this block")
            return None
        kept = {"level": config.builder_optimization_level, "capabilities": list(config.capabilities.values())}
        built = {"graph": network.graph, "profiles": config.profiles, "flags": config.flags, "pools": config.pools}
        return json.dumps({**built, **kept}).encode()


class Refitter:
    def __init__(self, engine, logger):
        self.engine = engine

    def refit_cuda_engine(self):
        return "REFIT" in self.engine.built["flags"]


class OnnxParserRefitter:
    num_errors = 0

    def __init__(self, refitter, logger):
        self.refitter = refitter

    def refit_from_file(self, model):
        self.refitter.engine.built["graph"] = model
        return True

    def get_error(self, index):
        raise IndexError(index)


class ISerializationConfig:
    excluded = True

    def clear_flag(self, flag):
        assert flag.name == "EXCLUDE_WEIGHTS"
        self.excluded = False


class Runtime:
    HOST = None

    def __init__(self, logger):
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine):
        return ICudaEngine(json.loads(serialized_engine), self.HOST) if serialized_engine.startswith(b"{") else None


class ICudaEngine:
    def __init__(self, built, host):
        self.built, self.host = built, host

    def create_execution_context(self, strategy=0):
        return IExecutionContext(self.built, self.host)

    def create_serialization_config(self):
        return ISerializationConfig()

    def serialize_with_config(self, arg0):
        assert not arg0.excluded
        return json.dumps({**self.built, "refitted": True}).encode()


class IExecutionContext:
    def __init__(self, built, host):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(built["graph"], options, providers=providers)
        self.profiles, self.host = built["profiles"], host
        self.profile, self.shapes, self.addresses, self.runs = None, {}, {}, []

    def set_optimization_profile_async(self, profile_index, stream_handle):
        assert stream_handle == Host.stream
        self.profile = self.profiles[profile_index] if profile_index < len(self.profiles) else None
        return self.profile is not None

    def set_input_shape(self, name, shape):
        least, _, most = self.profile[name]
        self.shapes[name] = tuple(shape)
        return len(shape) == len(least) and all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name, memory):
        self.addresses[name] = memory
        return memory > 0

    def execute_async_v3(self, stream_handle):
        assert stream_handle == Host.stream
        feeds = {}
        for value in self.session.get_inputs():
            feeds[value.name] = np.empty(self.shapes[value.name], _TYPES[value.type])
            self.host.download(feeds[value.name], self.addresses[value.name])
        results = self.session.run(None, feeds)
        for value, result in zip(self.session.get_outputs(), results, strict=True):
            self.host.upload(self.addresses[value.name], np.ascontiguousarray(result))
        return True


def library(version, name="tensorrt", host=None):
    """A module of this name and version; its classes are its own, so that a test may change them."""
    module = ModuleType(name)
    module.__version__ = version
    for kind in (
        Builder,
        INetworkDefinition,
        OnnxParser,
        ParserError,
        IBuilderConfig,
        IOptimizationProfile,
        ITimingCache,
        Runtime,
        ICudaEngine,
        ISerializationConfig,
        Refitter,
        OnnxParserRefitter,
        IExecutionContext,
        ILogger,
    ):
        setattr(module, kind.__name__, type(kind.__name__, (kind,), {}))
    module.Builder.STRONGLY_TYPED = version.startswith("10.")
    module.Runtime.HOST = host
    module.Logger = lambda severity: SimpleNamespace(born=True, severity=severity, log=lambda *message: None)
    module.Logger.WARNING = Severity.WARNING
    for enum in ("NetworkDefinitionCreationFlag", "BuilderFlag", "MemoryPoolType", "SerializationFlag"):
        setattr(module, enum, IntEnum(enum, list(API["api"][enum])))
    if name == "tensorrt_rtx":
        module.ComputeCapability = Enum("ComputeCapability", list(API["only_tensorrt_rtx"]["ComputeCapability"]))
    return module
