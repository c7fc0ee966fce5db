"""Recording doubles of TensorRT: one version's API, and as much behaviour as tests need.

    double = TensorRT("10.3.0")           # or 8.6.1, 10.16.1.11, 11.4.0.106, rtx_1.7.1.116
    flavour = flavour_of(double.module, double.rtx)
    ...                                    # the code under test uses double.module as tensorrt
    assert double.count("IBuilderConfig.set_flag") == 1
    double.calls[-1].arguments             # by name, also those given by position
    double.fail["OnnxParser.parse_from_file"] = "no such operator"   # logs that, and gives False
    double.fail["Runtime.deserialize_cuda_engine"] = RuntimeError()  # raises it

A module, class, enum, method or argument that the version lacks raises ``Absent``, which no code
under test catches; so does ``hasattr``, by which the doubles would decide what real versions have.
What exists but is not modelled is recorded and gives None (``set_``, ``clear_``, ``add_``), a
property gives back what was assigned; anything else raises ``NotModelled``. An "engine" is a few
lines of JSON that name the graph, and its context runs that graph with ONNX Runtime on the
addresses that it was given; see ``running_models``.
"""

from __future__ import annotations

import json
import threading
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import running_models
import tensorrt_models

API = Path(__file__).parent / "api"
VERSIONS = tuple(sorted(path.stem for path in API.glob("*.json")))
FUNCTIONS = {"init_libnvinfer_plugins": ["logger", "namespace"]}
OPEN = ("ILogger", "IProgressMonitor")  # made to be subclassed by those who use TensorRT
NOTHING_LIKELY = ("set_", "clear_", "add_", "mark_", "unmark_", "reset")


class Absent(BaseException):
    """The code under test used what this version of TensorRT does not have."""


class NotModelled(BaseException):
    """The code under test used what the version has, but the double does not imitate."""


@dataclass(frozen=True)
class Call:
    """One call: its name, such as "Builder.create_network", its arguments, its thread."""

    name: str
    arguments: dict[str, Any]
    thread: int


class TensorRT:
    """A double of one version.

    Args:
        version: a file's name under ``api``.

    Attributes:
        module: to be used as ``tensorrt`` or ``tensorrt_rtx``.
        calls: all that was called or assigned, in order. An assignment's name ends in "=".
        fail: what each named call does instead: a text is logged as TensorRT's error, and the call
            gives None or False; an exception is raised.
        has_device: whether there is a GPU; without one a ``Runtime`` takes the process down.
    """

    def __init__(self, version: str) -> None:
        api = json.loads((API / f"{version}.json").read_text())
        self.version: str = api["version"]
        self.rtx = version.startswith("rtx")
        self.calls: list[Call] = []
        self.fail: dict[str, str | BaseException] = {}
        self.has_device = True
        self.api: dict[str, dict[str, Any]] = api["classes"]
        name = "tensorrt_rtx" if self.rtx else "tensorrt"
        self.module: Any = Module(name)
        self.module.__dict__["__version__"] = self.version
        for enum, members in api["enums"].items():
            self.module.__dict__[enum] = make_enum(enum, members)
        for name in self.api:
            if name not in OPEN and name != "Logger":
                self.module.__dict__[name] = make_class(self, name)
        for name, made in tensorrt_models.open_classes(self.record).items():
            if name in self.api:
                self.module.__dict__[name] = made
        for name, arguments in FUNCTIONS.items():
            self.module.__dict__[name] = self.function(name, arguments)

    def record(self, name: str, arguments: dict[str, Any]) -> None:
        self.calls.append(Call(name, arguments, threading.get_ident()))

    def count(self, name: str) -> int:
        """How often something was called, or assigned."""
        return sum(call.name == name for call in self.calls)

    def named(self, name: str) -> list[Call]:
        return [call for call in self.calls if call.name == name]

    def wrap(self, name: str, model: Any) -> Any:
        """An object of the class ``name`` that behaves as ``model``."""
        return self.module.__dict__[name].around(model)

    def function(self, name: str, arguments: list[str]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.record(name, bind(name, [arguments], args, kwargs))
            return True

        return call


class Module(types.ModuleType):
    """A module in which a missing name is the test's failure."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise Absent(f"{self.__name__} {self.__dict__['__version__']} has no {name}")


class StrictEnum(type):
    """What pybind11 makes of an enum: members that are int()s, and no others."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise Absent(f"{cls.__name__} has no member {name}")


def make_enum(name: str, members: list[str]) -> Any:
    def spell(self: Any) -> str:
        return f"{name}.{self.name}"

    body = {"__int__": lambda self: self.value, "__index__": lambda self: self.value}
    made = StrictEnum(name, (), {**body, "__str__": spell, "__repr__": spell})
    found = {}
    for value, member in enumerate(members):
        found[member] = made()
        vars(found[member]).update(name=member, value=value)
        setattr(made, member, found[member])
    made.__members__ = found  # type: ignore[attr-defined]
    return made


def make_class(double: TensorRT, name: str) -> Any:
    """The class ``name`` as this version has it, around its model where there is one."""
    members: Mapping[str, Any] = double.api[name]
    found = vars(tensorrt_models) | vars(running_models)
    model_class: Any = found.get(name, tensorrt_models.Plain)

    class Strict:
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            if members.get("__init__") is None:
                raise Absent(f"{name} cannot be constructed by hand")
            arguments = bind(name, members["__init__"], args, kwargs)
            double.record(name, arguments)
            return cls.around(model_class(double, **arguments))

        @classmethod
        def around(cls, model: Any) -> Any:
            if isinstance(model, bytes):  # host memory: what matters is that it is a buffer
                return model
            made = object.__new__(cls)
            object.__setattr__(made, "model", model)
            return made

        def __getattr__(self, member: str) -> Any:
            if member.startswith("__"):
                raise AttributeError(member)
            check(double, name, member)
            if members[member] is not None:
                return method(double, name, member, members[member], self.model)
            try:
                return getattr(self.model, member)
            except AttributeError:
                raise NotModelled(f"{name}.{member}: read, but never set") from None

        def __setattr__(self, member: str, value: Any) -> None:
            check(double, name, member)
            if members[member] is not None:
                raise Absent(f"{name}.{member} is a method")
            double.record(f"{name}.{member}=", {"value": value})
            setattr(self.model, member, value)

        # What the runtime and the compiler hold is let go by ``with`` or by del in real life.
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *exc: object) -> None: ...

    Strict.__name__ = Strict.__qualname__ = name
    return Strict


def check(double: TensorRT, name: str, member: str) -> None:
    if member not in double.api[name]:
        raise Absent(f"TensorRT {double.version} has no {name}.{member}")


def method(
    double: TensorRT, name: str, member: str, overloads: list[list[str]], model: Any
) -> Callable[..., Any]:
    full = f"{name}.{member}"

    def call(*args: Any, **kwargs: Any) -> Any:
        arguments = bind(full, overloads, args, kwargs)
        double.record(full, arguments)
        failure = double.fail.get(full)
        if isinstance(failure, BaseException):
            raise failure
        behaviour = getattr(model, member, None)
        if failure is not None:
            model.complain(failure)
            return getattr(model, "failed", {}).get(member)
        if behaviour is None:
            if member.startswith(NOTHING_LIKELY):
                return None
            raise NotModelled(full)
        return behaviour(**arguments)

    return call


def bind(
    name: str, overloads: list[list[str]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Arguments by name; every argument is optional here, as the lists do not say which are."""
    for names in overloads:
        if len(args) <= len(names) and set(kwargs) <= set(names[len(args) :]):
            return {**dict(zip(names, args, strict=False)), **kwargs}
    raise Absent(f"{name} takes {overloads}, not {len(args)} by position and {sorted(kwargs)}")
