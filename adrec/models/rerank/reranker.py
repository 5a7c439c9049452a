"""A language model over (context, ad) → a logit: a cross-encoder, or a decoder that answers yes or no.

Encoder: both texts as one pair, pooled, a linear head from 0 (Nogueira and Cho 2019, "Passage re-ranking with BERT"). Decoder:
a question, whose answer is the last state; the head starts as the difference of the words for yes and no, so that an untrained
one answers by what it knows (Bao et al. 2023, "TALLRec"). Either may read a bundle's vectors of user and ad beside the words
(`soft_tokens`). Costs one pass of the model a pair: nothing can be kept.

# U pairs, T tokens, D width
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adrec.errors import ConfigError, DataError
from adrec.models.rerank.soft_tokens import AD, USER, PairVectors, SoftTokens, embedding_table
from adrec.models.text.hugging_face import is_decoder
from adrec.models.text.sentence import Above
from adrec.models.text.text_encoder import TextEncoder, load_text_encoder

SETTINGS_FILE, HEAD_FILE, SOFT_FILE = "reranker.json", "head.safetensors", "soft_tokens.safetensors"
_CLICKED = "A user clicked on: {context}"
_ASKED = "\nWill the same user click on this? {ad}"
_ANSWER = "\nAnswer yes or no:"
_ANSWERS = (" yes", " no")
_FEWEST_WORDS = 8
"""Tokens of user and ad together, without which a question is of nothing."""

Kind = Literal["encoder", "decoder"]


@dataclass(frozen=True)
class Blend:
    """log-odds of a click = own x (those of the bundle's score) + reranker x (the re-ranker's logit) + intercept."""

    own: float = 1.0
    reranker: float = 0.0
    intercept: float = 0.0

    def __call__(self, log_odds: NDArray[np.floating], logits: NDArray[np.floating]) -> NDArray[np.float64]:
        """Both (N,) → (N,)."""
        return np.asarray(self.own * log_odds + self.reranker * logits + self.intercept, np.float64)


class Reranker(nn.Module):
    """`encoder` gives tokenizer, backbone and pooling; so many `clicks` are read; `blend` joins it with a bundle's score."""

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        clicks: int,
        blend: Blend | None = None,
        bundle: str | None = None,
        vectors: int | None = None,
    ) -> None:
        """`bundle`: fingerprint of the one that `blend` was fitted to, and whose vectors of width `vectors` are read beside the
        words, if any. Raises ConfigError for what cannot read pairs.
        """
        super().__init__()
        if encoder.kind != "transformer" or encoder.lexical is not None or len(encoder.above):
            raise ConfigError("a re-ranker is made of a plain transformer, without word vectors, lexical part or layers above.")
        self.encoder, self.clicks, self.blend, self.bundle = encoder, clicks, blend or Blend(), bundle
        backbone = cast(Any, encoder.backbone)
        self.kind: Kind = "decoder" if is_decoder(backbone.config) else "encoder"
        self.soft: SoftTokens | None = None
        if vectors is not None:
            self.soft = SoftTokens(vectors, backbone.get_input_embeddings().embedding_dim)
        self.head = nn.Linear(encoder.states, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        if self.kind == "decoder" and backbone.config.tie_word_embeddings:
            both = zip(*encoder.plain_ids(_ANSWERS), strict=False)
            # SentencePiece may begin either word with a token that is a space alone.
            rows = next((pair for pair in both if pair[0] != pair[1]), (0, 0))
            with torch.no_grad():
                table = backbone.get_input_embeddings().weight
                self.head.weight.copy_((table[rows[0]] - table[rows[1]])[None])

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, users: Tensor | None = None, ads: Tensor | None = None
    ) -> Tensor:
        """(U, T) int64 both, and the vectors (U, D) that soft tokens read → (U,) logits, float32."""
        if self.soft is None:
            logits: Tensor = self.head(self.encoder(input_ids, attention_mask))
            return logits[:, 0].float()
        assert users is not None and ads is not None
        embedded = embedding_table(self.encoder.backbone)(input_ids.clamp(min=0))  # (U, T, W)
        embedded = self.soft(embedded, input_ids, users, ads)
        states = self.encoder.backbone(inputs_embeds=embedded, attention_mask=attention_mask).last_hidden_state
        logits = self.head(self.encoder.pool(states, attention_mask).float())
        return logits[:, 0].float()

    def token_ids(self, contexts: Sequence[str], ads: Sequence[str]) -> list[list[int]]:
        """Ids of each pair. Where both are longer than `max_tokens` the longer text is cut: neither user nor ad is left out.

        A decoder is asked in words that stay whole up to there.
        """
        encoder, marks = self.encoder, [] if self.soft is None else [USER, AD]
        if self.kind == "encoder":
            return [[*pair, *marks] for pair in encoder.pair_ids(contexts, ads, spare=len(marks))]
        firsts = encoder.token_ids([_CLICKED.format(context=context) for context in contexts])
        seconds, answer = encoder.plain_ids([_ASKED.format(ad=ad) for ad in ads]), encoder.plain_ids([_ANSWER])[0]
        room = encoder.max_tokens - len(marks) - len(answer)
        pairs = []
        for first, second in zip(firsts, seconds, strict=True):
            kept = min(len(second), max(room // 2, room - len(first)))  # the longer one is cut, at its end
            pairs.append([*first[: room - kept], *second[:kept], *marks, *answer])
        return pairs

    def refuse_narrow(self) -> None:
        """Raise ConfigError where a decoder's question leaves hardly any of `max_tokens` to user and ad."""
        if self.kind == "encoder":
            return
        asked = sum(map(len, self.encoder.plain_ids([_CLICKED.format(context=""), _ASKED.format(ad=""), _ANSWER])))
        asked += 0 if self.soft is None else 2
        if self.encoder.max_tokens < asked + _FEWEST_WORDS:
            raise ConfigError(
                f"max_tokens is {self.encoder.max_tokens}, and the question to a decoder takes {asked} by itself. Set it to "
                f"{asked + _FEWEST_WORDS} or more."
            )

    def logits(
        self,
        contexts: Sequence[str],
        ads: Sequence[str],
        vectors: PairVectors | None = None,
        *,
        device: str | torch.device = "cpu",
        batch_tokens: int = 8192,
    ) -> NDArray[np.float32]:
        """(N,) of N pairs; a pair's does not depend on its neighbours (to 1e-5). Batches are of like length. `vectors`: what
        soft tokens read.
        """
        ids = self.token_ids(contexts, ads)
        lengths = np.fromiter((len(pair) for pair in ids), np.int64, len(ids))
        order, result, start = np.argsort(-lengths, kind="stable"), np.zeros(len(ids), np.float32), 0
        self.eval().to(device)
        with torch.inference_mode():
            while start < len(order):
                rows = order[start : start + max(1, batch_tokens // max(1, int(lengths[order[start]])))]
                input_ids, mask = self.encoder.pad([ids[row] for row in rows])
                own = () if vectors is None else tuple(torch.from_numpy(part).to(device) for part in vectors.take(rows))
                result[rows] = self(input_ids.to(device), mask.to(device), *own).cpu().numpy()
                start += len(rows)
        return result

    def save(self, folder: Path) -> None:
        """Weights, tokenizer, head and settings, in plain files."""
        from safetensors.torch import save_file

        self.encoder.save(folder)
        for module, file in ((self.head, HEAD_FILE), (self.soft, SOFT_FILE)):
            if module is not None:
                own = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
                save_file(own, folder / file)
        vectors = None if self.soft is None else self.soft.width
        settings = {"clicks": self.clicks, "blend": asdict(self.blend), "bundle": self.bundle, "vectors": vectors}
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def fresh_reranker(reference: str, *, clicks: int, max_tokens: int | None, vectors: int | None = None) -> Reranker:
    """An untrained one over an encoder or a decoder by reference. Raises what `load_text_encoder` does, and ConfigError.

    `vectors`: width of a bundle's vectors that it reads beside the words, None for the words alone.
    """
    encoder = load_text_encoder(reference, max_tokens=max_tokens).without_lexical()
    encoder.reading, encoder.above = replace(encoder.reading, prompts={}, width=None), Above()  # a head of its own is learned
    made = Reranker(encoder, clicks=clicks, vectors=vectors)
    made.refuse_narrow()
    return made


def load_reranker(folder: Path) -> Reranker:
    """What `save` wrote. Raises DataError in one line."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / SETTINGS_FILE).is_file():
        raise DataError(f"{folder}: holds no {SETTINGS_FILE}, so it is no re-ranker. 'adrec train-reranker' makes one.")
    try:
        settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        blend = Blend(**{name: float(value) for name, value in settings["blend"].items()})
        own = {"clicks": int(settings["clicks"]), "bundle": settings["bundle"], "vectors": settings.get("vectors")}
        made = Reranker(load_text_encoder(str(folder)), blend=blend, **own)
        made.head.load_state_dict(load_file(folder / HEAD_FILE))
        if made.soft is not None:
            made.soft.load_state_dict(load_file(folder / SOFT_FILE))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{folder}: the re-ranker cannot be read ({reason}). Run 'adrec train-reranker' again.") from None
    return made.eval()
