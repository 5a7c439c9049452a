"""What happens beside the steps: checkpoints that resume exactly, the best weights, the curve, the bar, the profiler."""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from safetensors.torch import load_model, save_model

from adrec.data.disk.writing import write_aside
from adrec.errors import AdrecError
from adrec.terminal import Advance, Terminal
from adrec.training.loop.loader import BatchLoader, random_state, set_random_state
from adrec.training.loop.sharding import whole_weights
from adrec.training.loop.stopping import Stopped, StopSignals

LAST_CHECKPOINT = "last.ckpt"
BEST_WEIGHTS = "best-*.safetensors"


class ExactResume(pl.Callback):
    """Write `last.ckpt` every so often, with the data's position and the random states, aside and then renamed.

    A checkpoint is taken between two steps, never where an evaluation is due: the resumed run then repeats exactly what the
    uninterrupted run did.
    """

    def __init__(
        self,
        folder: Path,
        loader: BatchLoader,
        *,
        evaluate_every: int,
        minutes: float,
        steps: int | None,
        signals: StopSignals | None = None,
        saved: Callable[[], None] = lambda: None,
    ) -> None:
        """`saved` is called in the first process when a checkpoint stands."""
        self.folder, self.loader, self.evaluate_every = folder, loader, evaluate_every
        self.seconds, self.steps = minutes * 60, steps
        self.signals, self._signal, self._waited = signals or StopSignals(), 0, 0
        self.saved = saved
        self._saved_at = time.monotonic()
        self._due = False
        self._random: dict[str, Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """From here on a step is the place to stop."""
        self.signals.take()

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Put the random state back just before the first step after a resume."""
        if self._random is not None:
            set_random_state(self._random)
            self._random = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where due, and where a signal asks to stop. The last batch asks for the closing evaluation.

        Raises Stopped.
        """
        done = batch_idx + 1
        self.loader.order.done = done
        if done >= len(self.loader):
            trainer.should_stop = True
            return
        stepped = done % trainer.accumulate_grad_batches == 0
        step = done // trainer.accumulate_grad_batches
        by_steps = stepped and self.steps is not None and step % self.steps == 0
        self._signal = self._signal or self.signals.everywhere(trainer, module, done)
        self._due = self._due or by_steps or time.monotonic() - self._saved_at >= self.seconds or bool(self._signal)
        if self._due and stepped and done % self.evaluate_every != 0 and not trainer.should_stop:
            self._save(trainer)
            if self._signal:
                raise Stopped(self._signal, trainer.global_step)
        self._waited += bool(self._signal)
        if self._waited > 2 * trainer.accumulate_grad_batches:  # every step is followed by an evaluation: no place to save
            raise Stopped(self._signal, 0)

    def state_dict(self) -> dict[str, Any]:
        """The random state of each process now; all of them ask at the same time."""
        states: list[Any] = [random_state()]
        if dist.is_initialized():
            states *= dist.get_world_size()
            dist.all_gather_object(states, random_state())
        return {"processes": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep this process's random state for the first step."""
        self._random = state_dict["processes"][dist.get_rank() if dist.is_initialized() else 0]

    def _save(self, trainer: pl.Trainer) -> None:
        aside = self.folder / f".{LAST_CHECKPOINT}.aside"
        trainer.save_checkpoint(aside)  # every rank takes part
        if trainer.is_global_zero:
            aside.replace(self.folder / LAST_CHECKPOINT)
            self.saved()
        self._saved_at, self._due = time.monotonic(), False


class KeepBest(pl.Callback):
    """Keep the weights of the best evaluation, and stop after `patience` evaluations without a better one."""

    def __init__(self, folder: Path, module: pl.LightningModule, *, monitor: str, mode: str, patience: int | None) -> None:
        """`module` is the one whose weights are wanted: the trained one, or the unsharded copy of it."""
        self.folder, self.module, self.monitor, self.patience = folder, module, monitor, patience
        self.sign = 1.0 if mode == "max" else -1.0
        self.best: float | None = None
        self.best_step = 0
        self.waited = 0
        self.stopped_early = False

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Compare, and save the weights under their step's name."""
        if trainer.sanity_checking:
            return
        # Devices may differ in the last digit: the first one's word holds, or some would stop and others wait for them.
        value = float(trainer.strategy.broadcast(trainer.callback_metrics[self.monitor]))
        if math.isfinite(value) and (self.best is None or self.sign * value > self.sign * self.best):
            self.best, self.best_step, self.waited = value, trainer.global_step, 0
            weights = whole_weights(module, self.module)  # every rank takes part
            if trainer.is_global_zero:
                with write_aside(self._path(self.best_step)) as aside:
                    save_model(weights, str(aside))
                self._prune()
            return
        self.waited += 1
        if self.patience is not None and self.waited >= self.patience:
            trainer.should_stop = self.stopped_early = True

    def restore(self) -> None:
        """Put the best weights back into the module."""
        if self.best is not None:
            load_model(self.module, str(self._path(self.best_step)))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.best, self.best_step, self.waited = state_dict["best"], state_dict["best_step"], state_dict["waited"]

    def _path(self, step: int) -> Path:
        return self.folder / f"best-{step:09d}.safetensors"

    def _prune(self) -> None:
        """Keep two: a checkpoint taken before this evaluation still names the one before."""
        for stale in sorted(self.folder.glob(BEST_WEIGHTS))[:-2]:
            stale.unlink(missing_ok=True)


class Curve(pl.Callback):
    """The loss of every step and the metrics of every evaluation, kept through resumes. Stops at a loss that is not finite.

    Losses are read from the device together, every so many steps and before every checkpoint and evaluation: to read each
    would have every step wait for the one before it. What a loss of NaN spoiled is in no checkpoint.
    """

    STEPS = 20

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.evaluations: list[dict[str, float]] = []
        self._waiting: list[torch.Tensor] = []
        self._steps: list[int] = []

    def on_before_backward(self, trainer: pl.Trainer, module: pl.LightningModule, loss: torch.Tensor) -> None:
        """Note the loss."""
        self._waiting.append(loss.detach() * trainer.accumulate_grad_batches)
        self._steps.append(trainer.global_step)
        if len(self._waiting) >= self.STEPS:
            self._collect()

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Evaluate no network that a loss of NaN has reached."""
        self._collect()

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Read the last losses."""
        self._collect()

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Note the evaluation's metrics."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("valid")}
        self.evaluations.append({"step": float(trainer.global_step), **metrics})

    def state_dict(self) -> dict[str, Any]:
        """The curve so far."""
        self._collect()
        return {"losses": list(self.losses), "evaluations": list(self.evaluations)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.losses, self.evaluations = list(state_dict["losses"]), list(state_dict["evaluations"])

    def _collect(self) -> None:
        if not self._waiting:
            return
        values, steps = torch.stack(self._waiting).float().cpu().tolist(), self._steps
        self._waiting, self._steps = [], []
        for step, value in zip(steps, values, strict=True):
            if not math.isfinite(value):
                raise AdrecError(
                    f"step {step}: the loss is {value}. Lower training.learning_rate, raise training.warmup_fraction, or look"
                    " for NaN in the inputs. The last checkpoint is from before it."
                )
        self.losses.extend(values)


class Bar(pl.Callback):
    """The bar: units a second, time left, the loss and the last evaluation."""

    def __init__(
        self, terminal: Terminal, description: str, *, total: float, unit: str, units_of: Callable[[Any], int], monitor: str
    ) -> None:
        self.terminal, self.description, self.total, self.unit = terminal, description, total, unit
        self.units_of, self.monitor = units_of, monitor
        self.units, self.seconds = 0, 0.0
        self._advance: Advance | None = None
        self._stack = ExitStack()
        self._began = 0.0
        self._smooth: torch.Tensor | None = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Draw the bar, at the place where a resumed run stands."""
        bar = self.terminal.progress(self.description, self.total, unit=self.unit, done=self.units)
        self._advance = self._stack.enter_context(bar)
        self._began = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar; the loss is smoothed, and read from the device every tenth step."""
        units = self.units_of(batch) * trainer.world_size
        self.units += units
        loss = outputs["loss"].detach() * trainer.accumulate_grad_batches
        self._smooth = loss if self._smooth is None else self._smooth.lerp(loss, 0.05)
        if self._advance is None:
            return
        if batch_idx % 10:
            self._advance(units)
            return
        held_out = trainer.callback_metrics.get(self.monitor)
        note = f"loss {float(self._smooth):.3f}" + (f", {self.monitor} {float(held_out):.4f}" if held_out is not None else "")
        self._advance(units, note=note)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Remove the bar."""
        self.seconds += time.monotonic() - self._began
        self._close()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Remove the bar."""
        self._close()

    def state_dict(self) -> dict[str, Any]:
        """Units and seconds so far."""
        return {"units": self.units, "seconds": self.seconds + time.monotonic() - self._began}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.units, self.seconds = state_dict["units"], state_dict["seconds"]

    def _close(self) -> None:
        self._advance = None
        self._stack.close()


class Profile(pl.Callback):
    """Ten early steps under torch's profiler: `table.txt` and `trace.json` (open it at ui.perfetto.dev)."""

    def __init__(self, folder: Path, *, skip: int = 5, steps: int = 10) -> None:
        self.folder, self.skip, self.steps = folder, skip, steps
        self._profiler: Any = None

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin after the first steps, which pay for warming up."""
        if batch_idx == self.skip and trainer.is_global_zero:
            self._profiler = torch.profiler.profile(record_shapes=True)
            self._profiler.__enter__()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End and write after `steps` steps."""
        if batch_idx + 1 >= self.skip + self.steps:
            self._write()

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Write what there is of a run that ends earlier."""
        self._write()

    def _write(self) -> None:
        if self._profiler is None:
            return
        self._profiler.__exit__(None, None, None)
        self.folder.mkdir(parents=True, exist_ok=True)
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = self._profiler.key_averages().table(sort_by=by, row_limit=40)
        (self.folder / "table.txt").write_text(table, encoding="utf-8")
        self._profiler.export_chrome_trace(str(self.folder / "trace.json"))
        self._profiler = None
