"""`--attention xattention` of the program: the same answers, statistics, and what it refuses."""

import json

import pytest

XATTENTION = ("--attention", "xattention")
PASSKEY = "48213"


def passkey_prompt():
    import pydoc_data.topics

    text = "\n".join(pydoc_data.topics.topics[key] for key in sorted(pydoc_data.topics.topics))
    note = f"\n\nThe pass key is {PASSKEY}. Remember it. {PASSKEY} is the pass key.\n\n"
    return text[:6000] + note + text[6000:13000] + "\n\nThe pass key is"


def line_of(done, code):
    text = done.stderr.decode()
    assert done.returncode == code, text
    assert done.stdout == b""
    assert len(text.splitlines()) == 1 and text.startswith("longspur: "), text
    return text


def table(**changes):
    model = {"name": "smollm2", "layers": 30, "heads": 9, "kv_heads": 3, "head_dim": 64}
    return {
        "format": "longspur-xattention-thresholds",
        "version": 1,
        "model": {**model, **changes.pop("model", {})},
        "estimator": "sampled:16",
        "block_size": 128,
        "thresholds": [[0.9] * 9] * 30,
        **changes,
    }


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompt") / "prompt.txt"
    file.write_text(passkey_prompt())
    return file


@pytest.fixture(scope="module")
def dense(longspur_json, smollm2, prompt_file):
    return longspur_json(
        "generate", "-m", smollm2, "-f", prompt_file, "-n", 6, timeout=600
    )  # fmt: skip


def test_a_long_prompt_has_the_same_answer(longspur_json, smollm2, prompt_file, dense):
    assert 3000 < dense["usage"]["prompt_tokens"] < 4500
    assert PASSKEY in dense["text"]
    assert dense["timing"]["prefill_attention_s"] > 0
    for flags in ((), ("--kv-type", "nvfp4"), ("--prefill-chunk", "1000")):
        out = longspur_json(
            "generate", "-m", smollm2, "-f", prompt_file, "-n", 6, *XATTENTION, *flags,
            timeout=600,
        )  # fmt: skip
        assert PASSKEY in out["text"] or "nvfp4" in flags  # 4 bits on top lose it here
        attention = out["attention"]
        assert attention["kind"] == "xattention"
        assert 0 < attention["density"] < 0.9
        assert 0.9 <= attention["min_kept_share"] <= attention["estimated_kept_share"] <= 1
        assert not attention["dense_fallback"]
        assert 0 < attention["dense_blocks"] < attention["query_blocks"]
        assert attention["guarded_blocks"] == 0


def test_threshold_one_and_short_prompts_are_dense(longspur_json, smollm2):
    prompt = ("-p", "The quick brown fox jumps over the lazy dog. " * 20)
    dense = longspur_json("generate", "-m", smollm2, *prompt, "-n", 8)
    for flags in ((), ("--xattn-threshold", 1, "--xattn-min-length", 0)):
        out = longspur_json("generate", "-m", smollm2, *prompt, "-n", 8, *XATTENTION, *flags)
        assert out["tokens"] == dense["tokens"]
        assert out["attention"]["density"] == 1
        assert out["attention"]["dense_fallback"]


def test_batch_lines_have_their_own_thresholds(longspur_json, run_longspur, smollm2, tmp_path):
    text = "One two three four five six seven eight nine ten. " * 40
    lines = [
        {"id": 1, "prompt": text, "max_tokens": 4},
        {"id": 2, "prompt": text, "max_tokens": 4, "attention_threshold": 1},
        {"id": 3, "prompt": text, "max_tokens": 4, "attention_threshold": 1.5},
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)))
    arguments = ("generate", "-m", smollm2, "--input", source, "--output", target)
    done = run_longspur(*arguments, *XATTENTION, "--xattn-min-length", 0)
    assert done.returncode == 1  # the third line
    answers = {r["id"]: r for r in map(json.loads, target.read_text().splitlines())}
    dense = longspur_json("generate", "-m", smollm2, "-p", text, "-n", 4)
    assert answers[2]["tokens"] == dense["tokens"]
    assert len(answers[1]["tokens"]) == 4
    assert "attention_threshold: found 1.5, expected 0 to 1" in answers[3]["error"]


@pytest.mark.parametrize("verb", ["logits", "perplexity"])
def test_other_verbs_take_it(longspur_json, smollm2, tmp_path, verb):
    text, tokens = tmp_path / "text.txt", tmp_path / "tokens.json"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 60)
    tokens.write_text(json.dumps([list(range(1000, 1500))]))
    own = {
        "logits": ("--tokens", tokens, "--output", tmp_path / "o.safetensors"),
        "perplexity": ("--text", text),
    }
    flags = ("--xattn-min-length", 0, "--xattn-threshold", 0.5, "--xattn-block", 64)
    out = longspur_json(verb, "-m", smollm2, *own[verb], *XATTENTION, *flags)
    assert 0 < out["attention"]["density"] < 1


def test_bench_reports_the_time_of_attention(longspur_json, smollm2):
    flags = ("--lengths", "400", "--batch", "1", "--tokens", 2, "--repeat", 1, "--no-start")
    out = longspur_json("bench", "-m", smollm2, *flags, *XATTENTION, "--xattn-min-length", 0)
    assert out["attention"] == "xattention"
    row = out["rows"][0]
    assert 0 < row["prefill_attention_s"] < row["details"]["longspur"]["prefill_s"][0]
    assert 0 < row["density"] <= 1


def test_thresholds_of_a_file(longspur_json, smollm2, tmp_path):
    file = tmp_path / "t.json"
    file.write_text(json.dumps(table(thresholds=[[0.2] * 9] + [[1] * 9] * 29)))
    out = longspur_json(
        "generate", "-m", smollm2, "-p", "word " * 1000, "-n", 1, *XATTENTION,
        "--xattn-thresholds", file, "--xattn-min-length", 0, "--xattn-last-dense", 0,
    )  # fmt: skip
    attention = out["attention"]
    sparse = attention["query_blocks"] - attention["dense_blocks"]
    assert sparse * 30 == attention["query_blocks"]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model": {"layers": 32}, "thresholds": [[0.9] * 9] * 32}, ["layers: found 32", "30"]),
        ({"model": {"kv_heads": 9}}, ["kv_heads: found 9", "another model"]),
        ({"thresholds": [[0.9] * 9] * 29}, ["found 29 rows", "30"]),
        ({"thresholds": [[0.9] * 8] * 30}, ["found 8 numbers", "9"]),
        ({"thresholds": [[7] * 9] * 30}, ["thresholds[0][0]: found 7", "0 to 1"]),
        ({"estimator": "magic"}, ["magic"]),
        ({"version": 9}, ["version: found 9"]),
        ({"surprise": 1}, ["surprise"]),
    ],
)
def test_a_wrong_file_is_refused(run_longspur, smollm2, tmp_path, changes, parts):
    file = tmp_path / "t.json"
    file.write_text(json.dumps(table(**changes)))
    done = run_longspur(
        "generate", "-m", smollm2, "-p", "x", *XATTENTION, "--xattn-thresholds", file
    )
    code = 2 if "estimator" in changes else 1
    line = line_of(done, code)
    assert str(file) in line
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("flags", "code", "parts"),
    [
        (("--xattn-threshold", "1.1"), 2, ["xattn-threshold: found 1.1, expected 0 to 1"]),
        (("--xattn-threshold", "nan"), 2, ["xattn-threshold", "nan"]),
        (("--xattn-threshold", "-1"), 2, ["xattn-threshold: found -1"]),
        (("--xattn-guard", "3"), 2, ["xattn-guard: found 3"]),
        (("--xattn-block", "96"), 2, ["xattn-block: found 96, expected 64 or 128"]),
        (("--xattn-estimator", "antidiagonal:7"), 2, ["xattn-estimator", "7"]),
        (("--xattn-rule", "best"), 2, ["best"]),
        (("--xattn-thresholds", "/nowhere.json"), 1, ["/nowhere.json"]),
        (("--xattn-thresholds", "/x", "--xattn-threshold", ".5"), 2, ["one of them"]),
    ],
)
def test_impossible_options(run_longspur, smollm2, flags, code, parts):
    done = run_longspur("generate", "-m", smollm2, "-p", "x", "-n", 1, *XATTENTION, *flags)
    line = line_of(done, code)
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("flags", "code", "parts"),
    [
        (("--xattn-sink", "2"), 2, ["--xattn-sink", "dense", "xattention"]),
        (("--attention", "duo"), 1, ["'duo'", "xattention"]),
        (("--attention", "moba"), 1, ["'moba'"]),
        (("--attention", "duo+xattention"), 1, ["'duo+xattention'"]),
    ],
)
def test_kinds_that_are_not_there(run_longspur, smollm2, flags, code, parts):
    line = line_of(run_longspur("generate", "-m", smollm2, "-p", "x", *flags), code)
    assert all(part in line for part in parts), line
