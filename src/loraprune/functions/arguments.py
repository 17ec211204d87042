"""Turn keyword arguments into checked options.

Names, types, defaults and help come from the configuration classes, as on the command line.
"""

from __future__ import annotations

import ast
import inspect
import logging
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar, get_type_hints

from loraprune.config.base import Options, read_values
from loraprune.config.in_python import in_python
from loraprune.errors import ConfigError, nearest

DOCUMENTED = ("model", "models", "against", "data", "eval", "output")
"""arguments that take objects too, and are described by each function"""
logger = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])
Kind = TypeVar("Kind", bound=Options)


def takes(kind: type[Options]) -> Callable[[Function], Function]:
    """Show the options of a configuration class in the signature and the documentation of a function with `**options`."""

    def documented(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        hints = get_type_hints(kind)
        named = {one.name for one in own}
        more = [
            inspect.Parameter(
                one.name, inspect.Parameter.KEYWORD_ONLY, default=_default(one), annotation=hints[one.name]
            )
            for one in fields(kind)
            if one.name not in named
        ]
        shown: Any = function
        shown.__signature__ = signature.replace(parameters=[*own, *more])
        helped = option_help(kind)
        lines = [
            textwrap.fill(
                f"{name}: {in_python(helped[name], {}, kind)}", 110, initial_indent="    ", subsequent_indent="        "
            )
            for name in shown.__signature__.parameters
            if name in helped and name not in DOCUMENTED
        ]
        shown.__doc__ = f"{inspect.getdoc(function)}\n\nOptions, as on the command line:\n" + "\n".join(lines)
        return function

    return documented


def _default(option: Any) -> Any:
    """Return the default of a field, or what stands for none in a signature."""
    if option.default is not MISSING:
        return option.default
    return option.default_factory() if option.default_factory is not MISSING else inspect.Parameter.empty


def option_help(kind: type[Options]) -> dict[str, str]:
    """Return option -> help: the text under each field of a configuration class and of those it is made of."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if not issubclass(one, Options):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found


def make_options(kind: type[Kind], values: Mapping[str, Any]) -> Kind:
    """Return the options of keyword arguments.

    Raises:
        ConfigError: with everything that is wrong with them.
    """
    known = {one.name: one for one in fields(kind)}
    wrong = {
        name: f"unknown argument {name!r}{nearest(name, known)}: see help() of the function"
        for name in values
        if name not in known
    }
    values, odd = read_values(kind, {name: value for name, value in values.items() if name in known})
    wrong |= odd
    try:
        made = kind(**{name: value for name, value in values.items() if name not in wrong})
    except ConfigError as error:
        raise ConfigError(*wrong.values(), *error.args) from None
    if wrong:
        raise ConfigError(*wrong.values())
    for sentence in made.idle():
        logger.warning(in_python(sentence, values, kind))
    return made
