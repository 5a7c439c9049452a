"""What there is to say of a command, once: all else that is said of it follows from its config class."""

import inspect
from typing import NamedTuple


class Option(NamedTuple):
    """A setting that the command line names without `--set`. Its type, its help and whether it repeats are the config's."""

    field: str
    """of the config"""
    flag: str | None = None
    """None: `--field`"""
    keys: tuple[str, ...] = ()
    """of an option of several values: the settings that they are"""
    metavar: str | None = None
    is_hidden: bool = False
    """An earlier name, which still works."""


class Command(NamedTuple):
    """A command. `seed`, `device`, `bundle`, `trusted_keys` and `output` are options wherever the config has them."""

    name: str
    panel: str
    """under which `adrec --help` lists it"""
    stage: str
    """module below adrec.stages whose `run(config, terminal)` it is"""
    config: str
    """`module:Class` below adrec.config"""
    text: str
    """of its help, the first line that of the list"""
    writes: tuple[str, str] | None = None
    """setting that says where it writes, and the kind of output (a name in adrec.data.disk.outputs)"""
    or_writes: tuple[str, str] | None = None
    """a setting with which it writes another kind, and that kind"""
    argument: str | None = None
    """setting that is given without a name"""
    options: tuple[str | Option, ...] = ()
    """further settings with options of their own"""
    alias: str | None = None
    """another name of it, by which its config goes"""
    is_server: bool = False
    """Whether it runs until it is stopped, and shares its output with others of its kind."""

    @property
    def key(self) -> str:
        """The name by which its config goes."""
        return self.alias or self.name

    @property
    def help(self) -> str:
        """The text as paragraphs: a terminal wraps lines by itself."""
        paragraphs = inspect.cleandoc(self.text).split("\n\n")
        return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)

    @property
    def own_options(self) -> tuple[Option, ...]:
        """`options`, each as an Option."""
        return tuple(Option(option) if isinstance(option, str) else option for option in self.options)
