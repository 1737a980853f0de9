"""Compiles what an engine launches for an H100 or H200, which needs no such device.

compile_apart() runs a script in a process of its own, where Triton does not interpret: record()
first, then the engine's launches on the CPU (which do nothing), then write_ptx().
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
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
SM_90 = GPUTarget("cuda", 90, 32)
launches: dict = {}


class Recorder:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *args, num_warps=4, num_stages=3, enable_fp_fusion, **constants):
        names = self.kernel.arg_names
        signature, fixed, aligned = {}, dict(constants), []
        for name, value in zip(names, args, strict=False):
            if isinstance(value, torch.Tensor):
                signature[name] = POINTERS[value.dtype]
                value = value.data_ptr()
            elif value == 1:
                fixed[name] = value
            else:
                signature[name] = "i32" if value < 1 << 31 else "i64"
            if value % 16 == 0:
                aligned.append(name)
        signature |= dict.fromkeys(fixed, "constexpr")
        options = {
            "num_warps": num_warps,
            "num_stages": num_stages,
            "enable_fp_fusion": enable_fp_fusion,
        }
        key = self.kernel.__name__, str(signature), str(fixed), str(aligned)
        launches[key] = self.kernel, signature, fixed, aligned, options


def record(kernels: ModuleType, names: list[str]) -> None:
    for name in names:
        setattr(kernels, name, Recorder(getattr(kernels, name)))


def source_of(kernel, signature: dict, fixed: dict, aligned: list[str]) -> ASTSource:
    places = {name: (kernel.arg_names.index(name),) for name in kernel.arg_names}
    return ASTSource(
        kernel,
        {name: signature[name] for name in kernel.arg_names},
        {places[name]: value for name, value in fixed.items()},
        {places[name]: [["tt.divisibility", 16]] for name in aligned},
    )


def write_ptx() -> None:
    """[[kernel, text], ...] as JSON."""
    compiled = []
    for kernel, *how, options in launches.values():
        binary = triton.compile(source_of(kernel, *how), target=SM_90, options=options)
        compiled.append([kernel.__name__, binary.asm["ptx"]])
    json.dump(compiled, sys.stdout)


def compile_apart(script: str, folder: Path) -> list[tuple[str, str]]:
    """What the script writes; the compiler's cache goes to the folder."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    env |= {"TRITON_CACHE_DIR": str(folder), "PYTHONPATH": os.pathsep.join(filter(None, path))}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [(name, text) for name, text in json.loads(done.stdout)]


def check(kernels: list[tuple[str, str]]) -> None:
    """No float sum, no fused multiply-add, nothing approximate, no subnormal flushed."""
    allowed = (
        r"mul(\.rn)?\.f32|(div|sqrt)\.rn\.f32|cvt\.rn\.f32\.[su](16|32|64)"
        r"|cvt\.rni(\.ftz)?\.s32\.f32|cvt\.rzi\.s64\.f32|(min|max|abs)\.f32|setp\.\w+\.f32|selp\.f32"
    )
    for name, text in kernels:
        operations = set(
            re.findall(r"^\s*(?:@\S+\s+)?([a-z][\w.:]*\bf(?:16|32|64)\b[\w.]*)", text, re.MULTILINE)
        )
        strange = {o for o in operations if not re.fullmatch(allowed, o)}
        assert not strange, f"{name}: {strange}"
