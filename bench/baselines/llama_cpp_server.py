"""llama.cpp for `longspur bench --compare llama.cpp`: a loaded model that answers JSON lines.

    llama_cpp_server.py    (requests on stdin, answers on stdout, one JSON object a line)

First line in: {"model": path, "context": tokens, "threads": n}; the answer names the program and
its version. Then any number of {"flash_attention": bool, "prompt": [ids], "tokens": [ids]}: the
prompt is evaluated, then the tokens one at a time. The answer gives the seconds of each and what
llama.cpp would have chosen after the prompt and after each token. A failure is {"error": text}, a
missing package {"missing": text}.

Both settings of flash attention stay loaded, so that runs can alternate. Batch and micro-batch are
512 tokens; only evaluation is timed, not the choice of a token.
"""

import json
import os
import sys
import time

BATCH = 512


def take_stdout():
    """The real stdout for answers; whatever else prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


class Models:
    """The model under each setting of flash attention, loaded on first use."""

    def __init__(self, llama_cpp, model: str, context: int, threads: int):
        self.llama_cpp = llama_cpp
        self.arguments = {
            "model_path": model,
            "n_ctx": context,
            "n_batch": BATCH,
            "n_ubatch": BATCH,
            "n_threads": threads,
            "n_threads_batch": threads,
            "n_gpu_layers": 0,
            "logits_all": False,
            "verbose": False,
        }
        self.loaded = {}

    def get(self, flash_attention: bool):
        if flash_attention not in self.loaded:
            model = self.llama_cpp.Llama(flash_attn=flash_attention, **self.arguments)
            model.eval([0] * 16)  # the first evaluation also pages weights in
            self.loaded[flash_attention] = model
        return self.loaded[flash_attention]

    def best_token(self, model) -> int:
        import numpy as np

        logits = self.llama_cpp.llama_get_logits_ith(model.ctx, -1)
        return int(np.ctypeslib.as_array(logits, shape=(model.n_vocab(),)).argmax())


def evaluate(model, tokens: list[int]) -> float:
    start = time.perf_counter()
    model.eval(tokens)
    return time.perf_counter() - start


def run(models: Models, request: dict) -> dict:
    model = models.get(request["flash_attention"])
    model.reset()
    prefill = evaluate(model, request["prompt"])
    best = [models.best_token(model)]
    decode = []
    for token in request["tokens"]:
        decode.append(evaluate(model, [token]))
        best.append(models.best_token(model))
    return {"prefill_s": prefill, "decode_s": decode, "best": best}


def load(request: dict) -> tuple[Models, dict]:
    import llama_cpp

    models = Models(llama_cpp, request["model"], request["context"], request["threads"])
    models.get(True)
    models.get(False)
    version = llama_cpp.__version__
    return models, {"name": "llama.cpp", "version": f"llama-cpp-python {version}"}


def main() -> int:
    answers = take_stdout()
    models = None
    for line in sys.stdin:
        try:
            request = json.loads(line)
            if models is None:
                models, answer = load(request)
            else:
                answer = run(models, request)
        except ImportError as error:
            answer = {"missing": str(error)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
