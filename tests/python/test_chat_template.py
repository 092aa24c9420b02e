"""The chat template engine against jinja2 with transformers' settings, over random templates, the
templates of tests/golden and that of the default model."""

import ast
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import chat_oracle
import pytest
from chat_generator import VARIABLES, Generator

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/golden"))

import make_chat_templates  # noqa: E402

Render = Callable[[list[dict]], list[dict]]


@pytest.fixture(scope="session")
def probe(build_dir: Path) -> Render:
    """Renders requests with the built engine, in one process."""
    binary = build_dir / "bin/chat_probe"
    if not binary.exists():
        pytest.skip(f"{binary}: not built")

    def run(requests: list[dict]) -> list[dict]:
        lines = "\n".join(map(json.dumps, requests))
        done = subprocess.run(
            [str(binary)], input=lines.encode(), capture_output=True, timeout=120, check=True
        )
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(answers) == len(requests)
        return answers

    return run


def expected(request: dict) -> str | None:
    """jinja2's rendering, None when it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            return chat_oracle.render(request)
        except Exception:
            return None


def sound(expression: str) -> bool:
    text = expected({"template": "{{ " + expression + " }}", "extra": VARIABLES})
    return text is not None and " at 0x" not in text


def incomparable(answer: dict, want: str | None) -> bool:
    """Addresses in jinja2's output; slices of constants, which it folds; integers over 128 bits."""
    if want is not None and " at 0x" in want.lower():
        return True
    error = answer.get("error", "")
    return any(known in error for known in ("subscriptable", "type: 'slice'", "too large"))


def differences(probe: Render, requests: list[dict]) -> tuple[list[str], int]:
    """What differs, and how many requests rendered the same text."""
    found, same = [], 0
    for request, answer in zip(requests, probe(requests), strict=True):
        want, got = expected(request), answer.get("text")
        if got == want:
            same += want is not None
        elif not incomparable(answer, want):
            shown = got if got is not None else answer["error"]
            found.append(f"{request['template']!r}\n  found    {shown!r}\n  expected {want!r}")
    return found, same


def test_random_expressions(probe: Render) -> None:
    requests = []
    for seed in range(1000):
        expression = Generator(seed).expression(3)
        requests.append({"template": "{{ " + expression + " }}", "extra": VARIABLES})
    found, same = differences(probe, requests)
    assert not found, "\n".join(found[:10])
    assert same > 150  # the others raise, in both


def test_random_templates(probe: Render) -> None:
    requests = []
    for seed in range(120):
        template = Generator(seed, sound).template(3)
        requests.append({"template": template, "extra": VARIABLES})
    found, same = differences(probe, requests)
    assert not found, "\n".join(found[:10])
    assert same > 45


def test_cases_by_hand(probe: Render, repo_root: Path) -> None:
    """One template a line; after `python:` a Python string, for those with line ends."""
    lines = (repo_root / "tests/golden/chat_cases.txt").read_text().split("\n")
    given = {"extra": VARIABLES, "now": 1_700_000_123, "bos_token": "<s>"}
    given["messages"] = [{"role": "user", "content": "c"}]
    requests = []
    for line in filter(None, lines):
        template = ast.literal_eval(line[7:]) if line.startswith("python:") else line
        requests.append({"template": template, **given})
    found, same = differences(probe, requests)
    assert not found, "\n".join(found[:10])
    assert same > 100


def test_golden_file_is_up_to_date(probe: Render, repo_root: Path) -> None:
    """Both jinja2 and the engine still give what the committed file says."""
    golden = json.loads((repo_root / "tests/golden/chat_templates.json").read_text())
    assert golden["templates"] == make_chat_templates.templates()
    requests = make_chat_templates.requests(golden)
    for case, request, answer in zip(golden["cases"], requests, probe(requests), strict=True):
        assert expected(request) == case["text"], case
        assert answer.get("text") == case["text"], case


def test_default_model(probe: Render, smollm2: Path) -> None:
    gguf = pytest.importorskip("gguf")
    field = gguf.GGUFReader(str(smollm2)).fields["tokenizer.chat_template"]
    template = bytes(field.parts[field.data[0]]).decode()
    user = {"role": "user", "content": "What is <|im_end|>?"}
    chats = [
        [user],
        [{"role": "system", "content": "Be brief."}, user],
        [user, user | {"role": "x"}],
    ]
    requests = [
        {"template": template, "messages": chat, "add_generation_prompt": prompt}
        for chat in chats
        for prompt in (True, False)
    ]
    found, same = differences(probe, requests)
    assert not found, found
    assert same == len(requests)
