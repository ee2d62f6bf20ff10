"""What the page says of a message is what chapter 6's functions say."""

import pandas as pd
import pytest
import torch

from gpt_class_finetune import (
    LABELS,
    SpamDataset,
    add_classification_head,
    class_probabilities,
    classify_review,
    message_loader,
)
from reasons import BATCH, MOST_WORDS, Decision, Reasons, Words, without, words_of
from small_models import small_configs, small_model
from writer import End

CFG = small_configs(context_length=400, vocab_size=300)["Llama"]
TEXT = "You were drawn! Pay 2.50 postage\nand the prize   is yours, today only"


class Bytes:
    """A byte is a token."""

    eot_token = 299

    def encode(self, text, allowed_special=(), disallowed_special=()):
        return list(text.encode())

    encode_ordinary = encode


def made(max_length=None):
    classifier = small_model(CFG)
    torch.manual_seed(1)
    add_classification_head(classifier, 2)
    return Reasons(classifier.double().eval(), Bytes(), max_length, LABELS)


def test_the_decision_is_that_of_the_chapter():
    reasons = made(max_length=40)
    decision = next(reasons.start(TEXT))
    table = pd.DataFrame({"text": [TEXT], "label": [LABELS[0]]})
    loader = message_loader(SpamDataset(table, Bytes(), 40, LABELS), 1)
    shares, _ = class_probabilities(loader, reasons.model, "cpu")
    assert decision.shares == pytest.approx(shares[0].tolist(), abs=1e-6)
    label = classify_review(TEXT, reasons.model, Bytes(), "cpu", 40, LABELS)
    best = max(range(2), key=lambda n: decision.shares[n])
    assert decision.labels[best] == label
    assert (decision.read, decision.tokens) == (40, len(TEXT.encode()))


def test_each_word_is_left_out_once_whatever_the_batch():
    reasons = made()
    _, *parts, end = reasons.start(TEXT)
    assert isinstance(end, End)
    assert all(isinstance(part, Words) for part in parts)
    assert [part.start for part in parts] == list(range(0, 13, BATCH))
    found = [share for part in parts for share in part.shares]
    alone = [
        next(reasons.start(without(TEXT, *place))).shares for place in words_of(TEXT)
    ]
    assert len(found) == 13
    for shares, expected in zip(found, alone, strict=True):
        assert shares == pytest.approx(expected, abs=1e-6)


def test_the_words_of_a_message_come_with_what_is_between_them():
    text = f"  {TEXT} \U0001f642 one\ufefftwo\n"
    parts = next(made().start(text)).parts
    assert "".join(parts) == text
    assert list(parts[1::2]) == [text[a:b] for a, b in words_of(text)]


def test_words_put_together_are_the_text_without_its_spaces():
    assert "".join(TEXT[a:b] for a, b in words_of(TEXT)) == "".join(TEXT.split())
    left = [without(TEXT, *place).split() for place in words_of(TEXT)]
    words = TEXT.split()
    assert left == [words[:n] + words[n + 1 :] for n in range(len(words))]


def test_one_word_cannot_be_left_out_and_a_long_text_has_an_end():
    decision, end = made().start("Prize!")
    assert isinstance(decision, Decision)
    assert isinstance(end, End)
    _, *parts, _ = made().start("a " * 190)
    assert sum(len(part.shares) for part in parts) == MOST_WORDS


def test_what_has_no_token_is_refused_at_once():
    with pytest.raises(ValueError, match="."):
        made().start("")
