"""Tokenizers of the medical models, built from their word lists alone: no code or settings of a download are used.

Lower case and maximal length are set here, because Bio_ClinicalBERT's repository and others do not state them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tokenizers
import torch
from torch import Tensor

from benchmark.backbones.medical.records import BERT_FILES, ROBERTA_FILES
from benchmark.errors import DataError

_NUMBERED, _WORD = re.compile(r"[0-9]+\."), re.compile(r"\w+")


class Words:
    """Maps texts to ids ``[N, context_length]``, padded on the right; what is too long is cut, the end token stays.

    Args:
        folder: of the word list: ``vocab.txt`` (BERT, lower-case), or ``vocab.json`` and ``merges.txt`` (RoBERTa).
        context_length: longest text, start and end tokens included.
        clean: what is done to a text first, see ``records.TextSide``.

    Attributes:
        pad_id: id of the padding. size: number of words.

    Raises:
        DataError: no such files, or damaged ones.
    """

    version = 1  # raise it when the same words give other ids

    def __init__(self, folder: Path, context_length: int, clean: Literal["words"] | None = None) -> None:
        self.context_length, self._clean = context_length, clean
        try:
            made, pad = _tokenizer(folder)
            tokenizer = tokenizers.Tokenizer.from_str(made.to_str())
            self.pad_id = tokenizer.get_vocab()[pad]
        except Exception as error:  # the library raises bare Exception on malformed files
            reason = " ".join(str(error).split())[:120]
            raise DataError(f"{folder}: its word list cannot be read ({reason}). Fetch it again") from None
        tokenizer.enable_truncation(context_length)
        tokenizer.enable_padding(length=context_length, pad_id=self.pad_id, pad_token=pad)
        self._tokenizer = tokenizer
        self.size = int(tokenizer.get_vocab_size())

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Return the ids of one text or several."""
        rows = [texts] if isinstance(texts, str) else list(texts)
        if self._clean == "words":
            rows = [sentences_of_words(row) for row in rows]
        return torch.tensor([encoding.ids for encoding in self._tokenizer.encode_batch(rows)])

    def id_of(self, piece: str) -> int | None:
        """Return the id of a piece, if there is one."""
        found = self._tokenizer.token_to_id(piece)
        return None if found is None else int(found)

    def continues(self) -> Tensor:
        """Return bool ``[size]``: which pieces go on with the word before them."""
        pieces = (self._tokenizer.id_to_token(index) for index in range(self.size))
        return torch.tensor([str(piece).startswith("##") for piece in pieces])


def sentences_of_words(text: str) -> str:
    """Return what GLoRIA and MGCA keep of a text: runs of letters and digits, in sentences of two and more of them.

    Sentences end at full stops and at numbers of a list; hyphens and all other signs vanish, letters become small.
    """
    kept = []
    for part in _NUMBERED.split(text.replace("\n", " ")):
        for sentence in part.split("."):
            words = _WORD.findall(sentence.lower())
            if len(words) > 1:
                kept += [word.encode("ascii", "ignore").decode("ascii") for word in words]
    return " ".join(word for word in kept if word)


def _tokenizer(folder: Path) -> tuple[Any, str]:
    """Return a tokenizer and its padding token."""
    if (folder / BERT_FILES[0]).is_file():
        return tokenizers.BertWordPieceTokenizer(str(folder / BERT_FILES[0]), lowercase=True), "[PAD]"
    words, merges = (str(folder / name) for name in ROBERTA_FILES)
    tokenizer = tokenizers.ByteLevelBPETokenizer(words, merges)
    start, end = "<s>", "</s>"
    tokenizer.post_processor = tokenizers.processors.RobertaProcessing(
        (end, tokenizer.token_to_id(end)), (start, tokenizer.token_to_id(start))
    )
    return tokenizer, "<pad>"
