"""Texts to vectors: one object for every pretrained encoder, wherever its weights live.

A reference is a local Hugging Face folder or GGUF file, a hub name, `package:<module>/<path>` for weights that ship inside an
installed package, or a folder of word vectors (`adrec.models.text.word_vectors`). What a folder cannot say in Hugging Face's
own files (pooling, text template) stands in its `adrec.json`.

# U texts, T tokens, D width
"""

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from adrec.errors import ConfigError, DataError
from adrec.models.text.encoder_settings import read_settings, write_settings
from adrec.models.text.frozen_layers import FrozenLayers
from adrec.models.text.hugging_face import (
    is_decoder,
    load_backbone,
    load_tokenizer,
    quiet_transformers,
    resolve_reference,
    token_limit,
)
from adrec.models.text.pooling import POOLINGS, Pool
from adrec.models.text.sentence import ABOVE_FILE, Above, Reading, Role
from adrec.specs import RecordedPooling

POOL_FILE = "pooling.safetensors"
LEXICAL_FILE = "lexical.safetensors"
WORD_VECTORS = "word_vectors"
USUAL_TOKENS = 512
"""Longest text where the folder records none: attention to more is dear, and texts of ads are short."""

_TOKENIZING = threading.Lock()
"""Fast tokenizers keep the limits of a call in themselves, and refuse two threads at once."""


class TextEncoder(nn.Module):
    """A tokenizer, a backbone that gives token vectors, and a pooling.

    Attributes: `tokenizer`, `dimension` D (the sum of `parts`: the encoder's own width and, where there is one, that of the
    lexical part), `max_tokens` (longer texts are cut), `pooling`, `clicks_of` (fingerprint of the prepared folder whose
    training clicks it learned from, None where it saw texts alone), `reading` (prompts of queries and ads, lower case, how much
    of a vector is kept), `above` (layers above the pooling), `template` (how ad columns were joined into the text it was
    trained on, None where unknown), `fingerprint` (changes with anything that changes a vector), `frozen_layers` (set while
    only upper layers are trained).
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        tokenizer: Any,
        dimension: int,
        pooling: str = "mean",
        max_tokens: int = 512,
        template: str | None = None,
        lexical: Tensor | None = None,
        clicks_of: str | None = None,
        reading: Reading | None = None,
        above: Above | None = None,
    ) -> None:
        """`dimension` is that of the backbone's states. Raises ConfigError for a pooling or width that cannot be."""
        super().__init__()
        self.clicks_of, self.reading, self.above = clicks_of, reading or Reading(), above or Above()
        if pooling not in POOLINGS:
            raise ConfigError(f"pooling is '{pooling}'; allowed: {', '.join(POOLINGS)}.")
        self.backbone = backbone
        self.tokenizer = tokenizer
        whole = self.above.out or dimension
        if self.reading.width is not None and self.reading.width > whole:
            raise ConfigError(f"text.dimensions is {self.reading.width}, but the encoder's vectors have {whole}.")
        width = self.reading.width or whole
        self.parts = (width,) if lexical is None else (width, lexical.shape[1])
        self.states = dimension
        self.dimension = sum(self.parts)
        self.pooling = pooling
        self.max_tokens = max_tokens
        self.template = template
        self.pool = Pool(cast(RecordedPooling, pooling), dimension)
        self.lexical = (
            nn.Embedding(lexical.shape[0], lexical.shape[1], _weight=lexical.clone()) if lexical is not None else None
        )
        self.frozen_layers: FrozenLayers | None = None
        self._memo: tuple[tuple[int, ...], str] | None = None

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """`input_ids`, `attention_mask` (U, T) int64 -> (U, D) float32; a text without tokens is the zero vector."""
        there = attention_mask.sum(1, keepdim=True).clamp(max=1)  # (U, 1)
        # Attention needs a place to look at, also where there is none: the first padding, whose vector is dropped below.
        read = torch.cat([attention_mask[:, :1] + 1 - there, attention_mask[:, 1:]], 1)
        if self.frozen_layers is not None:
            states = self.frozen_layers(input_ids, read)  # (U, T, D)
        else:
            states = self.backbone(input_ids=input_ids, attention_mask=read).last_hidden_state
        meaning: Tensor = self.above(cast(Tensor, self.pool(states, read)).float(), self.reading.width) * there
        if self.lexical is None:
            return meaning
        words = (self.lexical(input_ids) * attention_mask[..., None]).sum(1)
        return torch.cat([nn.functional.normalize(meaning, dim=-1), nn.functional.normalize(words, dim=-1)], -1)

    def with_lexical(self, table: Tensor) -> "TextEncoder":
        """The same encoder with a vector of its words beside each text's vector (`adrec.models.text.lexical`); table (V, K)."""
        return self._with(table)

    def without_lexical(self) -> "TextEncoder":
        """The same encoder, its vectors without the part that is of words alone."""
        return self if self.lexical is None else self._with(None)

    def along(self, directions: Tensor, centre: Tensor) -> "TextEncoder":
        """The same encoder, its vectors read along `directions` (K, D) from `centre` (D,), with unit length.

        Raises ConfigError where a lexical part stands beside them, or only some numbers of a vector are kept.
        """
        if self.lexical is not None or self.reading.width is not None:
            raise ConfigError(
                "text.lexical and text.dimensions cannot stand beside main directions of the texts. Leave them out."
            )
        step = {"kind": "dense", "in": directions.shape[1], "out": len(directions), "bias": True, "activation": "Identity"}
        above = Above([*self.above.steps, step, {"kind": "normalize"}])
        own = {
            f"layers.{len(self.above)}.0.weight": directions.float(),
            f"layers.{len(self.above)}.0.bias": -(directions @ centre).float(),
        }
        above.load_state_dict({**self.above.state_dict(), **own})
        return self._with(None, above)

    def _with(self, lexical: Tensor | None, above: Above | None = None) -> "TextEncoder":
        made = TextEncoder(
            backbone=self.backbone,
            tokenizer=self.tokenizer,
            dimension=self.states,
            pooling=self.pooling,
            max_tokens=self.max_tokens,
            template=self.template,
            lexical=lexical,
            clicks_of=self.clicks_of,
            reading=self.reading,
            above=above or self.above,
        )
        made.pool = self.pool
        return made.eval()

    def token_ids(self, texts: Sequence[str], role: Role = "document") -> list[list[int]]:
        """Token ids of each text, behind the prompt of its `role` and with its special tokens, cut at `max_tokens`, not padded.

        A blank text has none at all, so that its vector is zero: nothing is known. The one place that says so.
        """
        with _TOKENIZING:
            encoded = self.tokenizer(
                [self.reading.of(text, role) for text in texts],
                truncation=True,
                max_length=self.max_tokens,
                padding=False,
                return_attention_mask=False,
                return_token_type_ids=False,
            )
        ids = cast(list[list[int]], encoded["input_ids"])
        return [tokens if text and not text.isspace() else [] for text, tokens in zip(texts, ids, strict=True)]

    def pair_ids(self, firsts: Sequence[str], seconds: Sequence[str], *, spare: int = 0) -> list[list[int]]:
        """Token ids of each pair of texts as one input, not padded; the longer is cut to fit `max_tokens`, less `spare`."""
        with _TOKENIZING:
            encoded = self.tokenizer(
                list(firsts),
                text_pair=list(seconds),
                truncation="longest_first",
                max_length=self.max_tokens - spare,
                padding=False,
                return_attention_mask=False,
                return_token_type_ids=False,
            )
        return cast(list[list[int]], encoded["input_ids"])

    def plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text by itself: no special tokens, not cut, not padded."""
        with _TOKENIZING:
            return cast(list[list[int]], self.tokenizer(list(texts), add_special_tokens=False)["input_ids"])

    def pad(self, token_ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Lists of token ids to `(input_ids, attention_mask)`, both (U, T) int64, padded on the right to the longest."""
        lengths = np.fromiter((len(ids) for ids in token_ids), np.int64, len(token_ids))
        mask = np.arange(max(1, lengths.max(initial=1))) < lengths[:, None]  # (U, T)
        padded = np.full(mask.shape, self.tokenizer.pad_token_id, np.int64)
        padded[mask] = np.concatenate([np.asarray(ids, np.int64) for ids in token_ids])
        return torch.from_numpy(padded), torch.from_numpy(mask.astype(np.int64))

    def tokenize(self, texts: Sequence[str], role: Role = "document") -> tuple[Tensor, Tensor]:
        """Texts to `(input_ids, attention_mask)`, both (U, T) int64 on the CPU, padded to the longest."""
        return self.pad(self.token_ids(texts, role))

    @property
    def fingerprint(self) -> str:
        """32 hex digits over weights, tokenizer, pooling, token limit and template. Memoised until a weight changes."""
        tensors = dict(self.state_dict())
        versions = tuple(number for tensor in tensors.values() for number in (tensor.data_ptr(), tensor._version))
        if self._memo is None or self._memo[0] != versions:
            digest = hashlib.sha256()
            digest.update(_tokenizer_text(self.tokenizer).encode())
            read = [self.pooling, self.max_tokens, self.template]
            own = self.reading.to_json()
            digest.update(json.dumps([*read, own, self.above.steps] if own or len(self.above) else read).encode())
            for name in sorted(tensors):
                tensor = tensors[name].detach().cpu().contiguous()
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(memoryview(tensor.view(-1).view(torch.uint8).numpy()))
            self._memo = (versions, digest.hexdigest()[:32])
        return self._memo[1]

    def save(self, folder: Path) -> None:
        """Write weights, tokenizer and `adrec.json` into an existing or new `folder`; `load_text_encoder` opens it."""
        folder.mkdir(parents=True, exist_ok=True)
        with quiet_transformers():
            cast(Any, self.backbone).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.save_settings(folder)

    def save_settings(self, folder: Path) -> None:
        """Write only what Hugging Face's own files cannot say: pooling and its weights, template, token limit."""
        from safetensors.torch import save_file

        if self.pooling == "attention":
            save_file({name: tensor.contiguous() for name, tensor in self.pool.state_dict().items()}, folder / POOL_FILE)
        if self.lexical is not None:
            save_file({"table": self.lexical.weight.detach().cpu().contiguous()}, folder / LEXICAL_FILE)
        if len(self.above):
            weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.above.state_dict().items()}
            save_file(weights, folder / ABOVE_FILE)
        settings: dict[str, Any] = {
            "kind": self.kind,
            "pooling": self.pooling,
            "template": self.template,
            "max_tokens": self.max_tokens,
            **self.reading.to_json(),
        }
        if len(self.above):
            settings["above"] = self.above.steps
        if self.clicks_of is not None:
            settings["clicks_of"] = self.clicks_of
        write_settings(folder, settings)

    @property
    def kind(self) -> str:
        """`transformer` or `word_vectors`."""
        return cast(str, getattr(self.backbone, "kind", "transformer"))


def load_text_encoder(
    reference: str,
    *,
    pooling: str | None = None,
    max_tokens: int | None = None,
    prompts: Mapping[str, str] | None = None,
    dimensions: int | None = None,
) -> TextEncoder:
    """Open an encoder by reference, in float32, in evaluation mode.

    `pooling` None takes what the folder records (`adrec.json`, then sentence-transformers' `modules.json`), else `last` for a
    decoder and `mean` for an encoder. `max_tokens` None takes what the folder records, else 512 where the model reads as many;
    more is possible up to what the model has positions for. `prompts` by role in place of the recorded ones; `dimensions`: how
    many of a vector's first numbers are kept.
    Raises DataError where nothing usable is found, ResourceError where a hub cannot be reached.
    """
    where = resolve_reference(reference)
    recorded = read_settings(where)
    settings, inner = dict(recorded.settings), recorded.inner
    if settings.get("kind") == WORD_VECTORS:
        from adrec.models.text.word_vectors import WordTokenizer, WordVectors

        tokenizer: Any = WordTokenizer.load(where)
        backbone: nn.Module = WordVectors.load(where)
        dimension, limit = cast(WordVectors, backbone).dimension, settings.get("max_tokens", 512)
        most = limit
    else:
        tokenizer = load_tokenizer(inner)
        backbone = load_backbone(inner, tokenizer=tokenizer)
        dimension = int(cast(Any, backbone).config.hidden_size)
        most = token_limit(tokenizer, cast(Any, backbone).config)
        limit = min(most, settings.get("max_tokens") or USUAL_TOKENS)
        settings.setdefault("pooling", "last" if is_decoder(cast(Any, backbone).config) else "mean")
    if max_tokens is not None and max_tokens > most:
        raise ConfigError(f"max_tokens is {max_tokens}, but {reference} reads at most {most} tokens.")
    reading = Reading.from_json(settings)
    if prompts is not None:
        reading = replace(reading, prompts=dict(prompts))
    if dimensions is not None:
        reading = replace(reading, width=dimensions)
    lexical = None
    if (where / LEXICAL_FILE).exists():
        from safetensors.torch import load_file

        lexical = load_file(where / LEXICAL_FILE)["table"]
    encoder = TextEncoder(
        backbone=backbone,
        tokenizer=tokenizer,
        lexical=lexical,
        dimension=dimension,
        pooling=pooling or settings.get("pooling") or "mean",
        max_tokens=max_tokens or limit,
        template=settings.get("template"),
        clicks_of=settings.get("clicks_of"),
        reading=reading,
        above=_above(where, settings, recorded.weights, dimension),
    )
    if encoder.pooling == "attention" and (where / POOL_FILE).exists():
        from safetensors.torch import load_file

        encoder.pool.load_state_dict(load_file(where / POOL_FILE))
    return encoder.eval()


def encode_texts(
    encoder: TextEncoder,
    texts: Sequence[str],
    *,
    device: str | torch.device = "cpu",
    batch_tokens: int = 8192,
    bf16: bool = False,
    advance: Callable[..., None] | None = None,
    role: Role = "document",
) -> np.ndarray:
    """Vectors of `texts`, (N, D) float32, in their order, read behind the prompt of their `role`.

    Each distinct text runs once; texts are sorted by length, so a batch (at most `batch_tokens` tokens, padding included)
    holds almost no padding. `advance(n)` is called with the number of texts done. The encoder is left in the mode it was in.
    `bf16` runs its products in bfloat16, several times as fast on a GPU: an element then differs in its third digit.
    """
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return np.empty((0, encoder.dimension), np.float32)
    row_of = {text: row for row, text in enumerate(distinct)}
    vectors = np.empty((len(distinct), encoder.dimension), np.float32)
    was_training = encoder.training
    encoder.eval().to(device)
    try:
        with torch.inference_mode(), torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            for rows, ids in _batches(encoder, distinct, batch_tokens, role):
                input_ids, mask = encoder.pad(ids)
                vectors[rows] = encoder(input_ids.to(device), mask.to(device)).float().cpu().numpy()
                if advance is not None:
                    advance(len(rows))
    finally:
        encoder.train(was_training)
    if len(distinct) == len(texts):
        return vectors
    return cast(np.ndarray, vectors[np.fromiter((row_of[text] for text in texts), np.int64, len(texts))])


def _batches(encoder: TextEncoder, texts: list[str], batch_tokens: int, role: Role) -> Any:
    """Rows and token ids of batches of like length, longest first (memory trouble shows at once)."""
    token_ids = encoder.token_ids(texts, role)
    lengths = np.fromiter((len(ids) for ids in token_ids), np.int64, len(token_ids))
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // max(1, int(lengths[order[start]])))
        rows = order[start : start + size]
        yield rows, [token_ids[row] for row in rows]
        start += size


def _above(where: Path, settings: Mapping[str, Any], weights: Mapping[str, Tensor], states: int) -> Above:
    """The layers above the pooling. Raises DataError where they do not fit."""
    steps = settings.get("above") or []
    try:
        above = Above(steps)
        if (where / ABOVE_FILE).exists():
            from safetensors.torch import load_file

            weights = load_file(where / ABOVE_FILE)
        above.load_state_dict(dict(weights))
    except (KeyError, TypeError, ValueError, RuntimeError):
        raise DataError(f"{where}: the layers above its pooling cannot be read. Copy the encoder folder again.") from None
    widths = [states, *(int(step["out"]) for step in steps if step["kind"] == "dense")]
    if [int(step["in"]) for step in steps if step["kind"] == "dense"] != widths[:-1]:
        raise DataError(f"{where}: its Dense layers do not fit each other or the backbone ({states} wide). Copy it again.")
    return above


def _tokenizer_text(tokenizer: Any) -> str:
    """The tokenizer as text, without the padding and truncation that calls leave behind in it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return json.dumps(tokenizer.get_vocab(), sort_keys=True)
    state = json.loads(backend.to_str())
    return json.dumps({key: value for key, value in state.items() if key not in {"padding", "truncation"}}, sort_keys=True)
