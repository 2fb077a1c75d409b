"""The families of networks, each declared once, where its class is.

Checkpoints, `lpn-fast train` (choices and help), training configurations and the tests of the documentation read
FAMILIES. What else a family may have of its own are methods of its class, with defaults in `LPN` (networks/lpn.py):

    project_                        constraints beyond non-negative weights
    project_gradients_, step_       the coordinates that optimizers step in
    step_scales                     sizes of parameters, which steps are relative to
    has_form_of                     whether a spec is one of the family

A new family is a class, decorated by `register`, in a module that is imported.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from .lpn import LPN

OUTSIDE = ("family", "initialise", "start")  # entries of [model] that are no options of an architecture


@dataclass(frozen=True)
class Family:
    """A family of networks.

    Attributes
    ----------
    name : str
        In configurations and on the command line.
    network : type
        The class; checkpoints hold its name.
    summary : str
        One line for the help.
    options : mapping of str to str, or None
        Argument of the class -> entry of [model] in a training configuration (training/config.py) that sets it.
        None: no networks of images, hence not for configurations.
    noise : "never", "optional" or "always"
        Whether networks read the noise level. Where the class has a choice it takes `sigma_conditional`.
    own_start : bool
        Training starts from the parameters that the class sets; otherwise from `best_start` of networks/initialise.py.
    fixed : callable, optional
        Makes the one network of a family without options.
    """

    name: str
    network: type
    summary: str
    options: Mapping[str, str] | None = field(default_factory=dict)
    noise: Literal["never", "optional", "always"] = "never"
    own_start: bool = False
    fixed: "Callable[[], LPN] | None" = None

    def build(self, table, channels: int, sigma: float | tuple[float, float]) -> "LPN":
        """The network that a training configuration describes.

        Parameters
        ----------
        table : ModelConfig
            [model] of the configuration. Options that are None are left to the class.
        channels : int
            Image channels.
        sigma : float or (float, float)
            Noise level of the training, or its range. A family that always reads the level has one knot at a single
            level, and those of networks/families.py for a range.

        Raises
        ------
        ValueError
            An option was given that the family does not have.
        """
        if self.fixed is not None:
            return self.fixed()
        options = self.options or {}
        for option in dataclasses.fields(table):
            value = getattr(table, option.name)
            if option.name not in (*OUTSIDE, *options.values()) and value != option.default:
                known = ", ".join(options.values())
                raise ValueError(f"model.{option.name} is no option of the family {self.name!r} ({known}), got {value}")
        given = {argument: getattr(table, option) for argument, option in options.items()}
        arguments = {argument: value for argument, value in given.items() if value is not None}
        if self.noise != "never":
            ranged = isinstance(sigma, tuple | list)
            arguments["sigma_conditional"] = (sigma,) if self.noise == "always" and not ranged else ranged
        return self.network(channels, **arguments)

    def defaults(self) -> dict[str, object]:
        """Entry of [model] -> what the class takes where a configuration says nothing."""
        signature = inspect.signature(self.network).parameters
        return {option: signature[argument].default for argument, option in (self.options or {}).items()}


FAMILIES: dict[str, Family] = {}
Network = TypeVar("Network", bound=type)


def add(family: Family) -> None:
    """Add a family; ValueError if its name is taken."""
    if family.name in FAMILIES:
        raise ValueError(f"family must have a name of its own, got {family.name!r} again")
    FAMILIES[family.name] = family


def register(name: str, summary: str, options: Mapping[str, str] | None, **traits) -> Callable[[Network], Network]:
    """Decorator of an LPN class that adds its family; the arguments are the attributes of `Family`."""

    def registered(network: Network) -> Network:
        add(Family(name, network, summary, options, **traits))
        return network

    return registered


def trainable() -> tuple[str, ...]:
    """Names that a training configuration may have."""
    return tuple(name for name, family in FAMILIES.items() if family.options is not None)


def network_class(name: str) -> "type[LPN] | None":
    """The class that checkpoints call `name`, or None."""
    return next((family.network for family in FAMILIES.values() if family.network.__name__ == name), None)


def stored_name(network: type) -> str:
    """What checkpoints call a class: the name of the nearest registered class it derives from."""
    known = {family.network for family in FAMILIES.values()}
    return next(base.__name__ for base in network.__mro__ if base in known)
