"""The kernels compile for a GPU on a machine that has none: what the interpreter accepts, the compiler might not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

COMPILE = """
import importlib, itertools, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

target = GPUTarget("cuda", 90, 32)


def build(kernel, types, constants):
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else types[n] for n in names}
    attributes = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n].startswith("*")}
    made = triton.compile(ASTSource(kernel, signature, constants, attributes), target=target)
    assert "ptx" in made.asm
    return made.asm["ptx"]


box = importlib.import_module("xtoolkit.kernels.box_loss")
mse = importlib.import_module("xtoolkit.kernels.masked_mse")
integers = ["n", "stride_p", "stride_p4", "stride_t", "stride_t4", "stride_valid", "programs"]
for dtype, has_valid, packed, alone, wide in itertools.product(("fp32", "bf16"), (0, 1), (0, 1), (0, 1), ("i32", "i64")):
    common = {"pred": "*" + dtype, "target": "*fp32", "valid": "*u8", "eps": "fp32"} | dict.fromkeys(integers, wide)
    flags = {"HAS_VALID": bool(has_valid), "PACKED_P": bool(packed), "PACKED_T": bool(packed)}
    forward = common | {"l1_out": "*fp32", "giou_out": "*fp32", "count_out": "*fp32" if alone else "*i32"}
    ptx = build(box._forward_kernel, forward, flags | {"ALONE": bool(alone), "STEPS": 4, "BLOCK": 1024})
    if packed and dtype == "fp32":
        assert "ld.global.v4.b32" in ptx, "a packed box is read as one vector of 16 bytes"
    ptx = build(box._backward_kernel, common | {"count": "*fp32", "g_l1": "*fp32", "g_giou": "*fp32", "gradient": "*" + dtype},
                flags | {"BLOCK": 512})
    assert "st.global.v4.b32" in ptx or dtype == "bf16", "and its gradient written as one"
build(box._finish_kernel, dict.fromkeys(["l1_parts", "giou_parts", "l1_out", "giou_out", "count_out"], "*fp32")
      | {"count_parts": "*i32", "programs": "i32"}, {"PROGRAMS": 1024})

strides = ["pb", "pn", "qb", "qn", "mb", "mn"]
for dtype, wide in itertools.product(("fp32", "bf16", "fp16"), ("i32", "i64")):
    common = {"pred": "*" + dtype, "target": "*" + dtype, "mask": "*u8", "rows": wide, "tokens": "i32"}
    common |= dict.fromkeys(strides, wide)
    sizes = {"pd": 1, "qd": 1, "WIDTH": 768, "ROWS": mse.ROWS, "COLUMNS": mse.COLUMNS}
    build(mse._forward_kernel, common | {"sums": "*fp32", "counts": "*i32"}, sizes | {"STEPS": 2})
    build(mse._backward_kernel, common | {"elements": "*fp32", "g_loss": "*fp32", "gradient": "*" + dtype}, sizes)
build(mse._finish_kernel, {"sums": "*fp32", "counts": "*i32", "loss": "*fp32", "elements": "*fp32", "programs": "i32",
                           "width": "i32"}, {"PROGRAMS": 2048})
print("compiled")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
def test_for_an_nvidia_gpu(tmp_path):
    # Without the interpreter, which conftest.py switches on, and without a cache from before.
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.stdout.strip() == "compiled", done.stdout + done.stderr[-3000:]
