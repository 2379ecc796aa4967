"""The examples of docs/inference.md, as they stand there: for `sh` and `python`, with the URL and the model of the test."""

import os
import pathlib
import re
import subprocess
import sys
import unittest

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs/inference.md"
REPLACED = {"http://localhost:12080": os.environ["CYNODE_URL"], "qwen3:0.6b": "tiny"}


def examples():
    """Headings with the language and the text of their first example."""
    text = DOCUMENT.read_text()
    for heading, section in re.findall(r"^## (.+?)$(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE):
        if found := re.search(r"^```(sh|python)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE):
            yield heading, *found.groups()


class Docs(unittest.TestCase):
    def test_examples_print_answers(self):
        ran = []
        for heading, language, text in examples():
            for old, new in REPLACED.items():
                text = text.replace(old, new)
            command = ["sh"] if language == "sh" else [sys.executable, "-"]
            with self.subTest(heading):
                done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=300)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertTrue(done.stdout.strip())
                if os.environ["CYNODE_MODEL"] == "echo":
                    self.assertIn("hello.", done.stdout)
            ran.append(heading)
        self.assertEqual(len(ran), 5, ran)


if __name__ == "__main__":
    unittest.main()
