from __future__ import annotations

from training_data import small_model

from longbatch.trainer.config import TrainConfig
from longbatch.trainer.optimizers import make_optimizers


def test_every_parameter_has_one_optimizer_and_large_tables_the_sparse_one() -> None:
    model = small_model()
    dense, sparse = make_optimizers(model, TrainConfig())
    parameters = [p for optimizer in (dense, sparse) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, parameters)) == sorted(map(id, model.parameters()))
    assert all(p.shape[0] == 5000 for p in sparse.param_groups[0]["params"])
    decayed = {g["weight_decay"]: len(g["params"]) for g in dense.param_groups if g["weight_decay"]}
    assert decayed == {0.01: sum(p.ndim > 1 for n, p in model.named_parameters() if "tables" not in n)}
