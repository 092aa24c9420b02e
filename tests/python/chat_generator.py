"""Random template expressions and templates for the comparison of the chat engine with jinja2."""

import random

STRINGS = [
    "''", "'a'", "'abc'", "' pad\\t'", "'a,b,,c'", "'Hello World'", "'x y  z'",
    "'line1\\nline2\\n'", "'ünïcödé ß'", "'😀 emoji'", "\"it's\"", "'say \"hi\"'", "'<b>&</b>'",
    "'42'", "'-7'", "'3.5'", "'1_000'", "'\\\\n'", "'{\"k\": 1}'", "'ΑΣ Σ'", "'ǅ'",
    "'\\x00\\x7f\\u200b'", "'%s and %d'", "'{} {x} {0}'", "'a\\r\\nb\\x0bc'", "'__class__'",
    "'</think>'", "'aaaa'",
]  # fmt: skip
NUMBERS = [
    "0", "1", "2", "-1", "3", "7", "10", "-5", "100", "0.5", "-2.5", "1.0", "1e3", "3.14159",
    "2.675", "1e22", "1e-7", "123456789012", "0.1", "true", "false",
]  # fmt: skip
NAMES = ["s", "n", "l", "d", "t", "nested", "users", "u", "none", "missing", "f", "b", "words", "e"]
VARIABLES = {
    "s": "Some Text, here",
    "n": 5,
    "l": [3, 1, 2, 3],
    "d": {"b": 1, "a": [1, 2], "C": None, "items": "x"},
    "nested": {"k": {"x": [{"y": 1.5}, {"y": -2}]}, "": False},
    "users": [
        {"name": "bob", "age": 30, "tags": ["x"], "address": {"city": "Rome"}},
        {"name": "Alice", "age": 25, "tags": [], "address": {"city": "Oslo"}},
        {"name": "carl", "age": 30},
    ],
    "u": "naïve café ÅB",
    "f": 2.5,
    "b": True,
    "words": ["b", "A", "c", "a", "B"],
    "e": [],
}
BINARY = [
    "+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", "<=", ">", ">=", "in", "not in",
    "and", "or",
]  # fmt: skip
FILTERS = [
    "abs", "capitalize", "center(9)", "count", "default('dd')", "d('x', true)", "dictsort",
    "dictsort(true, 'value')", "e", "escape", "filesizeformat", "first", "float", "float(1.5)",
    "forceescape", "format(1, 'x')", "indent", "indent(2, true)",
    "indent('> ', first=true, blank=true)", "int", "int(7)", "int(0, 16)", "items", "join",
    "join(', ')", "join('-', 'name')", "last", "length", "list", "lower", "map('upper')",
    "map(attribute='name')", "map(attribute='age', default=0)", "map('int')",
    "map(attribute='address.city')", "max", "min", "max(attribute='age')", "reject",
    "reject('none')", "rejectattr('age', 'eq', 30)", "replace('a', 'ZZ')", "replace('a', 'b', 1)",
    "replace('', '-')", "reverse", "round", "round(1)", "round(2, 'ceil')", "round(1, 'floor')",
    "round(-1)", "safe", "select", "select('string')", "select('odd')", "select('in', [1, 2])",
    "selectattr('age')", "selectattr('name', 'equalto', 'bob')", "selectattr('tags', 'defined')",
    "slice(2)", "slice(3, 'x')", "sort", "sort(reverse=true)", "sort(attribute='name')",
    "sort(case_sensitive=true)", "sort(attribute='age,name')", "string", "sum",
    "sum(attribute='age')", "title", "tojson", "tojson(indent=2)", "tojson(ensure_ascii=true)",
    "tojson(sort_keys=true)", "tojson(separators=(',', ':'))", "trim", "trim('a')", "truncate(5)",
    "truncate(5, true)", "truncate(6, false, '…', 0)", "unique", "upper", "wordcount", "batch(2)",
    "batch(2, 'z')", "groupby('age')", "groupby('name')", "attr('name')", "tojson(indent='\\t')",
    "urlencode", "striptags",
]  # fmt: skip
TESTS = [
    "boolean", "callable", "defined", "divisibleby 3", "divisibleby(2)", "eq 1", "equalto('a')",
    "even", "false", "float", "ge 2", "gt 1", "in [1, 'a']", "integer", "iterable", "le 3",
    "lower", "lt 2", "mapping", "ne 1", "none", "number", "odd", "sameas true", "sequence",
    "string", "true", "undefined", "upper", "filter", "test", "escaped",
]  # fmt: skip
METHODS = [
    "capitalize()", "casefold()", "center(8, '*')", "count('a')", "endswith('c')", "find('b')",
    "find('b', 1)", "format(1, 2, x=3)", "index('a')", "isalnum()", "isalpha()", "isdecimal()",
    "isdigit()", "islower()", "isnumeric()", "isspace()", "istitle()", "isupper()",
    "join(['x', 'y'])", "ljust(5)", "lower()", "lstrip()", "lstrip('a ')", "partition(',')",
    "partition(' ')", "removeprefix('a')", "removesuffix('c')", "replace('a', 'b')",
    "replace('a', '', 1)", "rfind('a')", "rjust(7, '0')", "rpartition(',')", "rsplit()",
    "rsplit(',', 1)", "rsplit(maxsplit=1)", "rstrip()", "rstrip('\\n')", "split()", "split(',')",
    "split(' ', 1)", "split(maxsplit=1)", "split('')", "splitlines()", "splitlines(true)",
    "startswith('a')", "startswith(('x', 'a'))", "strip()", "strip('ab')", "swapcase()",
    "title()", "upper()", "zfill(4)", "items()", "keys()", "values()", "get('a')", "get('zz', 1)",
    "get('a', default=1)", "index(1)", "count(3)", "append(1)", "pop()", "update({})", "copy()",
    "expandtabs()", "isascii()", "isidentifier()", "isprintable()", "count('a', 1, -1)",
    "startswith('b', 1)", "is_integer()", "bit_length()",
]  # fmt: skip
ATTRIBUTES = ["name", "a", "items", "x", "k", "age", "real", "__class__", "upper", "b", "0", "keys"]


class Generator:
    """Expressions and templates from one seed."""

    def __init__(self, seed: int, accepts=None):
        """accepts(expression): whether templates may use it; else most would only raise."""
        self.random = random.Random(seed)
        self.accepts = accepts or (lambda expression: True)

    def sound(self, depth: int) -> str:
        """An expression that the caller accepts, or an atom after some tries."""
        for _ in range(5):
            candidate = self.expression(depth)
            if self.accepts(candidate):
                return candidate
        return self.pick(["n", "s", "l"])

    def pick(self, options):
        return self.random.choice(options)

    def atom(self) -> str:
        kind = self.random.random()
        if kind < 0.3:
            return self.pick(STRINGS)
        if kind < 0.5:
            return self.pick(NUMBERS)
        return self.pick(NAMES)

    def several(self, counts: list[int], depth: int) -> list[str]:
        return [self.expression(depth - 1) for _ in range(self.pick(counts))]

    def literal(self, depth: int) -> str:
        kind = self.pick(["list", "tuple", "dict", "range"])
        if kind == "list":
            return "[" + ", ".join(self.several([0, 1, 3], depth)) + "]"
        if kind == "tuple":
            return "(" + "".join(item + ", " for item in self.several([0, 1, 2], depth)) + ")"
        if kind == "dict":
            values = self.several([0, 1, 2], depth)
            keys = [self.pick([*STRINGS, "1", "none"]) for _ in values]
            pairs = (f"{key}: {value}" for key, value in zip(keys, values, strict=True))
            return "{" + ", ".join(pairs) + "}"
        return self.pick(["range(4)", "range(1, 8, 3)", "range(5, 0, -2)", "range(0)"])

    def bound(self) -> str:
        return self.pick(["", "0", "1", "-1", "2", "-2", "9", "n", "none"])

    def subscript(self) -> str:
        index = self.pick(["0", "1", "-1", "9", "'a'", "'name'", "n", "true", "1.5"])
        step = self.pick(["", "1", "-1", "2", "-2"])
        short = f"[{self.bound()}:{self.bound()}]"
        return self.pick([f"[{index}]", short, f"[{self.bound()}:{self.bound()}:{step}]"])

    def expression(self, depth: int) -> str:
        if depth <= 0:
            return self.atom()
        weights = {
            self.filtered: 25,
            self.method: 15,
            self.indexed: 10,
            self.attribute: 5,
            self.binary: 21,
            self.tested: 7,
            self.literal: 6,
            self.conditional: 4,
            self.unary: 4,
            self.percent: 3,
        }
        return self.random.choices(list(weights), list(weights.values()))[0](depth)

    def filtered(self, depth: int) -> str:
        return f"{self.operand(depth)}|{self.pick(FILTERS)}"

    def method(self, depth: int) -> str:
        return f"{self.operand(depth)}.{self.pick(METHODS)}"

    def indexed(self, depth: int) -> str:
        return self.operand(depth) + self.subscript()

    def attribute(self, depth: int) -> str:
        return f"{self.operand(depth)}.{self.pick(ATTRIBUTES)}"

    def binary(self, depth: int) -> str:
        left, right = self.expression(depth - 1), self.expression(depth - 1)
        return f"{left} {self.pick(BINARY)} {right}"

    def tested(self, depth: int) -> str:
        return f"{self.operand(depth)} is {self.pick(['', 'not '])}{self.pick(TESTS)}"

    def conditional(self, depth: int) -> str:
        yes, condition, no = (self.expression(depth - 1) for _ in range(3))
        return f"({yes} if {condition}" + self.pick(["", f" else {no}"]) + ")"

    def unary(self, depth: int) -> str:
        return self.pick(["not ", "-", "+"]) + self.operand(depth)

    def percent(self, depth: int) -> str:
        return f"{self.pick(STRINGS)} % {self.operand(depth)}"

    def operand(self, depth: int) -> str:
        inner = self.expression(depth - 1)
        return inner if inner.isidentifier() else f"({inner})"

    def template(self, depth: int, in_loop: bool = False) -> str:
        parts = [self.statement(depth, in_loop) for _ in range(self.pick([1, 2, 3]))]
        return self.pick(["", " ", "\n", "\n  "]).join(parts)

    def tag(self, inner: str) -> str:
        left, right = self.pick(["", "", "-", "+"]), self.pick(["", "", "-", "+"])
        return "{%" + f"{left} {inner} {right}" + "%}"

    def statement(self, depth: int, in_loop: bool) -> str:
        if depth <= 0:
            return self.leaf(in_loop)
        makers = [self.if_, self.for_, self.set_block, self.macro, self.filter_block, self.with_]
        makers += [self.namespace, self.raw, self.call_block, self.template]
        return self.pick(makers)(depth - 1, in_loop)

    def leaf(self, in_loop: bool) -> str:
        value = self.sound(2)
        return self.pick(
            [
                "text",
                "  \n",
                "\ntext \n",
                "{{" + self.pick(["", "-"]) + f" {value} " + self.pick(["", "-"]) + "}}",
                self.pick(["{# note #}", "{# two\nlines #}", "{#- note -#}"]),
                self.tag(f"set {self.pick(['x', 'y', 's'])} = {value}"),
                "[{{ x }}{{ y }}{{ s }}]",
                "{{ loop.index }}{{ loop.last }}{{ loop.previtem }}" if in_loop else "{{ n }}",
            ]
        )

    def if_(self, depth: int, in_loop: bool) -> str:
        inner = [self.template(depth, in_loop) for _ in range(2)]
        other = self.tag(self.pick(["else", f"elif {self.sound(2)}"])) + inner[1]
        middle = self.pick(["", other])
        return self.tag(f"if {self.sound(1)}") + inner[0] + middle + self.tag("endif")

    def for_(self, depth: int, in_loop: bool) -> str:
        items = f"({self.sound(2)})|list"
        heads = ["for k, v in d.items()", "for u in users", "for c in s recursive"]
        heads += ["for x in range(3)", f"for x in l if {self.sound(1)}"]
        heads.append(f"for x in {items}" if self.accepts(items) else "for x in l")
        leave = self.tag(f"if {self.sound(1)}") + self.tag(self.pick(["break", "continue"]))
        leave = self.pick(["", "", leave + self.tag("endif")])
        end = self.pick(["", self.tag("else") + "none"])
        body = self.template(depth, True)
        start = self.tag(self.pick(heads))
        return start + body + leave + "{{ loop.index0 }}" + end + self.tag("endfor")

    def set_block(self, depth: int, in_loop: bool) -> str:
        head = self.pick(["set x", "set x | upper", "set x | trim | replace('e', 'E')"])
        return self.tag(head) + self.template(depth) + self.tag("endset") + "<{{ x }}>"

    def macro(self, depth: int, in_loop: bool) -> str:
        calls = ["m(1)", "m(s, q=2)", "m()", "m(1, 2, 3)", "m(1, 2, 3, 4)", "m(z=1)"]
        body = self.template(depth) + "{{ p }}{{ q }}"
        call = "{{ " + self.pick(calls) + " }}"
        return self.tag("macro m(p, q='Q', r=n)") + body + self.tag("endmacro") + call

    def filter_block(self, depth: int, in_loop: bool) -> str:
        name = self.pick(["upper", "trim", "indent(2)", "title|replace('A', 1)"])
        return self.tag(f"filter {name}") + self.template(depth) + self.tag("endfilter")

    def with_(self, depth: int, in_loop: bool) -> str:
        body = self.template(depth, in_loop) + "{{ a }}{{ b }}"
        return self.tag(f"with a = {self.sound(2)}, b = n") + body + self.tag("endwith")

    def namespace(self, depth: int, in_loop: bool) -> str:
        changes = self.tag("set ns.v = ns.v + x") + self.tag(f"set ns.w = {self.sound(2)}")
        loop = self.tag("for x in l") + changes + self.tag("endfor")
        return self.tag("set ns = namespace(v=0, w='')") + loop + "{{ ns.v }}{{ ns.w }}"

    def raw(self, depth: int, in_loop: bool) -> str:
        return self.tag("raw") + "{{ x }} {% if %}" + self.tag("endraw")

    def call_block(self, depth: int, in_loop: bool) -> str:
        macro = self.tag("macro w(a)") + "<{{ a }}:{{ caller() }}>" + self.tag("endmacro")
        return macro + self.tag("call w(n)") + self.template(depth) + self.tag("endcall")
