"""Numbers as options, and the words of a command line wherever `main` is called."""

import argparse
import sys

import pytest
import torch

from option_kinds import parse, positive_float, positive_int, seed


def parser_of_a_script():
    parser = argparse.ArgumentParser(prog="train.py")
    parser.add_argument("--seed", type=seed, default=123)
    parser.add_argument("--epochs", type=positive_int, default=2)
    parser.add_argument("--lr", type=positive_float, default=0.1)
    return parser


def test_a_seed_has_at_most_64_bits():
    largest = 2**63 - 1
    for text, expected in (("5", 5), ("-7", -7), (str(largest), largest)):
        assert parse(parser_of_a_script(), ["--seed", text]).seed == expected
        generator = torch.Generator().manual_seed(expected)
        assert generator.initial_seed() % 2**64 == expected % 2**64


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("--seed", "9" * 23, "--seed: has too many digits: give at most 18"),
        ("--seed", str(2**63), "has too many digits"),
        ("--seed", "no", "--seed: invalid int value: 'no'"),
        ("--epochs", "0", "--epochs: must be 1 or more"),
        ("--epochs", "1.5", "--epochs: invalid int value: '1.5'"),
        ("--lr", "fast", "--lr: invalid float value: 'fast'"),
        *(("--lr", text, "must be a number above 0") for text in ("0", "-1", "nan")),
        ("--lr", "inf", "must be a number above 0"),
    ],
)
def test_wrong_numbers_are_named(option, text, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(parser_of_a_script(), [f"{option}={text}"])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "started", ["ipykernel_launcher.py", "/env/bin/pytest", "-c", ""]
)
def test_the_words_of_another_program_are_not_ours(started, monkeypatch):
    """In a kernel `main()` would meet `-f kernel.json` otherwise."""
    monkeypatch.setattr(sys, "argv", [started, "-f", "kernel.json"])
    assert parse(parser_of_a_script(), None).epochs == 2


def test_a_script_that_was_started_reads_its_own_words(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["some/where/train.py", "--epochs", "7"])
    assert parse(parser_of_a_script(), None).epochs == 7
    assert parse(parser_of_a_script(), ["--epochs", "3"]).epochs == 3


@pytest.mark.parametrize("given", ["answers.json", {"emb_dim": 8}, [1], 3, ["a", None]])
def test_anything_but_words_is_told(given):
    with pytest.raises(TypeError, match=r"main takes the words of a command line"):
        parse(parser_of_a_script(), given)
