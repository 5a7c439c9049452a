"""Fully sharded data parallel (FSDP2): each process keeps a part of the weights and fetches the others as a layer needs them.

Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", 2020; Zhao et al., "PyTorch FSDP",
2023. With equal seeds the weights equal those of DDP to rounding.
"""

from typing import cast

import pytorch_lightning as pl
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from transformers.modeling_layers import GradientCheckpointingLayer

from adrec.config.training.loop import TrainingConfig
from adrec.training.loop.row_shards import shard_tables


def sharded_strategy(config: TrainingConfig) -> ModelParallelStrategy:
    """What Lightning's Trainer takes as its strategy; checkpoints are one file, as those of unsharded runs.

    FSDP shards over all processes. HSDP (hybrid) shards over those of a machine and copies between machines: weights travel
    over the fast links alone, gradients once over the slow ones. Lightning has no name of its own for the second dimension of
    the mesh: its `tensor_parallel` is the one that HSDP shards over.
    """
    copies, shards = (config.nodes, config.devices) if config.strategy == "hsdp" else (config.processes, 1)
    return ModelParallelStrategy(copies, shards, save_distributed_checkpoint=False)


class ShardableModule(pl.LightningModule):
    """A LightningModule that is sharded where the strategy asks for it: each transformer layer by itself, tables that learn by
    rows over all processes, the rest together.
    """

    def configure_model(self) -> None:
        """Called by Lightning in each process, before the optimiser is made."""
        if self._device_mesh is None or isinstance(self, FSDPModule):
            return
        is_hybrid = self._device_mesh["tensor_parallel"].size() > 1
        mesh = self._device_mesh if is_hybrid else self._device_mesh["data_parallel"]
        tables = shard_tables(self, self._device_mesh.device_type)
        for layer in list(self.modules()):
            if isinstance(layer, GradientCheckpointingLayer):  # what transformers calls the layers of every encoder
                fully_shard(layer, mesh=mesh)
        fully_shard(self, mesh=mesh, ignored_params=tables)
        for step in ("training_step", "validation_step"):
            register_fsdp_forward_method(self, step)


def whole_weights(module: nn.Module, plain: nn.Module) -> nn.Module:
    """`plain`, an unsharded copy of `module`, with its present weights; `module` itself where it is not sharded.

    Every process must call it; the first alone gets the weights.
    """
    if not isinstance(module, FSDPModule):
        return module
    state = get_model_state_dict(cast(nn.Module, module), options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if state:
        plain.load_state_dict(cast(dict[str, Tensor], state))
    return plain
