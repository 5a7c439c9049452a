"""A subword tokenizer trained on the user's own texts, in the files that AutoTokenizer opens.

WordPiece (Schuster and Nakajima 2012) and byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) are trained by the
`tokenizers` library, Unigram (Kudo 2018) by its author's sentencepiece on one thread, since the sums of the former depend on
the order of a hash table. Equal texts give equal bytes.
"""

import hashlib
import io
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow.compute as pc
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from adrec.data.disk.tables import iter_batches
from adrec.errors import ConfigError, DataError, ResourceError, install_hint

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}

_LONGEST_TEXT_BYTES = 1 << 20
_WORDS_A_TEXT = 256


def train_tokenizer(
    corpus: Path,
    folder: Path,
    *,
    kind: str,
    vocab_size: int,
    min_frequency: int = 2,
    lowercase: bool = True,
    special_tokens: tuple[str, ...] = (),
    max_tokens: int = 512,
) -> int:
    """Train on the texts of corpus.parquet that are not held out, write `folder`. Returns the size of the vocabulary.

    Raises DataError where there is no text, and ResourceError where unigram lacks its package.
    """
    specials = [*SPECIAL.values(), *(token for token in special_tokens if token not in SPECIAL.values())]
    train = {"wordpiece": _wordpiece, "bpe": _bpe, "unigram": _unigram}[kind]
    tokenizer = train(corpus, specials, vocab_size, min_frequency, lowercase)
    numbers = {token: tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]")}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=list(numbers.items())
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_config(folder, specials, lowercase=lowercase, max_tokens=max_tokens)
    return int(tokenizer.get_vocab_size())


def _wordpiece(corpus: Path, specials: list[str], vocab_size: int, min_frequency: int, lowercase: bool) -> Tokenizer:
    """The trainer numbers `##x` pieces as it meets them, in the order of a hash table, and ties go by number. A first pass
    without merges finds those pieces, of each word once; the second gets them sorted, so that equal texts give equal
    vocabularies. Words are counted beforehand: the trainer would normalise every text, and texts repeat their words."""
    normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=False)
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    counts = count_words(corpus, normalizer, pre_tokenizer)

    def trained(reserved: list[str], size: int, texts: Iterator[str]) -> dict[str, int]:
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordPieceTrainer(
            vocab_size=size, min_frequency=min_frequency, special_tokens=reserved, show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        return vocabulary

    inner = sorted(piece for piece in trained(specials, 0, iter(counts)) if piece.startswith("##"))
    learnt = trained([*specials, *inner], vocab_size, _repeated(counts))
    tokenizer = Tokenizer(models.WordPiece(learnt, unk_token="[UNK]"))
    tokenizer.add_special_tokens(specials)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def count_words(corpus: Path, normalizer: normalizers.Normalizer, pre_tokenizer: pre_tokenizers.PreTokenizer) -> Counter[str]:
    """How often each word occurs. Normalising looks no further than the next space, so what stands between two is asked about
    once for a batch of texts."""
    counts: Counter[str] = Counter()
    for texts in _training_texts(corpus):
        between = Counter(itertools.chain.from_iterable(text.split(" ") for text in texts))
        for cell, times in between.items():
            for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(cell)):
                counts[word] += times
    return counts


def _repeated(counts: Mapping[str, int]) -> Iterator[str]:
    """Texts in which each word occurs as often as was counted."""
    for word, times in counts.items():
        for start in range(0, times, _WORDS_A_TEXT):
            yield " ".join([word] * min(_WORDS_A_TEXT, times - start))


def _bpe(corpus: Path, specials: list[str], vocab_size: int, min_frequency: int, lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = _normalizer(lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_texts(corpus), trainer)
    return tokenizer


def _unigram(corpus: Path, specials: list[str], vocab_size: int, min_frequency: int, lowercase: bool) -> Tokenizer:
    """Unigram has no least frequency: it prunes by likelihood. Characters that make up 0.05 % of the text are [UNK]."""
    try:
        import sentencepiece
    except ModuleNotFoundError:
        raise ResourceError(f"tokenizer.kind unigram needs sentencepiece. Run: {install_hint('unigram')}") from None
    normalizer = _normalizer(lowercase)
    trained = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(normalizer.normalize_str(text) for texts in _training_texts(corpus) for text in texts),
            model_writer=trained,
            model_type="unigram",
            vocab_size=max(vocab_size - len(specials) + 1, 2),  # its own unknown piece is counted and not taken over
            hard_vocab_limit=False,
            num_threads=1,
            normalization_rule_name="identity",
            max_sentence_length=_LONGEST_TEXT_BYTES,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(f"tokenizer: no unigram vocabulary of {vocab_size:,} pieces fits the texts ({reason[:200]}).") from None
    model = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    pieces = [(model.id_to_piece(number), model.get_score(number)) for number in range(1, model.get_piece_size())]
    vocabulary = [*((token, 0.0) for token in specials), *(pair for pair in pieces if pair[0] not in specials)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=specials.index("[UNK]")))
    tokenizer.add_special_tokens(specials)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _normalizer(lowercase: bool) -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.NFKC(), *([normalizers.Lowercase()] if lowercase else [])])


def _write_config(folder: Path, specials: list[str], *, lowercase: bool, max_tokens: int) -> None:
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_tokens,
        "do_lower_case": lowercase,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "extra_special_tokens": [token for token in specials if token not in SPECIAL.values()],
        **SPECIAL,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def digest_of_texts(corpus: Path) -> str:
    """Of the texts that a tokenizer is trained on: of two corpora with the same it is the same tokenizer."""
    digest = hashlib.blake2b(digest_size=16)
    for texts in _texts_to_learn(corpus):
        digest.update("\n".join([*texts, ""]).encode())
    return digest.hexdigest()


def _training_texts(corpus: Path) -> Iterator[list[str]]:
    seen = 0
    for texts in _texts_to_learn(corpus):
        seen += len(texts)
        yield texts
    if not seen:
        raise DataError(f"{corpus}: no text to train a tokenizer on. Mend text.ad_template, or set tokenizer.kind to none.")


def _texts_to_learn(corpus: Path) -> Iterator[list[str]]:
    for batch in iter_batches(corpus, columns=["text", "held_out"], batch_rows=8192):
        kept = pc.filter(batch.column("text"), pc.invert(batch.column("held_out")))
        # The template's [SEP] is a special token: its letters are not to be learnt as text.
        yield list(pc.replace_substring(kept, "[SEP]", " ").to_numpy(zero_copy_only=False))


def copy_tokenizer(reference: str, folder: Path, *, max_tokens: int = 512) -> int:
    """Take over an existing tokenizer. Returns the size of its vocabulary. Raises ConfigError where there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(_local(reference), trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"tokenizer.reference: {reference!r} cannot be opened as a tokenizer ({reason[:200]}).") from None
    tokenizer.model_max_length = min(tokenizer.model_max_length, max_tokens)
    tokenizer.save_pretrained(str(folder))
    return len(tokenizer)


def _local(reference: str) -> str:
    """`package:module/path` is a folder inside an installed package."""
    if not reference.startswith("package:"):
        return reference
    from importlib.resources import files

    module, _, inner = reference.removeprefix("package:").partition("/")
    try:
        return str(files(module).joinpath(inner))
    except ModuleNotFoundError:
        raise ConfigError(
            f"tokenizer.reference: the package '{module}' is not installed. Install the extra that brings it."
        ) from None
