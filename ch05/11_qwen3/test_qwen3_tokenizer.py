"""The tokenizer proved: against `tokenizers` and the published chat template.

The reference is the published `tokenizer.json` with its template. It is not among the
assets, so `COURSE_QWEN3_TOKENIZER` names a folder that has it; without it one is built
from the vocabulary that is, and the texts of the template are written out below.
"""

import json
import os
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from course.assets import fetch
from qwen3_files import qwen3_tokenizer
from qwen3_tokenizer import QWEN3_PATTERN, QWEN3_SPECIAL, split_thoughts
