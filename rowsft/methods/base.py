"""The protocols that every method is held to, and how a method is found, made and asked for its choice."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from rowsft.errors import UserError
from rowsft.method_info import Described, MethodInfo
from rowsft.selection.budget import Budget
from rowsft.selection.groups import Scores
from rowsft.selection.ids import Chosen
from rowsft.selection.targets import Targets

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch.optim import Optimizer


@dataclass(frozen=True)
class ResolvedMethod:
    """A method's settings once the budget is solved.

    values: what was settled, JSON-able. asked, achieved: trainable parameters without the task head (None: no budget
    applies). source: the setting that decided. Not serialised: steps, how many units each unit group takes, chosen,
    full layer name -> its rows and columns, and entries, full layer name -> flat ids of single entries of its W.
    """

    values: dict[str, Any]
    asked: int | None = None
    achieved: int | None = None
    source: str = "not applicable"
    steps: tuple[int, ...] = ()
    chosen: dict[str, Chosen] | None = None
    entries: dict[str, Tensor] | None = None


class Method(Protocol):
    """One way to tune a model. The runner never asks which one it holds.

    A class states how it is shown as `info`, a `rowsft.method_info.MethodInfo`; without one it is shown by its name.
    """

    #: What settings and records call it.
    name: str
    #: Whether anything is trained.
    trains: ClassVar[bool]
    #: Whether what is trained is the model itself, and saved as a checkpoint of its own.
    saves_checkpoint: ClassVar[bool]

    @abstractmethod
    def solve(self, budget: Budget, model: nn.Module, targets: Targets) -> ResolvedMethod:
        """Turn the budget into sizes. Reads shapes only: a model on the meta device will do. Raises UserError."""

    @abstractmethod
    def attach(self, model: nn.Module, resolved: ResolvedMethod) -> nn.Module:
        """Freeze, wrap, and make the task head trainable as it is. The result computes what `model` computed."""

    @abstractmethod
    def trainable(self, model: nn.Module) -> dict[str, int]:
        """Return the counts of trainable parameters of an attached model: adapter, head, total."""

    @abstractmethod
    def save(self, model: Any, folder: Path) -> None:
        """Write what was trained of an attached model as safetensors under `folder`, which is created."""

    @abstractmethod
    def merge(self, model: Any) -> nn.Module:
        """Return the plain model with what was trained built in; `model`, an attached one, is used up."""


@runtime_checkable
class CalibratedMethod(Method, Protocol):
    """A method that chooses what to train by scores, between `solve` and `attach`."""

    #: The name of the metric that scores.
    importance: str
    #: Whether the scores take training batches.
    needs_calibration: bool

    @abstractmethod
    def select(self, model: nn.Module, resolved: ResolvedMethod, calibration: Sequence[dict]) -> ResolvedMethod:
        """Choose by scores on `calibration`, training batches (none unless needed). Leaves the model as it was."""

    @abstractmethod
    def selection_bounds(self, model: nn.Module, resolved: ResolvedMethod) -> dict[str, ResolvedMethod]:
        """Return what `select` could choose, without scores or weights, for a plan: name of each extreme -> sizes."""

    @abstractmethod
    def scores(
        self,
        model: nn.Module,
        resolved: ResolvedMethod,
        calibration: Sequence[dict],
        progress: Callable[..., Iterable] | None = None,
    ) -> Scores:
        """Return the scores that `select` would choose by. progress: wraps the passes; None shows a bar."""


@runtime_checkable
class ReloadedMethod(Method, Protocol):
    """A method that takes up again what it has saved, as it was when it was trained."""

    @abstractmethod
    def load(self, model: nn.Module, resolved: ResolvedMethod, folder: Path) -> nn.Module:
        """Attach what `save` wrote to `folder`, trainable as after `attach`. resolved: its values, as recorded."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are stepped alike. rate_factor: what the run's learning rate is multiplied by for them."""

    name: str
    parameters: list[nn.Parameter]
    rate_factor: float = 1.0


@runtime_checkable
class OptimizedMethod(Method, Protocol):
    """A method with parameter groups, an optimizer or work between the steps of its own.

    A class that names this one as a base overrides what it needs; `rowsft.methods.optimizing` asks. What a method
    keeps between steps belongs into `optimizer.state` under a name of its own: there it is counted, and checkpoints
    hold it.
    """

    #: The class of its own optimizer; None where it takes that of the settings.
    own_optimizer: ClassVar[str | None] = None
    #: The trainer strategies that it was seen to train under, beside one process.
    strategies: ClassVar[tuple[str, ...]] = ()

    @property
    def between_steps(self) -> str | None:
        """What it does between steps, or adds to the loss, in a few words for reports; None where it does nothing."""
        return None

    def parameter_groups(self, model: Any) -> list[ParameterGroup]:
        """Return all that is trained of an attached model, in groups; the first one's rate is the one on the curve."""
        return [ParameterGroup("all", [parameter for parameter in model.parameters() if parameter.requires_grad])]

    def make_optimizer(self, model: Any, rate: float, weight_decay: float) -> "Optimizer":
        """Make its own optimizer of an attached model, on the meta device too. Called where `own_optimizer` is set."""
        raise RuntimeError(f"method={self.name} says own_optimizer={self.own_optimizer} and does not make it")

    def begin(self, model: Any, optimizer: "Optimizer", step: int, total: int) -> None:
        """Called before the first step of a process: `step` of `total` are done; the optimizer's state is loaded."""
        return

    def after_step(self, model: Any, optimizer: "Optimizer", step: int, total: int) -> None:
        """Called once `step` of `total` steps are done, before the gradients are dropped.

        Under fp16 it is not called for a step that was left out, as its gradients have overflowed.
        step 0: of a plan or of a memory probe, where no value may be looked at: hold what a step in the middle holds.
        """
        return


def method_of(config: "DictConfig") -> Method:
    """Make the method that a configuration's `method` group describes.

    Raises UserError for wrong settings, and for a class that has not all of Method or, where it selects, of
    CalibratedMethod, or, where it has a part of OptimizedMethod, of that.
    """
    # Late: benchmarks make methods on machines without Hydra.
    from rowsft.config.instantiate import check_protocol, instantiated

    method: Method = instantiated("method", config, Method)
    if isinstance(method, Described) and not isinstance(method.info, MethodInfo):
        raise UserError(
            f"method._target_={config._target_}: info is a {type(method.info).__name__}, expected a "
            "rowsft.method_info.MethodInfo"
        )
    if hasattr(method, "select"):
        check_protocol(method, CalibratedMethod, "method that selects", f"method._target_={config._target_}")
    if any(hasattr(method, member) for member in ("parameter_groups", "make_optimizer", "begin", "after_step")):
        setting = f"method._target_={config._target_}"
        check_protocol(method, OptimizedMethod, "method with steps of its own (a subclass of OptimizedMethod)", setting)
    return method


def selected(
    method: Method, model: nn.Module, resolved: ResolvedMethod, calibration: Sequence[dict] = ()
) -> ResolvedMethod:
    """Return `resolved` with what the method chooses by scores; as it is for a method that chooses nothing."""
    return method.select(model, resolved, calibration) if isinstance(method, CalibratedMethod) else resolved


def calibrating(method: Method) -> CalibratedMethod | None:
    """Return the method if its choice needs training batches, else None."""
    return method if isinstance(method, CalibratedMethod) and method.needs_calibration else None


def selection_bounds(method: Method, model: nn.Module, resolved: ResolvedMethod) -> dict[str, ResolvedMethod]:
    """Return what the choice could come to, see `CalibratedMethod`; {"": resolved} where nothing is chosen."""
    return method.selection_bounds(model, resolved) if isinstance(method, CalibratedMethod) else {"": resolved}


def method_names() -> list[str]:
    """Return the names of the methods that come with the package, sorted."""
    return sorted(["row_sft", *(module.name for module in iter_modules(import_module("rowsft.baselines").__path__))])


def method_class(name: str, setting: str = "method") -> Any:
    """Return the class of the method called `name`: row_sft or a module of `rowsft.baselines`.

    Raises UserError with the names, and the `setting` that named it.
    """
    if name not in method_names():
        raise UserError(f"{setting}={name}: unknown method; use one of {', '.join(method_names())}")
    return import_module("rowsft.methods.row_sft" if name == "row_sft" else f"rowsft.baselines.{name}").METHOD
