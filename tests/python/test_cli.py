"""The program as a user meets it: keys of --json, exit codes, where settings come from, bad input,
interrupts, and batch runs that are killed and gone on with."""

import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import tiny_models
import torch
from safetensors import safe_open

VERBS = ("generate", "chat", "tokenize", "logits", "perplexity")
SHORT = ("-p", "One two three four", "--max-tokens", "8")
FULL = Path("/dev/full")


def failure(done, code):
    """The one line of a run that failed with `code`."""
    text = done.stderr.decode()
    assert done.returncode == code, text
    assert done.stdout == b""
    lines = text.splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith("longspur: ")
    return lines[0]


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random model of a few kilobytes, without a tokenizer."""
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    tiny_models.save(tiny_models.build("llama"), folder)
    return folder


# ---- help, version, reference


def test_help_names_every_verb_and_shows_examples(run_longspur):
    overview = run_longspur("--help").stdout.decode()
    for verb in VERBS:
        assert f"\n  {verb} " in overview
        text = run_longspur(verb, "--help").stdout.decode()
        assert "examples:\n  " in text
        assert "--json" in text
        assert max(map(len, text.splitlines())) <= 100


def test_version(run_longspur):
    assert run_longspur("--version").stdout.startswith(b"longspur 0.")


def test_reference_page_is_current(run_longspur, repo_root):
    """If this fails: build/release/bin/longspur reference > docs/cli.md"""
    assert run_longspur("reference").stdout.decode() == (repo_root / "docs/cli.md").read_text()


def test_bash_completion_completes(run_longspur, tmp_path):
    script = tmp_path / "completion.sh"
    script.write_bytes(run_longspur("completion", "bash").stdout)
    ask = (
        f"source {script}; COMP_WORDS=(longspur generate --kv-type ''); COMP_CWORD=3; "
        'complete -p longspur; _longspur; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "bf16 nvfp4"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "verb"),
        (("generat",), "generate?"),
        (("--json",), "verb first"),
        (("generate", "--max-tokns", "3"), "--max-tokens?"),
        (("generate", "stray"), "'stray'"),
        (("generate", "--max-tokens"), "max-tokens"),
        (("generate", *SHORT, "--max-tokens", "0"), "at least 1"),
        (("generate", *SHORT, "--max-tokens", "many"), "an integer"),
        (("generate", *SHORT, "--temperature", "-1"), "at least 0"),
        (("generate", *SHORT, "--temperature", "nan"), "finite"),
        (("generate", *SHORT, "--top-p", "2"), "at most 1"),
        (("generate", *SHORT, "--seed", "-1"), "at least 0"),
        (("generate", *SHORT, "--stop", ""), "empty"),
        (("generate", *SHORT, "--logit-bias", "x"), "ID:VALUE"),
        (("generate", *SHORT, "--min-tokens", "9"), "--min-tokens"),
        (("generate", *SHORT, "--device", "tpu"), "cuda"),
        (("generate", *SHORT, "--kv-type", "int3"), "nvfp4"),
        (("generate", *SHORT, "--attention", "none"), "dense"),
        (("generate", *SHORT, "--compute", "fp64"), "fp32"),
        (("generate", *SHORT, "--threads", "-1"), "0 to 1024"),
        (("generate", *SHORT, "--system", "x"), "--chat"),
        (("generate", *SHORT, "--input", "x", "--output", "y"), "--input"),
        (("generate", "--input", "x"), "--output"),
        (("generate", "--output", "x", *SHORT), "--input"),
        (("tokenize", "--decode", "--bos"), "--bos"),
        (("logits", "--output", "x"), "--tokens"),
        (("logits", "--tokens", "x"), "--output"),
        (("perplexity",), "--text"),
        (("eval", "haystack"), "passkey"),
        (("eval", "--lengths", "9"), "at least"),
        (("eval", "--lengths", "100000"), "8192"),
        (("eval", "--depths", "101"), "100"),
        (("completion", "ksh"), "fish"),
        (("completion",), "--shell"),
    ],
)
def test_impossible_command_lines(run_longspur, arguments, part):
    assert part in failure(run_longspur(*arguments), 2)


# ---- where settings come from


def config_of(run_longspur, *arguments, env=None):
    done = run_longspur(
        "generate", *arguments, "--print-config", "--json", env=os.environ | (env or {})
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_flag_beats_environment_beats_file_beats_default(run_longspur, tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("max-tokens = 3\nstop = ['a', 'b']\n[generate]\ntop_k = 4\n[chat]\ntop-k = 5\n")
    env = {"LONGSPUR_MAX_TOKENS": "7"}
    assert config_of(run_longspur)["max-tokens"] == 256
    from_file = config_of(run_longspur, "--config", file)
    assert (from_file["max-tokens"], from_file["top-k"]) == (3, 4)
    assert from_file["stop"] == ["a", "b"]
    assert config_of(run_longspur, env={"LONGSPUR_CONFIG": str(file)})["max-tokens"] == 3
    assert config_of(run_longspur, "--config", file, env=env)["max-tokens"] == 7
    assert config_of(run_longspur, "--config", file, "-n", 9, env=env)["max-tokens"] == 9


def test_printed_config_reads_back(run_longspur, tmp_path):
    file = tmp_path / "c.toml"
    flags = ("--chat", "--stop", 'say "\\n"', "--temperature", "0.3", "--stop-id", "5")
    file.write_bytes(run_longspur("generate", *flags, "--print-config").stdout)
    assert config_of(run_longspur, "--config", file) == config_of(run_longspur, *flags)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("max-tokns = 1", "max-tokns"),
        ("[generate]\nshell = 'bash'", "line 2: shell"),
        ("[nothing]", "nothing"),
        ("max-tokens = 'x'", "expected an integer"),
        ("max-tokens = ", "line 1"),
    ],
)
def test_wrong_config_files(run_longspur, tmp_path, text, part):
    file = tmp_path / "c.toml"
    file.write_text(text)
    line = failure(run_longspur("generate", *SHORT, "--config", file), 2)
    assert part in line
    assert str(file) in line


def test_missing_config_file_and_bad_variable(run_longspur):
    assert "/nowhere.toml" in failure(run_longspur("generate", "--config", "/nowhere.toml"), 2)
    env = os.environ | {"LONGSPUR_TOP_K": "x"}
    assert "LONGSPUR_TOP_K: found 'x'" in failure(run_longspur("generate", *SHORT, env=env), 2)


# ---- generate


def test_generate_json_keys(longspur_json, smollm2):
    out = longspur_json("generate", "-m", smollm2, *SHORT, "--logprobs", 2)
    assert set(out) == {
        "text", "tokens", "logprobs", "finish_reason", "usage", "timing", "memory", "attention",
    }  # fmt: skip
    assert len(out["tokens"]) == 8
    assert out["finish_reason"] == "length"
    assert out["usage"] == {"prompt_tokens": 4, "completion_tokens": 8, "total_tokens": 12}
    timing = {"load_s", "prefill_s", "decode_s", "prefill_tokens_per_s", "decode_tokens_per_s"}
    assert timing <= set(out["timing"])
    assert set(out["memory"]) == {"weights_bytes", "kv_bytes", "peak_rss_bytes"}
    assert all(value > 0 for value in out["memory"].values())
    assert out["attention"]["kind"] == "dense"
    assert [item["id"] for item in out["logprobs"]] == out["tokens"]
    for item in out["logprobs"]:  # greedy: the token is the best of the two
        assert item["top"][0]["id"] == item["id"]
        assert item["top"][0]["logprob"] == item["logprob"] > item["top"][1]["logprob"]
    assert longspur_json("generate", "-m", smollm2, *SHORT)["logprobs"] is None


def test_plain_output_is_the_text_and_statistics_are_on_stderr(
    run_longspur, longspur_json, smollm2
):
    text = longspur_json("generate", "-m", smollm2, *SHORT)["text"]
    done = run_longspur("generate", "-m", smollm2, *SHORT)
    assert done.stdout.decode().removesuffix("\n") == text.removesuffix("\n")
    for part in (b"tokens/s", b"first token after", b"MiB"):
        assert part in done.stderr
    assert run_longspur("generate", "-m", smollm2, *SHORT, "--no-stats").stderr == b""


def test_prompt_sources_are_the_same_prompt(longspur_json, smollm2, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"One two three four")
    flags = ("generate", "-m", smollm2, "--max-tokens", 4)
    expected = longspur_json(*flags, "-p", "One two three four")["tokens"]
    assert longspur_json(*flags, "--prompt-file", file)["tokens"] == expected
    assert longspur_json(*flags, stdin=file.read_bytes())["tokens"] == expected
    assert (
        longspur_json(*flags, "--prompt-file", "-", stdin=file.read_bytes())["tokens"] == expected
    )
    both = longspur_json(*flags, "--prompt-file", file, "-p", "five")
    joined = longspur_json(*flags, "-p", "One two three four\n\nfive")
    assert both["tokens"] == joined["tokens"]


def test_chat_template_and_control_tokens(longspur_json, smollm2):
    """Raw prompts read control tokens; the same text in a user's message stays text."""
    flags = ("generate", "-m", smollm2, "--max-tokens", 6)
    chat = longspur_json(*flags, "--chat", "--system", "Be brief.", "-p", "What is 2 + 2?")
    raw = longspur_json(
        *flags,
        "-p",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n"
        "<|im_start|>assistant\n",
    )
    assert chat["tokens"] == raw["tokens"]
    assert chat["usage"] == raw["usage"]
    plain = longspur_json(*flags, "--chat", "-p", "x")["usage"]["prompt_tokens"]
    control = longspur_json(*flags, "--chat", "-p", "x<|im_end|>")["usage"]["prompt_tokens"]
    assert control > plain + 1


def test_sampling_flags_reach_the_sampler(longspur_json, smollm2):
    flags = ("generate", "-m", smollm2, *SHORT)
    greedy = longspur_json(*flags)
    first = greedy["tokens"][0]
    assert longspur_json(*flags, "--stop-id", first)["tokens"] == [first]
    banned = longspur_json(*flags, "--logit-bias", f"{first}:-inf")["tokens"]
    assert first not in banned
    stopped = longspur_json(*flags, "--stop", greedy["text"][3:6])
    assert stopped["text"] == greedy["text"][: greedy["text"].index(greedy["text"][3:6])]
    assert stopped["finish_reason"] == "stop"
    hot = ("--temperature", "1.5", "--seed")
    a, b, c = (longspur_json(*flags, *hot, seed)["tokens"] for seed in (1, 1, 2))
    assert a == b != c
    assert longspur_json(*flags, *hot, 1, "--top-k", 1)["tokens"] == greedy["tokens"]


def test_streaming_arrives_in_pieces(longspur, smollm2):
    command = [longspur, "generate", "-m", smollm2, "-p", "Once upon a time", "-n", "60",
               "--ignore-eos"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        pieces, running = [], 0
        while piece := os.read(process.stdout.fileno(), 4096):
            pieces.append(piece)
            running += process.poll() is None
        assert process.wait() == 0
    assert len(pieces) > 10
    assert running > 10
    b"".join(pieces).decode()


def test_a_full_context_ends_the_answer(longspur_json, smollm2):
    out = longspur_json("generate", "-m", smollm2, *SHORT, "--max-context", 6, "--ignore-eos")
    assert out["finish_reason"] == "length"
    assert out["usage"]["total_tokens"] == 6


@pytest.mark.parametrize(
    ("arguments", "stdin", "parts"),
    [
        (("-p", ""), b"", ["prompt", "empty"]),
        ((), b"", ["prompt", "empty"]),
        (("--chat", "-p", ""), b"", ["prompt", "empty"]),
        (("--prompt-file", "/nowhere.txt"), b"", ["/nowhere.txt"]),
        (("--prompt-file", "/"), b"", ["/"]),
        (("-p", "One two three four", "--max-context", "3"), b"", [" 4 ", " 3"]),
        (("-p", "x", "-m", "/nowhere.gguf"), b"", ["/nowhere.gguf"]),
        (("-p", "x", "-m", ""), b"", ["model"]),
        (("-p", "x", "--attention", "moba"), b"", ["moba"]),
    ],
)
def test_bad_prompts_and_models(run_longspur, smollm2, arguments, stdin, parts):
    done = run_longspur("generate", "-m", smollm2, *arguments, stdin=stdin)
    line = failure(done, 1)
    assert all(part in line for part in parts)


def test_any_bytes_are_a_prompt(longspur_json, smollm2):
    stdin = b"\xff\xfe caf\xc3\xa9 \xf0\x9f\x99 \x00 end"
    out = longspur_json("generate", "-m", smollm2, "--max-tokens", 4, stdin=stdin)
    assert len(out["tokens"]) >= 1


def test_json_errors_leave_stdout_empty(run_longspur, smollm2):
    failure(run_longspur("generate", "-m", smollm2, "-p", "", "--json"), 1)
    failure(run_longspur("generate", "-m", smollm2, "--json", "--bogus"), 2)


def test_sampling_values_outside_the_vocabulary(run_longspur, smollm2):
    for flag, value in (("--stop-id", 49152), ("--logit-bias", "49152:1"), ("--logprobs", 50000)):
        assert flag in failure(run_longspur("generate", "-m", smollm2, *SHORT, flag, value), 2)


def test_full_disk_and_gone_reader_on_stdout(longspur, smollm2):
    command = [longspur, "generate", "-m", smollm2, *SHORT]
    with FULL.open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"stdout" in done.stderr
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert done.stderr == b""


def interrupted(command, wait_for, **streams):
    """Starts, waits until `wait_for(process)`, sends SIGINT; (code, rest of stdout, stderr)."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    with subprocess.Popen([str(part) for part in command], **pipes) as process:
        wait_for(process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


ENDLESS = ("-p", "Once upon a time", "--max-tokens", 100000, "--ignore-eos")


def test_sigint_keeps_what_was_printed(longspur, smollm2):
    seen = []
    code, out, err = interrupted(
        [longspur, "generate", "-m", smollm2, *ENDLESS],
        lambda process: seen.append(os.read(process.stdout.fileno(), 100)),
    )
    assert code == 130
    assert seen[0]
    assert out.endswith(b"\n")
    assert b"ended by cancelled" in err


def test_sigint_with_json_gives_the_object(longspur, smollm2):
    code, out, _ = interrupted(
        [longspur, "generate", "-m", smollm2, *ENDLESS, "--json"], lambda _: time.sleep(2)
    )
    assert code == 130
    found = json.loads(out)
    assert found["finish_reason"] == "cancelled"
    assert len(found["tokens"]) >= 1


# ---- batches


def batch(run_longspur, model, source, output, *flags):
    return run_longspur("generate", "-m", model, "--input", source, "--output", output, *flags)


def test_batch_gives_each_line_its_result(run_longspur, tiny, tmp_path):
    """Wrong lines become errors in their place, the others go on."""
    lines = [
        {"id": "a", "prompt": [3, 4, 5], "max_tokens": 4, "ignore_eos": True},
        {"id": "typo", "prompt": [3], "max_tokns": 4},
        {"id": 7, "prompt": [6] * 70, "max_tokens": 3, "logprobs": 1, "ignore_eos": True},
        {"id": "type", "prompt": [3], "temperature": "hot"},
        {"id": "range", "prompt": [3], "top_p": 0},
        {"id": "vocab", "prompt": [320]},
        {"id": "long", "prompt": [3] * 257},
        {"id": "none"},
        {"id": "text", "prompt": "needs a tokenizer"},
        {"prompt": [9, 9], "max_tokens": 2, "ignore_eos": True},
    ]
    source, output = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    done = batch(run_longspur, tiny, source, output, "--json")
    assert done.returncode == 1
    summary = json.loads(done.stdout)
    assert (summary["requests"], summary["finished"], summary["failed"]) == (10, 10, 7)
    results = {row["id"]: row for row in read_lines(output)}
    assert len(results) == 10
    assert [len(results[key]["tokens"]) for key in ("a", 7, 10)] == [4, 3, 2]
    assert results[7]["usage"]["prompt_tokens"] == 70
    assert len(results[7]["logprobs"]) == 3
    for key, part in {
        "typo": "max_tokns", "type": "temperature", "range": "top_p", "vocab": "320",
        "long": "256", "none": "prompt", "text": "tokenizer",
    }.items():  # fmt: skip
        assert results[key]["finish_reason"] == "error"
        assert part in results[key]["error"]
        assert "tokens" not in results[key]


def test_batch_equals_single_runs(run_longspur, longspur_json, smollm2, tmp_path):
    prompts = ["One two three four", "The sea"]
    lines = [{"id": text, "prompt": text, "max_tokens": 4} for text in prompts]
    source, output = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    assert batch(run_longspur, smollm2, source, output, "--compute", "fp32").returncode == 0
    for row in read_lines(output):
        alone = longspur_json(
            "generate", "-m", smollm2, "--compute", "fp32", "-p", row["id"], "-n", 4
        )
        assert (row["text"], row["tokens"]) == (alone["text"], alone["tokens"])


def test_batch_messages_and_defaults_from_flags(run_longspur, longspur_json, smollm2, tmp_path):
    lines = [
        {"id": "messages", "messages": [{"role": "user", "content": "Hello"}]},
        {"id": "chat", "prompt": "Hello"},
    ]
    source, output = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    done = batch(run_longspur, smollm2, source, output, "--chat", "--max-tokens", 5)
    assert done.returncode == 0
    alone = longspur_json("generate", "-m", smollm2, "--chat", "-p", "Hello", "-n", 5)
    for row in read_lines(output):
        assert row["tokens"] == alone["tokens"]


def many(tmp_path, count, tokens):
    lines = [
        {"id": i, "prompt": [3 + i % 300, 5], "max_tokens": tokens, "ignore_eos": True}
        for i in range(count)
    ]
    return write_lines(tmp_path / "in.jsonl", lines)


def test_killed_batch_goes_on(longspur, run_longspur, tiny, tmp_path):
    """kill -9 at several moments; the end equals a run that was left alone, finished lines stay
    byte for byte."""
    source, output = many(tmp_path, 100, 60), tmp_path / "out.jsonl"
    command = [longspur, "generate", "-m", tiny, "--input", source, "--output", output]
    kept = b""
    for wanted in (1, 20, 60):
        with subprocess.Popen(
            [str(part) for part in command], stderr=subprocess.DEVNULL
        ) as process:
            end = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < end:
                if output.exists() and output.read_bytes().count(b"\n") >= wanted:
                    break
                time.sleep(0.005)
            process.kill()
        now = output.read_bytes()
        assert now.startswith(kept)
        kept = now[: now.rfind(b"\n") + 1]
        output.write_bytes(kept + b'{"id":99,"te')  # a torn line, as of a kill within a write
    assert batch(run_longspur, tiny, source, output).returncode == 0
    assert output.read_bytes().startswith(kept)
    straight = tmp_path / "straight.jsonl"
    assert batch(run_longspur, tiny, source, straight).returncode == 0
    rows, expected = read_lines(output), read_lines(straight)
    assert len(rows) == len(expected) == 100
    by_id = {row["id"]: row["tokens"] for row in rows}
    assert by_id == {row["id"]: row["tokens"] for row in expected}
    before = output.read_bytes()
    again = batch(run_longspur, tiny, source, output)
    assert again.returncode == 0
    assert output.read_bytes() == before


def test_interrupted_batch_goes_on(longspur, run_longspur, tiny, tmp_path):
    source, output = many(tmp_path, 100, 60), tmp_path / "out.jsonl"

    def some_lines(process):
        while process.poll() is None and not (output.exists() and output.stat().st_size > 0):
            time.sleep(0.005)

    command = [longspur, "generate", "-m", tiny, "--input", source, "--output", output]
    code, _, err = interrupted(command, some_lines)
    assert code == 130
    assert b"left" in err
    assert 1 <= len(read_lines(output)) < 100
    assert batch(run_longspur, tiny, source, output).returncode == 0
    assert len(read_lines(output)) == 100


def test_full_disk_leaves_whole_lines(run_longspur, tiny, tmp_path):
    """A file-size limit stands for a full disk: the write that crosses it is cut short."""
    source, output = many(tmp_path, 32, 40), tmp_path / "out.jsonl"
    limit = 3000

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = ("generate", "-m", tiny, "--input", source, "--output", output)
    line = failure(run_longspur(*command, preexec_fn=limited), 1)
    assert str(output) in line
    assert 0 < output.stat().st_size <= limit
    assert output.read_bytes().endswith(b"\n")
    finished = read_lines(output)
    assert finished
    assert batch(run_longspur, tiny, source, output).returncode == 0
    assert read_lines(output)[: len(finished)] == finished


def test_batch_files_that_cannot_be(run_longspur, tmp_path):
    """All of it is seen before a model is loaded: the model does not exist."""
    source = write_lines(tmp_path / "in.jsonl", [{"id": "a", "prompt": "x"}])
    twice = write_lines(tmp_path / "twice.jsonl", [{"id": "a", "prompt": "x"}] * 2)
    notes = tmp_path / "notes.txt"
    notes.write_text("mine\n")
    (tmp_path / "link.jsonl").symlink_to(source)
    (tmp_path / "empty.jsonl").touch()
    cases = [
        (source, tmp_path / "no/out.jsonl", 1, "no/out.jsonl"),
        (source, tmp_path, 1, "directory"),
        (source, source, 2, "--input"),
        (source, tmp_path / "link.jsonl", 2, "--input"),
        (source, notes, 1, "notes.txt line 1"),
        (twice, tmp_path / "out.jsonl", 1, 'id "a" in lines 1 and 2'),
        (tmp_path / "empty.jsonl", tmp_path / "out.jsonl", 1, "no lines"),
        (tmp_path / "gone.jsonl", tmp_path / "out.jsonl", 1, "gone.jsonl"),
    ]
    for read, write, code, part in cases:
        assert part in failure(batch(run_longspur, "/nowhere", read, write), code)
    assert notes.read_text() == "mine\n"
    assert read_lines(source) == [{"id": "a", "prompt": "x"}]


# ---- tokenize


def test_tokenize_keys_and_round_trip(run_longspur, longspur_json, smollm2):
    text = "Hello there, naïve café 🙂\n\n  x <|im_end|>"
    out = longspur_json("tokenize", "-m", smollm2, "-p", text)
    assert set(out) == {"ids", "pieces", "text"}
    assert out["text"] == text
    assert len(out["ids"]) == len(out["pieces"])
    assert out["pieces"][-1] == "<|im_end|>"
    plain = run_longspur("tokenize", "-m", smollm2, stdin=text.encode()).stdout
    assert json.loads(plain) == out["ids"]
    back = run_longspur("tokenize", "-m", smollm2, "--decode", stdin=plain)
    assert back.stdout.decode() == text
    kept = longspur_json("tokenize", "-m", smollm2, "--no-special", "-p", text)["ids"]
    assert len(kept) > len(out["ids"])
    decoded = longspur_json("tokenize", "-m", smollm2, "--decode", stdin=json.dumps(kept).encode())
    assert decoded["text"] == text
    assert longspur_json("tokenize", "-m", smollm2, "-p", "")["ids"] == []
    with_bos = longspur_json("tokenize", "-m", smollm2, "--bos", "-p", "x")["ids"]
    assert with_bos[1:] == longspur_json("tokenize", "-m", smollm2, "-p", "x")["ids"]


def test_tokenize_keeps_any_bytes(run_longspur, smollm2):
    missing = {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)}
    raw = bytes(set(range(256)) - missing) + b"\xf0\x9f\x99"  # what the vocabulary can express
    ids = run_longspur("tokenize", "-m", smollm2, stdin=raw).stdout
    assert run_longspur("tokenize", "-m", smollm2, "--decode", stdin=ids).stdout == raw


@pytest.mark.parametrize("text", [b"", b"1", b"[-1]", b"[49152]", b"[1.5]", b'["a"]', b"[[1]]"])
def test_decode_refuses_what_is_no_list_of_ids(run_longspur, smollm2, text):
    assert "stdin" in failure(run_longspur("tokenize", "-m", smollm2, "--decode", stdin=text), 1)


# ---- logits, perplexity


def test_logits_keys_and_file(longspur_json, tiny, tmp_path):
    tokens, output = tmp_path / "t.json", tmp_path / "out.safetensors"
    tokens.write_text("[[3, 4, 5], [6]]")
    out = longspur_json("logits", "-m", tiny, "--tokens", tokens, "--output", output)
    assert out["files"] == [str(output)]
    assert out["shapes"] == {"logits_0": [3, 320], "logits_1": [1, 320]}
    with safe_open(output, "pt") as file:
        assert set(file.keys()) == set(out["shapes"])
        assert file.get_tensor("logits_0").dtype == torch.float32
    last = longspur_json("logits", "-m", tiny, "--tokens", tokens, "--output", output, "--last")
    assert last["shapes"] == {"logits_0": [1, 320], "logits_1": [1, 320]}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[]", "empty list"),
        ("[1]", "list 0"),
        ("[[1], []]", "list 1: found no ids"),
        ("[[1], [320]]", "list 1: found 320"),
        ("[[-1]]", "found -1"),
        ("[[1.0]]", "found 1.0"),
        ("{}", "found {}"),
        ("[[1]", "invalid JSON"),
        (json.dumps([[1] * 257]), "257 ids, expected at most the context of 256"),
    ],
)
def test_wrong_token_files(run_longspur, tiny, tmp_path, text, part):
    tokens, output = tmp_path / "t.json", tmp_path / "out.safetensors"
    tokens.write_text(text)
    line = failure(run_longspur("logits", "-m", tiny, "--tokens", tokens, "--output", output), 1)
    assert part in line
    assert str(tokens) in line
    assert not output.exists()


def test_logits_leave_nothing_half_written(run_longspur, tiny, tmp_path):
    tokens, folder = tmp_path / "t.json", tmp_path / "out"
    folder.mkdir()
    tokens.write_text(json.dumps([[3] * 200] * 4))
    flags = ("logits", "-m", tiny, "--tokens", tokens)
    assert "no/x" in failure(run_longspur(*flags, "--output", tmp_path / "no/x"), 1)
    assert "folder" in failure(run_longspur(*flags, "--output", folder), 1)

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    failure(run_longspur(*flags, "--output", folder / "x.safetensors", preexec_fn=limited), 1)
    assert list(folder.iterdir()) == []


def test_perplexity_keys_and_windows(longspur_json, run_longspur, smollm2, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("One two three four five six seven eight nine ten.")
    flags = ("perplexity", "-m", smollm2, "--text", text)
    count = len(longspur_json("tokenize", "-m", smollm2, "-p", text.read_text())["ids"])
    out = longspur_json(*flags, "--context", 4)
    assert {"perplexity", "nll", "tokens", "windows"} <= set(out)
    windows = [min(4, count - begin) for begin in range(0, count, 4)]
    windows = [size for size in windows if size > 1]
    assert out["windows"] == len(windows)
    assert out["tokens"] == sum(windows) - len(windows)
    assert longspur_json(*flags, "--max-tokens", 5)["tokens"] == 4
    last = longspur_json(*flags, "--context", 8, "--max-tokens", 8, "--last", 2)
    assert last["tokens"] == 2
    head = longspur_json(*flags, "--context", 8, "--max-tokens", 6)
    whole = longspur_json(*flags, "--context", 8, "--max-tokens", 8)
    assert 7 * whole["nll"] - 5 * head["nll"] == pytest.approx(2 * last["nll"], rel=1e-3)
    assert "--context" in failure(run_longspur(*flags, "--context", 1), 2)
    assert "8192" in failure(run_longspur(*flags, "--context", 9000), 2)
    text.write_text("x")
    assert "at least 2" in failure(run_longspur(*flags), 1)


def test_eval_finds_what_stands_far_back(longspur_json, smollm2):
    """The default model finds keys and needles at a thousand tokens and copies most of a quote."""
    out = longspur_json("eval", "-m", smollm2, "--lengths", "600,1000", "--depths", "0,90")
    cells = out["cells"]
    assert [cell["task"] for cell in cells] == ["passkey"] * 4 + ["needle"] * 4 + ["quote"] * 4
    assert {(cell["length"], cell["depth"]) for cell in cells} == {
        (length, depth) for length in (600, 1000) for depth in (0.0, 0.9)
    }
    assert all(cell["exact"] == 1 for cell in cells if cell["task"] == "passkey")
    assert out["mean"] == pytest.approx(sum(cell["score"] for cell in cells) / len(cells))
    assert out["mean"] > 0.8


def test_nvfp4_cache_is_small_and_close(longspur_json, smollm2, tmp_path):
    """What `--kv-type nvfp4` promises, on English text: bytes, quality, no matter how it is cut."""
    from pydoc_data.topics import topics

    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(topics[name] for name in sorted(topics))[:12000])
    flags = ("perplexity", "-m", smollm2, "--text", text, "--context", 1024)
    nvfp4 = ("--kv-type", "nvfp4")
    plain, packed = longspur_json(*flags), longspur_json(*flags, *nvfp4)
    assert plain["tokens"] == packed["tokens"] > 1000
    assert 0 < abs(packed["perplexity"] / plain["perplexity"] - 1) < 0.015
    cut = longspur_json(*flags, *nvfp4, "--prefill-chunk", 100)
    assert abs(cut["nll"] - packed["nll"]) < 1e-3
    bytes_at = [
        longspur_json("inspect", smollm2, "--max-context", 8192, "--max-sequences", 1, *kind)[
            "memory"
        ]["kv_bytes"]
        for kind in ((), nvfp4)
    ]
    assert bytes_at[1] <= 0.30 * bytes_at[0]


def test_calibrate_writes_thresholds_of_the_model(longspur_json, run_longspur, smollm2, tmp_path):
    text, output = tmp_path / "text.txt", tmp_path / "thresholds.json"
    text.write_text("\n".join(topics.values())[:9000])
    flags = ("calibrate", "-m", smollm2, "--text", text, "-o", output, "--max-tokens", 1500)
    out = longspur_json(*flags, "--tables", "--with-error", "--estimator", "pooled:128+mean")
    table = json.loads(output.read_text())
    assert table["format"] == "longspur-xattention-thresholds"
    assert table["estimator"] == out["estimator"] == "pooled:128+mean"
    assert [len(row) for row in table["thresholds"]] == [9] * 30
    assert all(0 <= cell <= 1 for row in table["thresholds"] for cell in row)
    assert all(len(set(row[0:3])) == 1 for row in table["thresholds"])  # masks of KV heads
    assert out["lost"] <= 0.05 and 0 < out["density"] <= 1
    assert len(out["heads"]) == 30 * 3
    for head in out["heads"]:
        lost = [choice["lost"] for choice in head["choices"]]
        density = [choice["density"] for choice in head["choices"]]
        assert lost == sorted(lost, reverse=True) and density == sorted(density)
        # what is left after rounding to 16 bits
        assert head["choices"][-1]["error"] < 0.02 and head["choices"][-1]["lost"] < 1e-6
    dense = longspur_json(*flags, "--target", 0)
    assert dense["lost"] == 0
    profiled = longspur_json(*flags, "--method", "profiling", "--per-head")
    assert 0.5 < profiled["mean_threshold"] <= 1


def test_calibrate_refuses(run_longspur, smollm2, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("too short")
    flags = ("calibrate", "-m", smollm2, "--text", text, "-o", tmp_path / "x.json")
    assert "at least 512" in failure(run_longspur(*flags), 1)
    text.write_text("word " * 700)
    assert "antidiagonal" in failure(run_longspur(*flags, "--estimator", "best"), 2)
    assert "8192" in failure(run_longspur(*flags, "--context", 9000), 2)
    assert "0 to 1" in failure(run_longspur(*flags, "--target", 2), 2)
    assert "--output" in failure(run_longspur("calibrate", "--text", text), 2)
    folder = tmp_path / "missing" / "x.json"
    assert "missing" in failure(run_longspur("calibrate", "--text", text, "-o", folder), 1)


# ---- chat


def test_chat_remembers_until_reset(run_longspur, longspur_json, smollm2):
    lines = b"Hello\nAnd you?\n/reset\nHello\n"
    out = longspur_json("chat", "-m", smollm2, "--max-tokens", 8, stdin=lines)
    assert [message["role"] for message in out["messages"]] == ["user", "assistant"]
    alone = longspur_json("generate", "-m", smollm2, "--chat", "-n", 8, "-p", "Hello")
    assert out["messages"][1]["content"] == alone["text"]
    out = longspur_json("chat", "-m", smollm2, "-n", 8, stdin=b"Hello\n\nAnd you?\n/exit\nno")
    assert len(out["messages"]) == 4
    plain = run_longspur("chat", "-m", smollm2, "-n", 8, stdin=b"Hello\n")
    assert plain.stdout.decode() == alone["text"] + "\n"


def test_chat_survives_a_message_that_is_too_long(run_longspur, smollm2):
    stdin = b"word " * 200 + b"\nHi\n"
    done = run_longspur("chat", "-m", smollm2, "--max-context", 100, "-n", 4, stdin=stdin)
    assert done.returncode == 1
    assert done.stderr.count(b"longspur: ") == 1
    assert b"100" in done.stderr
    assert done.stdout.strip()
