"""The tokenizer of the tiny backbone: WordPiece over the words of captions, reports and prompts.

Weights depend on it, so it is made before any training and shared by all of them; a new grammar needs new
weights.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from benchmark.phantom.chest.domains import FIGURE, MIMIC
from benchmark.phantom.chest.reports import caption, report
from benchmark.phantom.chest.studies import (
    BLOCK,
    CHEXPERT_LABELS,
    NIH_LABELS,
    block_rng,
    sample_present,
    sample_studies,
)
from benchmark.phantom.pretraining.modalities import MODALITIES
from benchmark.phantom.pretraining.modalities import caption as other_caption

TEMPLATES = ("a chest X-ray image of {}.", "Findings suggesting {}.")  # the paper's radiology prompts
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_COMMON = "a photo of a {}. this is an image of the x-ray scan"  # words of usual prompts
_BLOCKS = 32
_SEED = 0


def training_texts() -> list[str]:
    """Return the texts that the vocabulary is built from, always the same.

    Reports are among them, as PubMedBERT's vocabulary too knows the words of radiology.
    """
    texts = [template.format(name) for template in TEMPLATES for name in (*CHEXPERT_LABELS, *NIH_LABELS)]
    for block in range(_BLOCKS):
        rng = block_rng(_SEED, "vocabulary", block)
        figures = sample_studies(rng, sample_present(rng, BLOCK, FIGURE), FIGURE)
        studies = sample_studies(rng, sample_present(rng, BLOCK, MIMIC), MIMIC)
        texts += [caption(rng, figures, row, exact=0.4, wrong=0.2) for row in range(BLOCK)]
        texts += [report(rng, studies, row).text for row in range(BLOCK)]
        for modality in MODALITIES.values():
            texts += [other_caption(rng, modality, label) for label in range(len(modality.classes))]
    return texts + 2 * [_COMMON]


def vocabulary(texts: Sequence[str] | None = None) -> list[str]:
    """Return the tokens in order of their ids: special ones, characters, characters inside words, words.

    The words are those of some texts, else of films and pictures. Any English text can be spelled with the characters.
    The library's own trainer is not used: it breaks ties at random, and the ids must come out the same each time.
    """
    inside = string.ascii_lowercase + string.digits
    characters = [*inside, *string.punctuation, *(f"##{letter}" for letter in inside)]
    normalize, split = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in training_texts() if texts is None else texts:
        counts.update(word for word, _ in split.pre_tokenize_str(normalize.normalize_str(text)))
    words = sorted(word for word, count in counts.items() if count >= 2 and word not in characters)
    return [*SPECIAL, *characters, *words]


def make_tokenizer(texts: Sequence[str] | None = None) -> Tokenizer:
    """Build the WordPiece tokenizer of the texts of :func:`vocabulary`."""
    numbered = {token: number for number, token in enumerate(vocabulary(texts))}
    tokenizer = Tokenizer(models.WordPiece(vocab=numbered, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, numbered[name]) for name in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    return tokenizer
