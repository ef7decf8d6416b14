"""Which keys of a nested dictionary a function reads, by following its source. Runs in a framework's own environment.

A function is given the dictionary as one of its arguments; what it does with it is followed through assignments,
copies, subscripts, `get`, `in`, and the calls that hand it or a part of it on, into plain classes too. Names are looked
up in the imported modules, so that constants have their values. Both sides of a branch are followed; a loop over a
constant is followed for each of its items. Nothing is executed but imports and constant expressions.

A part of the dictionary is a path, a tuple of keys; a variable stands for every path that it may hold.
"""

import ast
import builtins
import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Path = tuple[str, ...]
Paths = frozenset[Path]
NOTHING: Paths = frozenset()
UNKNOWN: Any = type("Unknown", (), {"__repr__": lambda _: "UNKNOWN"})()
"""A value that only a run would tell."""

CONSTANT_NODES = (ast.Constant, ast.Name, ast.Attribute, ast.Dict, ast.List, ast.Tuple, ast.Set, ast.JoinedStr)
CONSTANT_PARTS = (*CONSTANT_NODES, ast.FormattedValue, ast.expr_context, ast.UnaryOp, ast.unaryop)


@dataclass(slots=True)
class Reads:
    """What was found.

    Args:
        defaults: Each key that is read, with everything that stands in for it where it is absent.
        models: Classes that are called with everything below a path as keywords.
        removed: Keys that are refused, with the words.
    """

    defaults: dict[Path, list[Any]] = field(default_factory=dict)
    models: dict[Path, type] = field(default_factory=dict)
    removed: dict[Path, str] = field(default_factory=dict)

    def note(self, paths: Paths, key: Any, default: Any = UNKNOWN) -> Paths:
        """Note that a key is read below each path; return where it leads."""
        if not isinstance(key, str):
            return NOTHING
        found = frozenset((*path, key) for path in paths)
        for path in found:
            known = self.defaults.setdefault(path, [])
            if default is not UNKNOWN and default not in known:
                known.append(default)
        return found


@dataclass(slots=True)
class Scope:
    """Names of one function: what they hold of the dictionary, what is constant, and dictionaries of paths."""

    module: Mapping[str, Any]
    paths: dict[str, Paths] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    gathered: dict[str, dict[str, Paths]] = field(default_factory=dict)
    owner: type | None = None

    @property
    def package(self) -> str:
        """Return what the names of this package's modules begin with."""
        return f"{self.module['__name__'].partition('.')[0]}."


class Tracer:
    """Follows functions; what it finds is in `reads`."""

    def __init__(self, is_model: Callable[[type], bool]) -> None:
        self.reads = Reads()
        self._is_model = is_model
        self._followed: set[Any] = set()

    def follow(
        self, function: Callable[..., Any], paths: Mapping[str, Paths], constants: Mapping[str, Any], owner: type | None
    ) -> Paths:
        """Follow one function with its arguments bound; return which paths it may return."""
        bound = sorted(paths.items()), sorted((name, repr(value)) for name, value in constants.items())
        mark = (function, owner, repr(bound))
        try:
            source = textwrap.dedent(inspect.getsource(function))
        except (OSError, TypeError):
            return NOTHING
        tree = ast.parse(source).body[0]
        if mark in self._followed or not isinstance(tree, ast.FunctionDef):
            return NOTHING
        self._followed.add(mark)
        module = inspect.unwrap(function).__globals__
        scope = Scope(module=module, paths=dict(paths), constants=dict(constants), owner=owner)
        found = self._body(tree.body, scope)
        # A function that is asked twice returns the same twice.
        self._followed.discard(mark)
        return found

    def _body(self, statements: list[ast.stmt], scope: Scope) -> Paths:
        found = NOTHING
        for statement in statements:
            found |= self._statement(statement, scope)
        return found

    def _statement(self, statement: ast.AST, scope: Scope) -> Paths:
        found = NOTHING
        match statement:
            case ast.Return(value=ast.expr() as value):
                return self.value(value, scope)
            case ast.Assign(targets=[target], value=value) | ast.AnnAssign(target=target, value=ast.expr() as value):
                self._assign(target, value, scope)
            case ast.For(target=target, iter=iterated, body=body):
                for _ in self._items(target, iterated, body, scope):
                    found |= self._body(body, scope)
            case ast.ImportFrom(module=str(module), names=names, level=0) if module.startswith(scope.package):
                imported = vars(importlib.import_module(module))
                scope.constants |= {name.asname or name.name: imported[name.name] for name in names}
            case ast.FunctionDef() | ast.ClassDef():
                pass
            case _:
                self._refusal(statement, scope)
                for child in ast.iter_child_nodes(statement):
                    if isinstance(child, ast.expr):
                        self.value(child, scope)
                    else:
                        found |= self._statement(child, scope)
        return found

    def _assign(self, target: ast.expr, value: ast.expr, scope: Scope) -> None:
        held = self.value(value, scope)
        if isinstance(target, ast.Subscript):
            self.value(target, scope)
            return
        name = ast.unparse(target)
        scope.paths[name] = scope.paths.get(name, NOTHING) | held
        constant = self.constant(value, scope)
        if constant is not UNKNOWN:
            scope.constants[name] = constant
        if isinstance(value, ast.DictComp):
            scope.gathered[name] = self._gather(value, scope)

    def _gather(self, node: ast.DictComp, scope: Scope) -> dict[str, Paths]:
        """Return what a dictionary made by a loop over constants holds."""
        (loop,) = node.generators
        gathered = {}
        for _ in self._items(loop.target, loop.iter, [], scope):
            key, held = self.constant(node.key, scope), self.value(node.value, scope)
            if isinstance(key, str) and held:
                gathered[key] = held
        return gathered

    def _items(self, target: ast.expr, iterated: ast.expr, body: list[ast.stmt], scope: Scope) -> Iterator[None]:
        """Bind the target to each item of a constant; note the defaults where all items of a section are taken."""
        of_items = isinstance(iterated, ast.Call) and isinstance(iterated.func, ast.Attribute)
        if of_items and iterated.func.attr == "items" and not iterated.args:  # type: ignore[attr-defined]
            constant = self.constant(iterated.func.value, scope)  # type: ignore[attr-defined]
            constant = list(constant.items()) if isinstance(constant, dict) else UNKNOWN
        else:
            constant = self.constant(iterated, scope)
        if not isinstance(constant, list | tuple | set):
            paths = self.value(iterated, scope)
            self._defaults_of_open(target, body, paths, scope)
            yield
            return
        for item in constant:
            names, values = ([target], [item])
            if isinstance(target, ast.Tuple):
                names, values = target.elts, list(item)
            scope.constants |= {ast.unparse(name): value for name, value in zip(names, values, strict=True)}
            yield

    def _defaults_of_open(self, target: ast.expr, body: list[ast.stmt], paths: Paths, scope: Scope) -> None:
        """Note what stands in for keys that are all copied over a constant dictionary."""
        names = {name.id for name in ast.walk(target) if isinstance(name, ast.Name)}
        for statement in body:
            match statement:
                case ast.Assign(targets=[ast.Subscript(value=held, slice=ast.Name(id=key))]) if key in names:
                    constant = self.constant(held, scope)
                    for name, default in constant.items() if isinstance(constant, dict) else ():
                        self.reads.note(paths, name, default)

    def _refusal(self, statement: ast.AST, scope: Scope) -> None:
        """Note a key whose presence alone is refused."""
        match statement:
            case ast.If(
                test=ast.Compare(left=key, ops=[ast.In()], comparators=[held]),
                body=[ast.Raise(exc=ast.Call(args=[words]))],
            ):
                name, text = self.constant(key, scope), self.constant(words, scope)
                if isinstance(name, str) and isinstance(text, str):
                    self.reads.removed |= {(*path, name): text for path in self.value(held, scope)}

    def constant(self, node: ast.expr, scope: Scope) -> Any:
        """Return the value of an expression that needs no run."""
        if not isinstance(node, CONSTANT_NODES) or any(not isinstance(part, CONSTANT_PARTS) for part in ast.walk(node)):
            return UNKNOWN
        names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        if not names <= scope.module.keys() | scope.constants.keys() | vars(builtins).keys():
            return UNKNOWN
        try:
            return eval(compile(ast.Expression(node), "<constant>", "eval"), dict(scope.module), scope.constants)
        except AttributeError:
            return UNKNOWN

    def value(self, node: ast.expr, scope: Scope) -> Paths:
        """Return which parts of the dictionary an expression may be, and note the keys that it reads."""
        match node:
            case ast.Name() | ast.Attribute() if ast.unparse(node) in scope.paths:
                return scope.paths[ast.unparse(node)]
            case ast.Subscript(value=held, slice=key):
                return self.reads.note(self.value(held, scope), self.constant(key, scope))
            case ast.Call():
                return self._call(node, scope)
            case ast.Compare(left=key, ops=[ast.In() | ast.NotIn()], comparators=[held]):
                self.reads.note(self.value(held, scope), self.constant(key, scope))
            case ast.Lambda() | ast.DictComp():
                return NOTHING
        parts = [self.value(part, scope) for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]
        return NOTHING.union(*parts) if isinstance(node, ast.BoolOp | ast.IfExp) else NOTHING

    def _call(self, node: ast.Call, scope: Scope) -> Paths:
        arguments = [self.value(argument, scope) for argument in node.args]
        keywords = {word.arg: self.value(word.value, scope) for word in node.keywords if word.arg}
        if isinstance(node.func, ast.Attribute):
            held = self.value(node.func.value, scope)
            if held and node.func.attr == "get" and node.args:
                default = self.constant(node.args[1], scope) if len(node.args) > 1 else None
                return self.reads.note(held, self.constant(node.args[0], scope), default)
            if held and node.func.attr in {"keys", "items", "copy"}:
                return held
        called = self._called(node.func, scope)
        if called is UNKNOWN or not callable(called):
            return NOTHING
        if getattr(called, "__module__", "") == "copy":
            return arguments[0]
        if isinstance(called, type) and self._is_model(called):
            self._model(called, node, scope)
            return NOTHING
        return self._enter(called, node, scope, arguments, keywords)

    def _called(self, function: ast.expr, scope: Scope) -> Any:
        match function:
            case ast.Attribute(value=ast.Name(id="self"), attr=name) if scope.owner is not None:
                return getattr(scope.owner, name, UNKNOWN)
            case _:
                return self.constant(function, scope)

    def _model(self, model: type, node: ast.Call, scope: Scope) -> None:
        for word in node.keywords:
            if word.arg is not None:
                continue
            for path in self.value(word.value, scope):
                self.reads.models.setdefault(path, model)
            for key, paths in scope.gathered.get(ast.unparse(word.value), {}).items():
                annotation = model.model_fields[key].annotation  # type: ignore[attr-defined]
                for path in paths:
                    self.reads.models.setdefault(path, annotation)

    def _enter(
        self, called: Any, node: ast.Call, scope: Scope, arguments: list[Paths], keywords: dict[str, Paths]
    ) -> Paths:
        """Follow a call that is handed a part of the dictionary, or a method of an object that holds one."""
        mine = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "self"
        held = {name: paths for name, paths in scope.paths.items() if mine and paths and name.startswith("self.")}
        if not any(arguments) and not any(keywords.values()) and not held:
            return NOTHING
        owner, function = (scope.owner if mine else None), inspect.unwrap(called)
        if isinstance(called, type):
            owner, function = called, called.__init__  # type: ignore[misc]
        if not inspect.isfunction(function):
            return NOTHING
        parameters = inspect.signature(function).parameters
        names = [name for name in parameters if name != "self"]
        paths = held | dict(zip(names, arguments, strict=False)) | keywords
        given = dict(zip(names, node.args, strict=False)) | {word.arg: word.value for word in node.keywords if word.arg}
        constants = {name: kind.default for name, kind in parameters.items() if kind.default is not kind.empty}
        constants |= {name: self.constant(value, scope) for name, value in given.items()}
        known = {name: value for name, value in constants.items() if value is not UNKNOWN and not paths.get(name)}
        return self.follow(function, paths, known, owner)
