"""The machine in words, as it stands in every table of measurements."""

import re

from course import this_machine


def test_the_machine_is_named_by_cores_processor_memory_and_system():
    said = this_machine.machine()
    assert re.fullmatch(r"\d+ cores?, .*\d+ GB, (Linux|Windows|macOS)", said)
    assert said.startswith(f"{this_machine.cores()} core")
    assert said.count(",") <= 3, "a comma in the processor's name would split it"
    assert not re.search(r"\(R\)|\(TM\)|@|Processor", said)
