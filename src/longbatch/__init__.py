"""Request-level batches over 10,000-event user histories: raw logs to deduplicated Arrow files to PyTorch.

    import longbatch as lb

    lb.build("spec.toml", "dataset")
    dataset = lb.RequestDataset("dataset", batch_size=64, history_length=10_000, shuffle=True)
    for batch in lb.make_dataloader(dataset, num_workers=2):
        ...

Everything an application needs is an attribute of this module. Each is imported when it is first used (PEP 562), so
building a dataset does not import PyTorch, and reading one does not import Spark.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "BuildSpec",
    "DataError",
    "DatasetError",
    "LocalEngine",
    "LongbatchError",
    "MachineError",
    "ModelConfig",
    "RemoteRoot",
    "RequestBatch",
    "RequestDataset",
    "RequestLoader",
    "Scorer",
    "SourceError",
    "SparkEngine",
    "SpecError",
    "StochasticLength",
    "TrainConfig",
    "__version__",
    "append",
    "build",
    "evaluate",
    "expand",
    "forget",
    "load_model",
    "load_preset",
    "load_spec",
    "make_dataloader",
    "measure",
    "open_dataset",
    "open_store",
    "simulate",
    "train",
    "vacuum",
    "validate",
]

# the module that defines each name; those of `api` call the jobs and the trainer with plain arguments
_MODULES = {
    "longbatch.api.data": ("append", "build", "forget", "vacuum", "validate"),
    "longbatch.api.storage": ("expand", "measure", "simulate"),
    "longbatch.api.training": ("evaluate", "load_model", "train"),
    "longbatch.jobs.engines.local": ("LocalEngine",),
    "longbatch.jobs.engines.spark": ("SparkEngine",),
    "longbatch.jobs.presets": ("load_preset",),
    "longbatch.loaders": ("RequestBatch", "RequestDataset", "RequestLoader", "StochasticLength", "make_dataloader"),
    "longbatch.schemas.errors": (
        *("DataError", "DatasetError", "LongbatchError", "MachineError", "SourceError", "SpecError"),
    ),
    "longbatch.schemas.format.dataset": ("open_dataset",),
    "longbatch.schemas.format.remote_cache": ("RemoteRoot",),
    "longbatch.schemas.spec.build_spec": ("BuildSpec", "load_spec"),
    "longbatch.schemas.storage.open_store": ("open_store",),
    "longbatch.trainer.config": ("ModelConfig", "TrainConfig"),
    "longbatch.trainer.serving": ("Scorer",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

if TYPE_CHECKING:  # what type checkers and editors see
    from longbatch.api.data import append, build, forget, vacuum, validate
    from longbatch.api.storage import expand, measure, simulate
    from longbatch.api.training import evaluate, load_model, train
    from longbatch.jobs.engines.local import LocalEngine
    from longbatch.jobs.engines.spark import SparkEngine
    from longbatch.jobs.presets import load_preset
    from longbatch.loaders import RequestBatch, RequestDataset, RequestLoader, StochasticLength, make_dataloader
    from longbatch.schemas.errors import DataError, DatasetError, LongbatchError, MachineError, SourceError, SpecError
    from longbatch.schemas.format.dataset import open_dataset
    from longbatch.schemas.format.remote_cache import RemoteRoot
    from longbatch.schemas.spec.build_spec import BuildSpec, load_spec
    from longbatch.schemas.storage.open_store import open_store
    from longbatch.trainer.config import ModelConfig, TrainConfig
    from longbatch.trainer.serving import Scorer
else:  # hidden from type checkers: to them a misspelled name would be an `object` rather than an error

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used."""
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'longbatch' has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(_MODULE_OF[name]), name)
        return value


def __dir__() -> list[str]:
    """The public names, whether they are imported already or not."""
    return sorted({*globals(), *__all__})
