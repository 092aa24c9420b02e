"""Small tokenizers of every kind that the engine reads, trained here, and texts to try them on."""

import json
import pydoc_data.topics
import random
from collections.abc import Callable
from pathlib import Path

import gguf
import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

ENGLISH = "\n\n".join(pydoc_data.topics.topics[key] for key in sorted(pydoc_data.topics.topics))
FOREIGN = """Voix ambiguë d'un cœur qui, au zéphyr, préfère les jattes de kiwis. Zwölf Boxkämpfer
jagen Viktor quer über den großen Sylter Deich. Любя, съешь щипцы, — вздохнёт мэр, — кайф жгуч.
天地玄黃 宇宙洪荒 日月盈昃 辰宿列張 いろはにほへと ちりぬるを 키스의 고유조건은 입술끼리 만나야 하고
ऋषियों को सताने वाले दुष्ट राक्षसों के राजा نص حكيم له سر قاطع וذو شأن עטלף אבק נס דרך مزگت
๏ เป็นมนุษย์สุดประเสริฐ 😀😃 👩‍👩‍👧‍👦 🇩🇪🇫🇷 ½ ² Ⅷ ٣٤٥ ५६ e\u0301 ö \ufb01 \u1e9b\u0323 \u212b ① ﷺ
"""
CORPUS = [*ENGLISH[:200_000].split("\n"), *(FOREIGN.split("\n") * 20)]

CONTROL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
GPT4O_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


# ---- texts

SCRAPS = [
    *(" ", "  ", "   ", "\n", "\n\n", "\r\n", "\r", "\t", "\v", "\f", "\0", "\x1c", "\x7f", "\x85"),
    *("\u00a0", "\u1680", "\u180e", "\u2003", "\u2028", "\u2029", "\u202f", "\u3000", "\u200b"),
    *("'s", "'S", "'t", "'RE", "'ve", "'Ll", "'d", "'", "'\u017f", "'\ufb06", "it's", "WE'RE"),
    *(
        "e\u0301",
        "é",
        "a\u0323\u0302",
        "\u0302",
        "\u1e9b\u0323",
        "ö",
        "\u212b",
        "ﬁ",
        "İ",
        "\u017f",
        "ß",
    ),
    *("日本語", "中", "한국어", "नमस्ते", "สวัสดี", "مرحبا", "שלום", "привет", "Ελλάδα", "ŉ", "ǅ"),
    *(
        "😀",
        "👩\u200d👩\u200d👧",
        "🇩🇪",
        "❤\ufe0f",
        "👍🏽",
        "\U0001f9d1",
        "\U00020000",
        "\U000e0001",
    ),
    *("1", "42", "1234567", "٣٤", "५", "Ⅷ", "½", "²", "①", "\U0001d7d7", "3.14", "0x1F"),
    *("▁", "▁▁", "▁a", "<0x0A>", "<0xZZ>", "<unk>", "<s>", "</s>", "Ġ", "Ċ", "##", "[UNK]"),
    *(
        "_",
        "-",
        "...",
        "==",
        "//",
        "#!",
        "{}",
        "();",
        "\\n",
        "<|",
        "|>",
        "<|im_",
        "\ufffd",
        "\ufeff",
    ),
    *CONTROL,
    *("<tool>", "<tool >", "word", "<strip>", " <strip> ", "\u00a0<strip>\n"),
]


def make_texts(count: int, seed: int) -> list[str]:
    """English, scraps of everything glued together, and characters from all of Unicode."""
    rng = random.Random(seed)

    def english() -> str:
        start = rng.randrange(len(ENGLISH) - 300)
        return ENGLISH[start : start + rng.randrange(1, 300)]

    def scraps() -> str:
        letters = "abcdeXYZ .,;!?09"
        pick = lambda: rng.choice(SCRAPS) if rng.random() < 0.7 else rng.choice(letters)  # noqa: E731
        return "".join(pick() for _ in range(rng.randrange(40)))

    def anything() -> str:
        top = rng.choice([0x80, 0x800, 0x3000, 0x10000, 0x20000, 0x110000])
        points = [rng.randrange(top) for _ in range(rng.randrange(20))]
        return "".join(chr(c) for c in points if not 0xD800 <= c < 0xE000)

    texts = ["", " ", "a", " a", "a ", "\n", "a" * 300, " " * 300, "😀" * 100, "\u0301" * 50]
    while len(texts) < count:
        texts.append(rng.choices([english, scraps, anything], [3, 5, 2])[0]())
    return texts


# ---- tokenizer.json


def add_tokens(tokenizer: Tokenizer) -> None:
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in CONTROL])
    tokenizer.add_tokens(
        [
            AddedToken("<tool>", normalized=False),
            AddedToken("<strip>", lstrip=True, rstrip=True, normalized=False),
            AddedToken("word", single_word=True, normalized=True),
        ]
    )


def byte_level(pre_tokenizer, normalizer=None, ignore_merges=False, alphabet=True) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    initial = pre_tokenizers.ByteLevel.alphabet() if alphabet else []
    trainer = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=initial, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    add_tokens(tokenizer)
    return tokenizer


def split_then_bytes(*patterns: str, behavior: str = "isolated") -> pre_tokenizers.Sequence:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), behavior) for pattern in patterns]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def digits_then_bytes() -> pre_tokenizers.Sequence:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def sentencepiece_model(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """BPE with byte fallback as Llama-2 and Mistral have it."""
    prefix = folder / "spm"
    if not prefix.with_suffix(".model").exists():
        text = folder / "corpus.txt"
        text.write_text("\n".join(line for line in CORPUS if line.strip()))
        sentencepiece.SentencePieceTrainer.train(
            input=str(text),
            model_prefix=str(prefix),
            model_type="bpe",
            vocab_size=1500,
            byte_fallback=True,
            character_coverage=0.995,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            num_threads=1,
            minloglevel=2,
        )
    return sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")


def pieces_of(spm: sentencepiece.SentencePieceProcessor) -> list[str]:
    return [spm.id_to_piece(i) for i in range(spm.vocab_size())]


def merges_of(spm: sentencepiece.SentencePieceProcessor) -> list[tuple[str, str]]:
    """The pairs that make each piece, best piece first, as transformers converts such models."""
    pieces = pieces_of(spm)
    ids = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for i, piece in enumerate(pieces):
        if spm.is_byte(i) or spm.is_control(i) or spm.is_unknown(i):
            continue
        cuts = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
        found = [cut for cut in cuts if cut[0] in ids and cut[1] in ids]
        found.sort(key=lambda cut: (ids[cut[0]], ids[cut[1]]))
        merges += [(-spm.get_score(i), *cut) for cut in found]
    merges.sort(key=lambda merge: merge[0])
    return [(left, right) for _, left, right in merges]


def from_sentencepiece(
    spm: sentencepiece.SentencePieceProcessor, normalizer, pre_tokenizer, decoder, **options
) -> Tokenizer:
    vocab = {piece: i for i, piece in enumerate(pieces_of(spm))}
    options = {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>", **options}
    tokenizer = Tokenizer(models.BPE(vocab, merges_of(spm), **options))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder
    special = [AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")]
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    add_tokens(tokenizer)
    return tokenizer


def llama_decoder() -> decoders.Decoder:
    return decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )


def prepend_and_replace() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def metaspace(scheme: str, split: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)


def word_pieces() -> Tokenizer:
    """BPE on characters, without bytes: unknown characters, marked continuations."""
    tokenizer = Tokenizer(
        models.BPE(unk_token="[UNK]", fuse_unk=False, continuing_subword_prefix="##")
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = metaspace("always", True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        special_tokens=["[UNK]"],
        limit_alphabet=90,
        continuing_subword_prefix="##",
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    add_tokens(tokenizer)
    return tokenizer


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
BYTE_LEVEL: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": lambda: byte_level(GPT2),
    "gpt2-prefix-space": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "gpt2-few-bytes": lambda: byte_level(GPT2, alphabet=False),
    "gpt2-nfd": lambda: byte_level(GPT2, normalizers.NFD()),
    "smollm": lambda: byte_level(digits_then_bytes()),
    "llama3": lambda: byte_level(split_then_bytes(LLAMA3_PATTERN), ignore_merges=True),
    "qwen2": lambda: byte_level(split_then_bytes(QWEN2_PATTERN), normalizers.NFC()),
    "gpt4o": lambda: byte_level(split_then_bytes(GPT4O_PATTERN)),
    "deepseek": lambda: byte_level(
        split_then_bytes(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")
    ),
    "merged-next": lambda: byte_level(split_then_bytes(r"\s", behavior="merged_with_next")),
    "merged-previous": lambda: byte_level(split_then_bytes(r"\W", behavior="merged_with_previous")),
    "contiguous": lambda: byte_level(split_then_bytes(r"\d|\p{P}", behavior="contiguous")),
}
SENTENCEPIECE: dict[str, Callable[[sentencepiece.SentencePieceProcessor], Tokenizer]] = {
    "llama2": lambda spm: from_sentencepiece(spm, prepend_and_replace(), None, llama_decoder()),
    "llama2-normalized-tokens": lambda spm: with_normalized_tokens(
        from_sentencepiece(spm, prepend_and_replace(), None, llama_decoder())
    ),
    "llama2-metaspace": lambda spm: from_sentencepiece(
        spm, None, metaspace("always", True), decoders.Metaspace(prepend_scheme="always")
    ),
    "mistral": lambda spm: from_sentencepiece(
        spm, None, metaspace("first", False), llama_decoder(), ignore_merges=True
    ),
    "gemma": lambda spm: from_sentencepiece(
        spm,
        normalizers.Replace(" ", "▁"),
        pre_tokenizers.Split(" ", "merged_with_previous"),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    ),
    "no-fallback": lambda spm: from_sentencepiece(
        spm,
        prepend_and_replace(),
        None,
        llama_decoder(),
        byte_fallback=False,
    ),
    "no-fallback-no-fuse": lambda spm: from_sentencepiece(
        spm,
        None,
        metaspace("never", True),
        decoders.Metaspace(prepend_scheme="never"),
        byte_fallback=False,
        fuse_unk=False,
    ),
}


def with_normalized_tokens(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken("<|special n|>", normalized=True)])
    tokenizer.add_tokens([AddedToken("<plain n>", normalized=True)])
    return tokenizer


# ---- GGUF


def write_byte_level_gguf(path: Path, pre: str | None, tokenizer: Tokenizer) -> None:
    """The vocabulary of a byte-level tokenizer; its added tokens get their types."""
    data = json.loads(tokenizer.to_str())
    added = {token["content"]: token for token in data["added_tokens"]}
    pieces = sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    types = []
    for piece, _ in pieces:
        kind = gguf.TokenType.NORMAL
        if piece in added:
            special = added[piece]["special"]
            kind = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
        types.append(kind)
    merges = [
        merge if isinstance(merge, str) else " ".join(merge) for merge in data["model"]["merges"]
    ]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list([piece for piece, _ in pieces])
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    finish(writer)


def write_sentencepiece_gguf(
    path: Path, spm: sentencepiece.SentencePieceProcessor, extra: list[tuple[str, bool]]
) -> None:
    """The vocabulary of a SentencePiece model and some added tokens (piece, control)."""
    types = []
    for i in range(spm.vocab_size()):
        kind = gguf.TokenType.NORMAL
        if spm.is_unknown(i):
            kind = gguf.TokenType.UNKNOWN
        elif spm.is_control(i):
            kind = gguf.TokenType.CONTROL
        elif spm.is_byte(i):
            kind = gguf.TokenType.BYTE
        types.append(kind)
    scores = [spm.get_score(i) for i in range(spm.vocab_size())]
    pieces = pieces_of(spm)
    for piece, control in extra:
        pieces.append(piece)
        scores.append(0.0)
        types.append(gguf.TokenType.CONTROL if control else gguf.TokenType.USER_DEFINED)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(spm.bos_id())
    writer.add_eos_token_id(spm.eos_id())
    writer.add_unk_token_id(spm.unk_id())
    finish(writer)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
