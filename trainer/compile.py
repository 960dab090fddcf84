"""The compile switch: `torch.compile` of what maps rows one by one, such as SwiGLU with its LayerNorm.

Their only dynamic size is the number of rows, so ragged batches do not compile anew: each module has one graph, and others for
no row and for one. What depends on the ragged structure (tilings, look-ups, attention) stays as it is.
"""

from __future__ import annotations

import shutil

from longbatch.schemas.errors import MachineError
from longbatch.trainer.models.request_model import RequestModel

from .predictions import device_of

BACKEND = "inductor"


def compile_rows(model: RequestModel) -> None:
    """Compile the model's modules of rows, in place, when they first run; weights and their names stay.

    Raises MachineError where the CPU's code would need a C++ compiler that is not there.
    """
    if (
        BACKEND == "inductor"
        and device_of(model).type == "cpu"
        and not any(map(shutil.which, ("c++", "g++", "clang++")))
    ):
        raise MachineError("compile = true needs a C++ compiler on a CPU; install g++, or train without it")
    for module in model.row_modules():
        module.compile(dynamic=True, backend=BACKEND)
