"""The commands that the documents give, so that a scenario can show that it has run each of them."""

import re
from pathlib import Path

from report import Broken

REPOSITORY = Path(__file__).resolve().parents[2]


def commands(document, heading):
    """The commands in the code blocks of a section, each without its comment. In a block with prompts (`# `) all other
    lines are what is printed."""
    lines = (REPOSITORY / document).read_text().splitlines()
    section = lines[lines.index(f"## {heading}") + 1:]
    end = next((number for number, line in enumerate(section) if line.startswith("## ")), len(section))
    found = []
    for block in re.findall(r"```\n(.*?)```", "\n".join(section[:end]), re.DOTALL):
        if block.startswith("{"):
            continue
        given = [line for line in block.splitlines() if line.startswith("# ")] or block.splitlines()
        found += [re.sub(r"\s+# .*", "", line.removeprefix("# ")).strip() for line in given]
    return [command for command in found if command]


class Documented:
    """The commands of some sections of a document, and which of them have been run."""

    def __init__(self, document, *headings):
        self.document = document
        self.left = [command for heading in headings for command in commands(document, heading)]
        self.given = len(self.left)

    def run(self, host, given, *replacing):
        """Runs a command as it is given, with its examples (addresses, tokens, files) replaced by what this mesh has, as
        pairs; what it said."""
        self.is_done(given)
        for example, actual in replacing:
            given = given.replace(example, actual)
        return host.run(given)

    def is_done(self, given):
        """A command that is run otherwise, or elsewhere."""
        if given not in self.left:
            raise Broken(f"{self.document} does not give the command `{given}` (any more)")
        self.left.remove(given)

    def all_were_run(self, report):
        report.check(f"all {self.given} commands of {self.document} were run", not self.left, self.left)
