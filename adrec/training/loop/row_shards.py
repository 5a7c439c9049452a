"""Tables whose rows are shared out among the processes of a training: each holds a stretch of them and asks for others.

Row-wise sharding as in TorchRec (Ivchenko et al. 2022): a batch's ids go to the processes that hold their rows, the rows come
back, and so do their gradients the other way. What travels is what a batch names; a process holds a `1 / processes` of a table
and of its optimiser's state, where FSDP alone would fetch all of it for each step.
"""

import math
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor


class ShardedEmbedding(nn.Embedding):
    """An embedding of which each process holds ⌈rows / processes⌉ rows, in order. All processes must call it together.

    The weight is a DTensor, so that checkpoints know the whole. DTensors take no sparse gradients: a view of the rows that
    are here does (`held_rows`).
    """

    def __init__(self, whole: nn.Embedding, mesh: DeviceMesh) -> None:
        rows, width = whole.weight.shape
        super().__init__(rows, width, sparse=True, _weight=torch.empty(rows, width, device="meta"))
        self.weight = nn.Parameter(distribute_tensor(whole.weight.detach(), mesh, [Shard(0)]))
        self.each = math.ceil(rows / mesh.size())
        self.first = self.each * mesh.get_local_rank()
        self.group = mesh.get_group()

    def forward(self, input: Tensor) -> Tensor:
        """(N,) int64, this process's own → (N, width)."""
        codes, place = torch.unique(input, return_inverse=True)  # in order, so by process
        wanted = torch.bincount(codes // self.each, minlength=dist.get_world_size(self.group))
        asked = torch.empty_like(wanted)
        dist.all_to_all_single(asked, wanted, group=self.group)
        to, of = wanted.tolist(), asked.tolist()
        theirs = codes.new_empty(sum(of))
        dist.all_to_all_single(theirs, codes, of, to, group=self.group)
        rows = nn.functional.embedding(theirs - self.first, held_rows(self.weight), sparse=True)
        return all_to_all_single_autograd(rows, to, of, self.group)[place]


def tables_by_rows(module: nn.Module) -> dict[str, Tensor]:
    """Name → the weights (rows, width) of the embeddings of `module` whose gradients are rows alone (`sparse`)."""
    found = {}
    for name, part in module.named_modules():
        if isinstance(part, nn.Embedding) and part.sparse and part.weight.requires_grad:
            found[f"{name}.weight" if name else "weight"] = part.weight
    return found


def held_rows(table: Tensor) -> Tensor:
    """The rows of a table's weights that this process holds, and that take their gradients: all, but where it is sharded."""
    if not isinstance(table, DTensor):
        return table
    here = local_part(table.detach())
    held: Tensor | None = getattr(table, "held", None)
    if held is None or held.data_ptr() != here.data_ptr():  # the first time, or after a move to another device
        held = here.requires_grad_()
        table.held = held  # type: ignore[attr-defined]
    return held


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, a view: all, but where it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_tables(module: nn.Module, device: str) -> set[nn.Parameter]:
    """Put each of its `tables_by_rows` over all processes, in place; their new weights."""
    names = [name.rpartition(".")[0] for name in tables_by_rows(module)]
    if not names:
        return set()
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for name in names:
        module.set_submodule(name, ShardedEmbedding(cast(nn.Embedding, module.get_submodule(name)), mesh))
    return {cast(nn.Parameter, table) for table in tables_by_rows(module).values()}
