"""`compile = true`: `torch.compile` for the modules that map rows one by one, such as SwiGLU with its LayerNorm.

Their only dynamic size is the number of rows, so ragged batches do not recompile: each module has one graph, and
others for zero rows and one row. What depends on the ragged structure (tiling, table look-ups, attention) is not
compiled.
"""

from __future__ import annotations

import shutil

from longbatch.schemas.errors import MachineError
from longbatch.trainer.models.request_model import RequestModel

from .devices import device_of

BACKEND = "inductor"
CPU_COMPILERS = ("c++", "g++", "clang++")


def compile_rowwise_modules(model: RequestModel) -> None:
    """Compile the model's row-wise modules, in place, when they first run. Weights and their names do not change.

    Args:
        model: The model on its device.

    Raises:
        MachineError: The model is on a CPU and there is no C++ compiler.
    """
    on_cpu = BACKEND == "inductor" and device_of(model).type == "cpu"
    if on_cpu and not any(map(shutil.which, CPU_COMPILERS)):
        raise MachineError(
            "compile = true requires a C++ compiler on a CPU, none was found; install g++ or remove the key"
        )
    for module in model.rowwise_modules():
        module.compile(dynamic=True, backend=BACKEND)
