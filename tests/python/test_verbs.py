"""The verbs that measure and explain: inspect, doctor and bench."""

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


def failed_in_one_line(done, code: int, *words: str) -> None:
    text = done.stderr.decode()
    assert done.returncode == code, text
    assert done.stdout == b""
    assert text.startswith("longspur: ") and text.count("\n") == 1, text
    for word in words:
        assert word in text


# --- inspect


def test_inspect_says_what_the_file_holds(longspur_json, smollm2):
    shown = longspur_json("inspect", smollm2, "--tensors")
    assert shown["architecture"] == "llama"
    assert shown["file_bytes"] == smollm2.stat().st_size
    sizes = {"layers": 30, "hidden": 576, "heads": 9, "kv_heads": 3, "head_dim": 64}
    assert {key: shown[key] for key in sizes} == sizes
    assert (shown["vocab"], shown["context"]) == (49152, 8192)
    assert shown["tokenizer"] == {"model": "gpt2", "kind": "byte-level BPE", "pre": "smollm"}
    assert shown["chat_template"] is True and shown["tied_embeddings"] is True
    assert shown["rope"]["scaling"] == "none" and shown["sliding_window"] is None
    tensors = shown["tensors"]
    assert len(tensors) == shown["tensor_count"]
    for group in shown["tensor_types"]:
        same = [t for t in tensors if t["dtype"] == group["dtype"]]
        assert len(same) == group["count"]
        assert sum(t["bytes"] for t in same) == group["bytes"]
    assert {"name": "output_norm.weight", "dtype": "F32", "shape": [576], "bytes": 2304} in tensors
    assert shown["parameters"] == sum(g["elements"] for g in shown["tensor_types"])


def test_inspect_plans_what_a_run_then_takes(longspur_json, smollm2):
    limits = ("--max-context", 640, "--max-sequences", 1)
    plan = longspur_json("inspect", smollm2, *limits)["memory"]
    run = longspur_json("generate", "-m", smollm2, *limits, "-p", "Hi", "--max-tokens", 1)
    assert plan["weights_bytes"] == run["memory"]["weights_bytes"]
    assert plan["kv_bytes"] == run["memory"]["kv_bytes"] == 640 * plan["kv_bytes_per_token"]
    parts = plan["weights_bytes"] + plan["kv_bytes"] + plan["workspace_bytes"]
    assert plan["total_bytes"] == parts


def test_inspect_plans_more_for_more(longspur_json, smollm2):
    def total(*options: object) -> int:
        return longspur_json("inspect", smollm2, "--max-context", 512, *options)["memory"][
            "total_bytes"
        ]

    assert total("--max-sequences", 4) > total()
    assert total("--compute", "fp32") > 3 * total()


def test_inspect_of_what_does_not_fit_says_so(longspur_json, smollm2):
    plan = longspur_json("inspect", smollm2, "--kv-bytes", 1000)["memory"]
    assert plan["fits"] is False and "context of 8192" in plan["refusal"]
    assert plan["kv_bytes"] == 8192 * plan["kv_bytes_per_token"]


def test_inspect_for_people_names_the_same_facts(run_longspur, smollm2):
    done = run_longspur("inspect", smollm2, "--tensors")
    text = done.stdout.decode()
    assert done.returncode == 0 and done.stderr == b""
    for fact in ("llama", "8192 tokens", "byte-level BPE", "Q4_1", "blk.29.ffn_down.weight"):
        assert fact in text


@pytest.mark.parametrize("keep", [0, 3, 4, 20, 1000, 1_000_000])
def test_inspect_refuses_truncated_files(run_longspur, smollm2, tmp_path, keep):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(smollm2.read_bytes()[:keep])
    failed_in_one_line(run_longspur("inspect", cut), 1, "cut.gguf")


def test_inspect_refuses_what_is_not_there(run_longspur, tmp_path):
    failed_in_one_line(run_longspur("inspect", tmp_path / "none.gguf"), 1, "none.gguf")
    failed_in_one_line(run_longspur("inspect", tmp_path), 1, "config.json")
    failed_in_one_line(run_longspur("inspect", "--device", "gpu"), 2, "gpu")


def test_inspect_reads_rope_and_window_of_folders(longspur_json, tmp_path):
    pytest.importorskip("transformers")
    import tiny_models

    model = tiny_models.build("qwen2-window")
    tiny_models.save(model, tmp_path / "window", shards=2)
    shown = longspur_json("inspect", tmp_path / "window")
    assert shown["architecture"] == "qwen2" and shown["format"] == "safetensors"
    assert (shown["sliding_window"], shown["sliding_window_layers"]) == (21, 2)
    assert shown["parameters"] == sum(p.numel() for p in model.parameters())
    assert shown["tokenizer"] is None and shown["chat_template"] is False
    tiny_models.save(tiny_models.build("llama-yarn"), tmp_path / "yarn")
    rope = longspur_json("inspect", tmp_path / "yarn")["rope"]
    assert (rope["scaling"], rope["factor"], rope["original_context"]) == ("yarn", 4, 64)


def test_inspect_without_the_device_fails(run_longspur, smollm2, tmp_path):
    environment = {**os.environ, "LONGSPUR_CUDA_LIBRARY": str(tmp_path / "none.so")}
    done = run_longspur("inspect", smollm2, "--device", "cuda", env=environment)
    failed_in_one_line(done, 1, "device cuda", "none.so")


# --- doctor


def test_doctor_finds_the_machine_in_order(longspur_json, smollm2):
    found = longspur_json("doctor")
    assert found["ok"] is True and all(test["passed"] for test in found["self_test"])
    assert {test["name"].split()[0] for test in found["self_test"]} == {
        "qgemm",
        "attention",
        "sampling",
    }
    assert found["cpu"]["threads"] == len(os.sched_getaffinity(0))
    assert found["memory"]["total_bytes"] > found["memory"]["available_bytes"] > 0
    assert set(found["kernels"]) == {"qgemm", "attention"}
    assert found["build"].startswith("longspur ")


def test_doctor_says_where_it_looked(longspur_json, tmp_path):
    environment = {**os.environ, "LONGSPUR_MODELS": str(tmp_path)}
    (tmp_path / "smollm2-135m-instruct-q4_1.gguf").write_bytes(b"")
    model = longspur_json("doctor", env=environment)["models"][0]
    assert model["path"] == str(tmp_path / model["file"])
    assert model["looked_in"][0] == str(tmp_path)


def test_doctor_without_a_gpu_library_says_why(longspur_json, tmp_path):
    library = tmp_path / "none.so"
    environment = {**os.environ, "LONGSPUR_CUDA_LIBRARY": str(library)}
    cuda = longspur_json("doctor", env=environment)["cuda"]
    assert cuda["available"] is False and cuda["loaded"] is False and cuda["devices"] == []
    assert str(library) in cuda["reason"]


def test_doctor_sees_fewer_threads_when_it_has_fewer(longspur_json):
    one = min(os.sched_getaffinity(0))
    found = longspur_json("doctor", preexec_fn=lambda: os.sched_setaffinity(0, {one}))
    assert found["cpu"]["threads"] == 1


def test_doctor_for_people(run_longspur):
    done = run_longspur("doctor")
    assert done.returncode == 0 and done.stderr == b""
    for word in (b"processor", b"kernels", b"huge pages", b"model", b"self-test"):
        assert word in done.stdout


# --- bench


TINY = ("--lengths", 24, "--tokens", 3, "--repeat", 1)


def test_bench_measures_and_writes_the_same_object(longspur_json, smollm2, tmp_path):
    output = tmp_path / "bench.json"
    found = longspur_json("bench", "-m", smollm2, *TINY, "--batch", "1,3", "--output", output)
    assert found == json.loads(output.read_text())
    assert [(row["context"], row["batch"]) for row in found["rows"]] == [(24, 1), (24, 3)]
    for row in found["rows"]:
        assert row["prefill_tokens_per_s"] > 0 and row["decode_tokens_per_s"] > 0
        assert row["details"]["longspur"]["decode_step_s"]["steps"] == 3
    assert found["baseline"] is None and found["correctness"] == {"batch_equals_single": True}
    assert found["start"]["first_token_s"] > 0
    assert found["start"]["prompt_tokens"] == 16
    assert found["memory"]["peak_rss_bytes"] > found["memory"]["weights_bytes"]
    assert list(tmp_path.iterdir()) == [output]


def test_bench_results_become_a_result_file(longspur_json, smollm2, tmp_path):
    import record_bench

    raw = longspur_json("bench", "-m", smollm2, *TINY, "--batch", 1, "--no-start")
    result = record_bench.record(raw, "a processor", "2024-01-01")
    assert list(result["columns"])[:2] == ["context", "batch"]
    assert "details" not in result["columns"]
    assert result["note"] == raw["note"]


def test_bench_lengths_must_fit_the_context(run_longspur, smollm2):
    model = ("bench", "-m", smollm2)
    failed_in_one_line(run_longspur(*model, "--lengths", 8192), 2, "--lengths", "8192")
    failed_in_one_line(run_longspur(*model, "--tokens", 8191), 2, "--tokens", "8192")


@pytest.mark.parametrize(
    "text", ["", ",", "1,", "a", "1.5", "-3", "0", "1;2", "99999999999999999999"]
)
def test_bench_lists_are_checked(run_longspur, smollm2, text):
    failed_in_one_line(run_longspur("bench", "-m", smollm2, f"--lengths={text}"), 2, "--lengths")


def test_bench_output_is_tried_before_measuring(run_longspur, smollm2, tmp_path):
    done = run_longspur("bench", "-m", smollm2, "--output", tmp_path / "no" / "x.json", timeout=10)
    failed_in_one_line(done, 1, "x.json")
    failed_in_one_line(run_longspur("bench", "-m", smollm2, "--output", tmp_path), 1, "folder")


def test_bench_default_lengths_shrink_to_the_context(longspur_json, tmp_path):
    pytest.importorskip("transformers")
    import tiny_models

    tiny_models.save(tiny_models.build("llama"), tmp_path / "tiny")
    options = ("--tokens", 4, "--repeat", 1, "--batch", "1,2")
    found = longspur_json("bench", "-m", tmp_path / "tiny", *options)
    assert [(row["context"], row["batch"]) for row in found["rows"]] == [(250, 1), (250, 2)]
    assert found["start"] is None  # no tokenizer, no text to begin with


def test_bench_stops_when_asked(longspur, smollm2):
    command = [longspur, "bench", "-m", smollm2, "--lengths", "4000", "--repeat", "1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stderr.readline()  # the first progress: handlers are there
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 130 and out == b""
    assert error.endswith(b"longspur: interrupted\n")


# The baseline is played by a script, so that the comparison is tested where llama.cpp is not.
PLAYER = """#!{python}
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if "model" in request:
        answer = {first}
    else:
        n = len(request["tokens"])
        slow = 1 if request["flash_attention"] else 2
        best = request["tokens"] + [-1]
        answer = {{"prefill_s": slow, "decode_s": [slow] * n, "best": {best}}}
    print(json.dumps(answer), flush=True)
"""


def make_player(folder: Path, first: str, best: str = "best") -> Path:
    player = folder / "python"
    player.write_text(PLAYER.format(python=sys.executable, first=first, best=best))
    player.chmod(0o755)
    return player


NAMED = '{"name": "llama.cpp", "version": "of the test"}'


def test_bench_compares_with_the_better_setting(longspur_json, smollm2, tmp_path):
    player = make_player(tmp_path, NAMED)
    options = ("--batch", "1,2", "--no-start", "--compare", "llama.cpp", "--python", player)
    found = longspur_json("bench", "-m", smollm2, *TINY, "--tokens", 7, *options)
    assert found["baseline"] == "llama.cpp (of the test)"
    single, double = found["rows"]
    assert single["llama.cpp_prefill_tokens_per_s"] == 24  # one second with, two without
    assert single["llama.cpp_decode_tokens_per_s"] == 1
    assert single["decode_ratio"] == single["decode_tokens_per_s"]
    assert double["decode_ratio"] is None
    assert found["correctness"]["top1_agreement"] == pytest.approx(7 / 8)


def test_bench_refuses_rates_of_other_tokens(run_longspur, smollm2, tmp_path):
    player = make_player(tmp_path, NAMED, best="[-1] * (n + 1)")
    options = ("--batch", 1, "--no-start", "--compare", "llama.cpp", "--python", player)
    done = run_longspur("bench", "-m", smollm2, *TINY, *options)
    failed_in_one_line(done, 1, "0 % of greedy tokens")


def test_bench_says_how_to_install_the_baseline(run_longspur, smollm2, tmp_path):
    options = ("--compare", "llama.cpp", "--python")
    player = make_player(tmp_path, '{"missing": "No module named \'llama_cpp\'"}')
    done = run_longspur("bench", "-m", smollm2, *TINY, *options, player)
    failed_in_one_line(done, 1, "llama_cpp", "pip install")
    done = run_longspur("bench", "-m", smollm2, *TINY, *options, tmp_path / "nothing")
    failed_in_one_line(done, 1, "nothing", "cannot be run")
    silent = make_player(tmp_path, "sys.exit(0)")
    done = run_longspur("bench", "-m", smollm2, *TINY, *options, silent)
    failed_in_one_line(done, 1, "ended without an answer")


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
def test_bench_against_the_real_baseline(longspur_json, smollm2):
    options = ("--batch", 1, "--no-start", "--compare", "llama.cpp", "--python", sys.executable)
    found = longspur_json("bench", "-m", smollm2, *TINY, *options, timeout=300)
    assert found["correctness"]["top1_agreement"] >= 0.8
    assert found["baseline"].startswith("llama.cpp (llama-cpp-python ")
