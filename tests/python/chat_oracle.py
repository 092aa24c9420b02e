"""jinja2 set up as transformers sets it up for chat templates: the oracle of the engine's tests."""

import copy
import json
from datetime import UTC, datetime
from typing import ClassVar

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox


class Generation(jinja2.ext.Extension):
    """{% generation %}: a block that renders its body (transformers notes where it is)."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller):
        return caller()


class TemplateNamespace(jinja2.utils.Namespace):
    """A namespace without names that start with an underscore."""

    def __init__(*args, **kwargs):
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            TemplateNamespace._check(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name, value):
        TemplateNamespace._check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def _check(name):
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(name)


def environment(now: int = 0) -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """The environment in which transformers renders, with a fixed clock in UTC."""

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def strftime_now(pattern):
        moment = datetime.fromtimestamp(now, tz=UTC).replace(tzinfo=None)
        return moment.strftime(pattern)

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = strftime_now
    env.globals["namespace"] = TemplateNamespace
    return env


def render(request: dict) -> str:
    """What transformers would render for a request of the probe (tests/chat_probe.cpp)."""
    template = environment(request.get("now", 0)).from_string(request["template"])
    return template.render(
        messages=request.get("messages", []),
        tools=request.get("tools"),
        documents=request.get("documents"),
        add_generation_prompt=request.get("add_generation_prompt", True),
        bos_token=request.get("bos_token", ""),
        eos_token=request.get("eos_token", ""),
        **copy.deepcopy(request.get("extra", {})),  # the indent filter changes lists in place
    )
