"""Compiles what an engine launches for an H100 or H200, which needs no such device.

Runs in a process of its own, where Triton does not interpret: record() first, then the engine's
launches on the CPU (which do nothing), then write_ptx().
"""

import json
import sys
from types import ModuleType

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

POINTERS = {
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float32: "*fp32",
}
launches: dict = {}


class Recorder:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *args, num_warps=4, num_stages=3, enable_fp_fusion, **constants):
        names = self.kernel.arg_names
        signature, fixed = {}, dict(constants)
        for name, value in zip(names, args, strict=False):
            if isinstance(value, torch.Tensor):
                signature[name] = POINTERS[value.dtype]
            elif value == 1:
                fixed[name] = value
            else:
                signature[name] = "i32" if value < 1 << 31 else "i64"
        signature |= dict.fromkeys(fixed, "constexpr")
        options = {
            "num_warps": num_warps,
            "num_stages": num_stages,
            "enable_fp_fusion": enable_fp_fusion,
        }
        key = self.kernel.__name__, str(signature), str(fixed)
        launches[key] = self.kernel, signature, fixed, options


def record(kernels: ModuleType, names: list[str]) -> None:
    for name in names:
        setattr(kernels, name, Recorder(getattr(kernels, name)))


def write_ptx() -> None:
    """[[kernel, text], ...] as JSON."""
    compiled = []
    for kernel, signature, fixed, options in launches.values():
        places = {(kernel.arg_names.index(name),): value for name, value in fixed.items()}
        source = ASTSource(kernel, {n: signature[n] for n in kernel.arg_names}, places)
        binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        compiled.append([kernel.__name__, binary.asm["ptx"]])
    json.dump(compiled, sys.stdout)
