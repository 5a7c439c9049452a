"""Tables of which a step names few rows learn by row-wise AdaGrad, in one optimiser with AdamW for all else.

A row that no example of a step names is neither read nor moved, so that a step costs what its batch names, whatever the size
of the table; and a row has one number of state in place of two vectors. Duchi, Hazan and Singer 2011 (AdaGrad); one
sum of squares a row as in DLRM (Naumov et al. 2019) and TorchRec.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from adrec.training.loop.row_shards import held_rows, local_part, tables_by_rows
from adrec.training.loop.sharding import ShardableModule

RATE = 10.0
"""Times the learning rate of all else: AdamW, too, moves a row that is seldom named by so much when it is."""


class AdamWByRows(AdamW):
    """AdamW; groups with `by_rows` are tables, and learn by row-wise AdaGrad.

    Of a row with gradient g: s += mean(g²), w -= rate (decay w + g / (√s + eps)), where it is named; s starts at 0.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all groups."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        whole = self.param_groups
        self.param_groups = [group for group in whole if not group.get("by_rows")]
        try:
            super().step()
        finally:
            self.param_groups = whole
        for group in whole:
            for table in group["params"] if group.get("by_rows") else ():
                self._move(table, group)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Those of sharded tables too."""
        super().zero_grad(set_to_none)
        for group in self.param_groups:
            for table in group["params"] if group.get("by_rows") else ():
                held_rows(table).grad = None

    def _move(self, table: nn.Parameter, group: dict[str, Any]) -> None:
        held = held_rows(table)
        if held.grad is None and table.grad is None:
            return
        state = self.state[table]
        if not state:
            state["step"] = torch.zeros(())  # AdamW asks every state for it
            state["squares"] = torch.zeros_like(table[:, 0])  # (rows,), sharded as the table is
        if held.grad is None or not held.grad.is_sparse:
            return  # before a sharded state is read in, torch makes one by a step of zeros
        gradient = held.grad.coalesce()
        rows, values = gradient.indices()[0], gradient.values()  # (N,), (N, width)
        state["step"] += 1
        sums = local_part(state["squares"])
        squares = sums[rows] + values.square().mean(-1)
        sums.index_copy_(0, rows, squares)
        before = held[rows]
        towards = group["weight_decay"] * before + values / (squares.sqrt() + group["eps"])[:, None]
        held.index_copy_(0, rows, before - group["lr"] * towards)


class LearnsByRows(ShardableModule):
    """A LightningModule that may hold tables whose gradients are rows alone.

    Processes that each hold the whole table exchange the rows that they named, once a step; where it is sharded, the gradients
    have come to the one that holds the row. Such a gradient is not clipped: it is divided by its own size. Call `find_tables`
    when the network stands.
    """

    def configure_model(self) -> None:
        """Sharding puts others in the tables' place."""
        super().configure_model()
        self.find_tables()

    def find_tables(self) -> None:
        """Note which they are; DDP is told to leave them alone."""
        self._tables = tables_by_rows(self)
        if self._tables:
            self._ddp_params_and_buffers_to_ignore = list(self._tables)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Take in the rows that other processes named."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return
        for table in self._tables.values():
            held = held_rows(table)
            if held is table:
                table.grad = mean_of_processes(table.grad, table)
            elif held.grad is not None:
                held.grad = held.grad.coalesce() / dist.get_world_size()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip all else."""
        if not self._tables or not gradient_clip_val:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        apart = {id(table) for table in self._tables.values()}
        whole = [parameter for parameter in self.parameters() if id(parameter) not in apart]
        nn.utils.clip_grad_norm_(whole, gradient_clip_val)


def mean_of_processes(gradient: Tensor | None, table: Tensor) -> Tensor:
    """The mean over processes of their sparse gradients of `table` (rows, width); None counts as no rows.

    Sent are the rows that are named, padded to the most that one process names.
    """
    width, world = table.shape[1], dist.get_world_size()
    if gradient is None:
        rows, values = torch.zeros(0, dtype=torch.int64, device=table.device), table.new_zeros(0, width)
    else:
        gradient = gradient.coalesce()
        rows, values = gradient.indices()[0], gradient.values()
    counts = [torch.zeros(1, dtype=torch.int64, device=table.device) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([len(rows)], device=table.device))
    most = int(torch.cat(counts).max())
    all_rows = [rows.new_zeros(most) for _ in range(world)]
    all_values = [values.new_zeros(most, width) for _ in range(world)]
    dist.all_gather(all_rows, nn.functional.pad(rows, (0, most - len(rows))))
    dist.all_gather(all_values, nn.functional.pad(values, (0, 0, 0, most - len(values))))
    named = torch.cat([part[: int(count)] for part, count in zip(all_rows, counts, strict=True)])
    summed = torch.cat([part[: int(count)] for part, count in zip(all_values, counts, strict=True)])
    return torch.sparse_coo_tensor(named[None], summed / world, table.shape).coalesce()
