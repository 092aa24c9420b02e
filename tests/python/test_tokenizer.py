"""The tokenizers against the `tokenizers` and `sentencepiece` packages: equal ids, equal text."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizer_kinds as kinds
from tokenizers import Tokenizer, normalizers, pre_tokenizers

COUNT = 10_000  # texts for each kind


@pytest.fixture(scope="session")
def probe(build_dir: Path) -> Callable[[Path, list[dict]], list[dict]]:
    """probe(model, requests): the answers of tests/tokenizer_probe.cpp."""
    binary = build_dir / "bin" / "tokenizer_probe"
    if not binary.exists():
        pytest.skip(f"{binary}: not built")

    def run(model: Path, requests: list[dict]) -> list[dict]:
        lines = "".join(json.dumps(request) + "\n" for request in requests)
        done = subprocess.run(
            [binary, model], input=lines.encode(), capture_output=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


@pytest.fixture(scope="session")
def refusal(build_dir: Path) -> Callable[[Path], str]:
    """The one line with which the tokenizer refuses to load."""

    def run(model: Path) -> str:
        done = subprocess.run(
            [build_dir / "bin" / "tokenizer_probe", model], capture_output=True, check=False
        )
        assert done.returncode == 1, done
        message = done.stderr.decode()
        assert message.count("\n") == 1 and message.startswith("tokenizer_probe: error: ")
        return message

    return run


@pytest.fixture(scope="session")
def spm(tmp_path_factory):
    return kinds.sentencepiece_model(tmp_path_factory.mktemp("spm"))


def oracle_ids(oracle: Tokenizer, texts: list[str]) -> list[list[int]]:
    """In small batches: an encoding keeps far more than its ids."""
    ids = []
    for i in range(0, len(texts), 500):
        batch = oracle.encode_batch_fast(texts[i : i + 500], add_special_tokens=False)
        ids += [encoding.ids for encoding in batch]
    return ids


def compare_ids(probe, model: Path, oracle: Tokenizer, texts: list[str], both: bool = True) -> None:
    """With control tokens read and, if `both`, kept as text."""
    for special in (True, False) if both else (True,):
        oracle.encode_special_tokens = not special
        expected = oracle_ids(oracle, texts)
        found = probe(model, [{"text": text, "special": special} for text in texts])
        assert len(found) == len(texts)
        for text, answer, ids in zip(texts, found, expected, strict=True):
            assert answer["ids"] == ids, first_difference(text, answer["ids"], ids)
    oracle.encode_special_tokens = False


def first_difference(text: str, found: list[int], expected: list[int]) -> str:
    same = 0
    while found[same : same + 1] == expected[same : same + 1]:
        same += 1
    return f"{text[:200]!r}: {found[same : same + 5]} not {expected[same : same + 5]} at {same}"


def compare_text(probe, model: Path, oracle: Tokenizer, texts: list[str]) -> None:
    ids = oracle_ids(oracle, texts)
    for skip in (False, True):
        found = probe(model, [{"ids": row, "skip_special": skip} for row in ids])
        for row, answer in zip(ids, found, strict=True):
            expected = oracle.decode(row, skip_special_tokens=skip)
            text = bytes(answer["bytes"]).decode(errors="replace")
            assert text == expected, row
            assert answer["stream"] == expected, row


@pytest.mark.parametrize("name", kinds.BYTE_LEVEL)
def test_byte_level_json(probe, tmp_path, name):
    oracle = kinds.BYTE_LEVEL[name]()
    model = tmp_path / "tokenizer.json"
    oracle.save(str(model))
    texts = kinds.make_texts(COUNT, seed=3)
    compare_ids(probe, model, oracle, texts)
    compare_text(probe, model, oracle, texts[:2000])


@pytest.mark.parametrize("name", kinds.SENTENCEPIECE)
def test_sentencepiece_json(probe, tmp_path, spm, name):
    oracle = kinds.SENTENCEPIECE[name](spm)
    model = tmp_path / "tokenizer.json"
    oracle.save(str(model))
    texts = kinds.make_texts(COUNT, seed=4)
    texts += [f"{text}<|special n|>a<plain n>{text}" for text in texts[:500]]
    compare_ids(probe, model, oracle, texts)
    compare_text(probe, model, oracle, texts[:2000])


def test_word_pieces(probe, tmp_path):
    oracle = kinds.word_pieces()
    model = tmp_path / "tokenizer.json"
    oracle.save(str(model))
    texts = kinds.make_texts(COUNT, seed=5)
    compare_ids(probe, model, oracle, texts)
    compare_text(probe, model, oracle, texts[:2000])


# ---- GGUF


def gguf_oracle(pre: str | None) -> Tokenizer:
    name = {"llama-bpe": "llama3", "llama3": "llama3", "qwen2": "qwen2", "smollm": "smollm"}
    oracle = kinds.BYTE_LEVEL[name.get(pre, "gpt2")]()
    oracle.normalizer = normalizers.Sequence([])  # a GGUF file does not say
    return oracle


@pytest.mark.parametrize(
    "pre", [None, "default", "gpt-2", "smollm", "llama-bpe", "llama3", "qwen2"]
)
def test_byte_level_gguf(probe, tmp_path, pre):
    oracle = gguf_oracle(pre)
    added = json.loads(oracle.to_str())["added_tokens"]
    oracle = plain_added_tokens(oracle, added)
    model = tmp_path / "model.gguf"
    kinds.write_byte_level_gguf(model, pre, oracle)
    texts = kinds.make_texts(COUNT, seed=6)
    compare_ids(probe, model, oracle, texts)
    compare_text(probe, model, oracle, texts[:1000])


def plain_added_tokens(oracle: Tokenizer, added: list[dict]) -> Tokenizer:
    """Without lstrip, rstrip, single_word and normalized, which a GGUF file cannot say."""
    data = json.loads(oracle.to_str())
    for token in data["added_tokens"]:
        token.update(lstrip=False, rstrip=False, single_word=False, normalized=False)
    assert len(data["added_tokens"]) == len(added)
    return Tokenizer.from_str(json.dumps(data))


def test_sentencepiece_gguf(probe, tmp_path, spm):
    """Without control tokens in the text, as the sentencepiece package itself."""
    model = tmp_path / "model.gguf"
    kinds.write_sentencepiece_gguf(model, spm, [])
    texts = [text for text in kinds.make_texts(COUNT, seed=7) if "\0" not in text]
    texts = [text for text in texts if "<s>" not in text and "</s>" not in text]
    texts = [text for text in texts if "<unk>" not in text]
    found = probe(model, [{"text": text} for text in texts])
    for text, answer in zip(texts, found, strict=True):
        assert answer["ids"] == spm.encode(text), repr(text)
    decoded = probe(model, [{"ids": answer["ids"]} for answer in found])
    for text, answer in zip(texts, decoded, strict=True):
        assert answer["stream"] == text.replace("▁", " ")


def test_sentencepiece_gguf_with_added_tokens(probe, tmp_path, spm):
    oracle = kinds.SENTENCEPIECE["llama2"](spm)
    oracle = plain_added_tokens(oracle, json.loads(oracle.to_str())["added_tokens"])
    vocab = oracle.get_vocab(with_added_tokens=True)
    special = {
        token["content"]: token["special"] for token in json.loads(oracle.to_str())["added_tokens"]
    }
    extra = sorted((i, piece) for piece, i in vocab.items() if i >= spm.vocab_size())
    model = tmp_path / "model.gguf"
    kinds.write_sentencepiece_gguf(model, spm, [(piece, special[piece]) for _, piece in extra])
    # "word" is a piece of the model that tokenizer.json adds once more
    texts = [text for text in kinds.make_texts(COUNT, seed=8) if "word" not in text]
    compare_ids(probe, model, oracle, texts)
    compare_text(probe, model, oracle, texts[:1000])


@pytest.fixture(scope="session")
def smollm2_oracle(smollm2: Path) -> Tokenizer:
    """transformers' reader, with the step that it forgets: every digit alone."""
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    oracle = loaded.backend_tokenizer
    oracle.pre_tokenizer = kinds.digits_then_bytes()
    return oracle


def test_smollm2(probe, smollm2, smollm2_oracle):
    texts = kinds.make_texts(2 * COUNT, seed=9)
    compare_ids(probe, smollm2, smollm2_oracle, texts)
    compare_text(probe, smollm2, smollm2_oracle, texts[:3000])
    (about,) = probe(smollm2, [{}])
    assert about["vocab_size"] == smollm2_oracle.get_vocab_size()
    assert (about["bos"], about["eos"], about["add_bos"]) == (1, 2, False)
    assert about["control"] == list(range(17))


def test_smollm2_long_text(probe, smollm2, smollm2_oracle):
    """Where the memory of words seen before matters."""
    texts = [kinds.ENGLISH, kinds.FOREIGN * 50, "\n".join(kinds.make_texts(3000, seed=10))]
    compare_ids(probe, smollm2, smollm2_oracle, texts)


# ---- every code point that differs from its neighbours


def pair_tokenizer(pre_tokenizer, normalizer=None) -> Tokenizer:
    """Bytes, and merges of a first character with any byte: the ids tell where pieces are cut."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    firsts = ["a", "1", "!", "Ġ", "Ċ", "'"]
    pairs = [(first, byte) for first in firsts for byte in alphabet]
    pieces = alphabet + [first + byte for first, byte in pairs]
    oracle = Tokenizer(kinds.models.BPE({piece: i for i, piece in enumerate(pieces)}, pairs))
    oracle.pre_tokenizer = pre_tokenizer
    oracle.normalizer = normalizer or normalizers.Sequence([])
    oracle.decoder = kinds.decoders.ByteLevel()
    return oracle


def code_point_texts(pattern: str) -> list[str]:
    """All but the insides of the large blocks (Han, Hangul, private use), which are sampled."""
    points = [
        c
        for c in range(0x110000)
        if c < 0x3400 or 0xA000 <= c < 0xAC00 or 0xF900 <= c < 0x20000 or c % 97 == 0
    ]
    points = [c for c in points if not 0xD800 <= c < 0xE000]
    rows = [points[i : i + 500] for i in range(0, len(points), 500)]
    return ["".join(pattern.replace("?", chr(c)) for c in row) for row in rows]


@pytest.mark.parametrize("name", ["gpt2", "smollm", "llama3", "qwen2"])
def test_every_code_point(probe, tmp_path, name):
    pre_tokenizer = kinds.BYTE_LEVEL[name]().pre_tokenizer
    oracle = pair_tokenizer(pre_tokenizer)
    model = tmp_path / "tokenizer.json"
    oracle.save(str(model))
    texts = code_point_texts("a?1?!?  ?\n?'?")
    compare_ids(probe, model, oracle, texts, both=False)


@pytest.mark.parametrize(
    "form",
    [normalizers.NFC, normalizers.NFD, normalizers.NFKC, normalizers.NFKD, normalizers.Lowercase],
)
def test_every_code_point_normalized(probe, tmp_path, form):
    oracle = pair_tokenizer(kinds.GPT2, form())
    model = tmp_path / "tokenizer.json"
    oracle.save(str(model))
    # alone, composed with marks, as a mark between others, as a Hangul part
    texts = code_point_texts("? a?\u0323e\u0302?\u0327.?\u0301\u1100?\u11a8?\u0345?")
    compare_ids(probe, model, oracle, texts, both=False)


# ---- refused files


def write_gguf(path: Path, **changes) -> None:
    """A small llama vocabulary; `changes` replace values, None leaves a key out."""
    values = {
        "model": "llama",
        "tokens": ["<unk>", "<s>", "</s>", "<0x41>", "▁", "a", "b", "ab"],
        "scores": [0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -0.5],
        "token_type": [2, 3, 3, 6, 1, 1, 1, 1],
        "bos_token_id": 1,
        "merges": None,
        "pre": None,
        **changes,
    }
    writer = kinds.gguf.GGUFWriter(path, "llama")
    for key, value in values.items():
        name = f"tokenizer.ggml.{key}"
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, int):
            writer.add_int32(name, value)
        elif value is not None:
            writer.add_array(name, value)
    kinds.finish(writer)


def test_small_gguf_loads(probe, tmp_path):
    write_gguf(tmp_path / "model.gguf")
    (answer,) = probe(tmp_path / "model.gguf", [{"text": "ab A"}])
    assert answer["ids"] == [4, 7, 4, 3]


BPE = {"model": "gpt2", "tokens": ["a", "b", "ab"], "scores": None, "token_type": [1, 1, 1]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "tokenizer.ggml.model"),
        ({"model": "t5"}, "found 't5', expected gpt2 or llama"),
        ({"tokens": None}, "tokenizer.ggml.tokens: not found"),
        ({"tokens": ["a", "a", "</s>", "<0x41>", "▁", "x", "b", "ab"]}, "found the piece 'a'"),
        ({"tokens": ["<unk>", "<s>", "</s>", "<0xZZ>", "▁", "a", "b", "ab"]}, "<0xZZ>"),
        ({"tokens": ["<unk>", "<s>", "</s>", "\n\x1b[2J", "▁", "a", "b", "ab"]}, "\\x1b[2J"),
        ({"scores": [0.0]}, "scores: found 1 entries, expected 8"),
        ({"scores": None}, "scores: found 0 entries, expected 8"),
        ({"scores": [float("nan")] * 8}, "NaN"),
        ({"token_type": [1]}, "token_type: found 1 entries, expected 8"),
        ({"token_type": [9] * 8}, "found 9, expected 0 to 6"),
        ({"bos_token_id": 8}, "bos_token_id: found 8, expected 0 to 7"),
        ({"bos_token_id": -7}, "bos_token_id: found -7"),
        ({**BPE, "bos_token_id": None}, "merges: not found"),
        ({**BPE, "bos_token_id": None, "merges": ["a"]}, "expected two pieces"),
        ({**BPE, "bos_token_id": None, "merges": ["a c"]}, "found 'c'"),
        ({**BPE, "bos_token_id": None, "merges": ["b a"]}, "found 'ba'"),
        ({**BPE, "bos_token_id": None, "merges": ["a b"], "pre": "odd"}, "found 'odd'"),
    ],
)
def test_bad_gguf(refusal, tmp_path, changes, message):
    write_gguf(tmp_path / "model.gguf", **changes)
    assert message in refusal(tmp_path / "model.gguf")
