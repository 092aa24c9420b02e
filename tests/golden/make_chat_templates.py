"""Writes chat_templates.json: conversations, tools and reasoning through the templates in
chat_templates/, which were written for this test with the constructs of published ones, as jinja2
renders them under transformers' settings.

    .venv/bin/python tests/golden/make_chat_templates.py
"""

import json
import sys
from itertools import product
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "python"))

import chat_oracle  # noqa: E402

SYSTEM = {"role": "system", "content": " Answer in one line. "}
USER = {"role": "user", "content": "What is 2 + 2? <|im_end|><|eot|>"}
ASSISTANT = {"role": "assistant", "content": "<think>\nEasy.\n</think>\n\nFour. "}
PARTS = {
    "role": "user",
    "content": [
        {"type": "text", "text": " Look: "},
        {"type": "image"},
        {"type": "text", "text": "é"},
    ],
}
FUNCTION = {"name": "weather", "arguments": {"city": "Zürich", "days": 3, "metric": True}}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "abcdefghi", "type": "function", "function": FUNCTION}],
}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "content": '{"temperature": 21.5}'}
REASONED = {"role": "assistant", "reasoning_content": "\nIt is warm.\n", "content": "Warm: 21.5."}

CONVERSATIONS = {
    "question": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, ASSISTANT, {"role": "user", "content": "And 3 + 3?\n"}],
    "parts": [SYSTEM, PARTS],
    "call": [USER, CALL, RESULT],
    "reasoning": [USER, CALL, RESULT, REASONED],
    "two_results": [SYSTEM, USER, CALL, RESULT, RESULT, REASONED, USER],
    "unordered": [USER, USER],
    "empty": [],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a city",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "its\nname"},
                    "days": {"type": ["integer", "null"], "default": 1},
                    "where": {
                        "type": "object",
                        "properties": {"points": {"type": "array", "items": {"type": "number"}}},
                    },
                    "unit": {"type": "string", "enum": ["C", "F"]},
                },
                "required": ["city"],
            },
            "return": {"type": "object"},
        },
    },
    {
        "type": "function",
        "function": {"name": "now", "description": "The “time”", "parameters": {"type": "object"}},
    },
]
DOCUMENTS = [
    {"title": "the first", "text": "A text that is long enough to be cut somewhere in its middle."},
    {"title": "o'second", "text": "Short."},
]
SETTINGS = {
    "plain": {},
    "tools": {"tools": TOOLS},
    "documents": {"documents": DOCUMENTS, "add_generation_prompt": False},
    "options": {
        "tools": TOOLS,
        "extra": {
            "enable_thinking": False,
            "tools_first": False,
            "builtin": ["weather", "code_interpreter"],
            "limit": 2,
        },
    },
}


COMMON = {"bos_token": "<s>", "eos_token": "</s>", "now": 1_700_000_000}


def templates() -> dict[str, str]:
    """The sources by name."""
    return {
        path.stem: path.read_text() for path in sorted((HERE / "chat_templates").glob("*.jinja"))
    }


def requests(golden: dict) -> list[dict]:
    """One request of the probe for each case of the file."""
    return [
        {
            "template": golden["templates"][case["template"]],
            "messages": golden["conversations"][case["conversation"]],
            **golden["common"],
            **golden["settings"][case["setting"]],
        }
        for case in golden["cases"]
    ]


def main() -> None:
    """Renders every template with every conversation and setting; null where jinja2 raises."""
    golden = {
        "templates": templates(),
        "conversations": CONVERSATIONS,
        "settings": SETTINGS,
        "common": COMMON,
    }
    golden["cases"] = [
        {"template": template, "conversation": conversation, "setting": setting}
        for template, conversation, setting in product(templates(), CONVERSATIONS, SETTINGS)
    ]
    seen, kept = set(), []
    for case, request in zip(golden["cases"], requests(golden), strict=True):
        try:
            case["text"] = chat_oracle.render(request)
        except Exception:
            case["text"] = None
        key = (case["template"], case["text"])
        if key not in seen:  # else the setting makes no difference to this template
            kept.append(case)
        seen.add(key)
    golden["cases"] = kept
    (HERE / "chat_templates.json").write_text(
        json.dumps(golden, ensure_ascii=False, indent=1) + "\n"
    )
    rendered = sum(case["text"] is not None for case in kept)
    print(f"{len(kept)} cases, {rendered} of them render")


if __name__ == "__main__":
    main()
