"""The examples of docs/agents.md, as they stand there, with the URL and the image of the test: fifty commands each."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs/agents.md"
URL = os.environ["CYNODE_URL"]
REPLACED = {"http://localhost:12080": URL, "IMAGE": os.environ["CYNODE_IMAGE"]}


def examples():
    """Headings with the language and the text of their first example."""
    text = DOCUMENT.read_text()
    for heading, section in re.findall(r"^## (.+?)$(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE):
        if found := re.search(r"^```(sh|python)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE):
            yield heading, *found.groups()


class Agents(unittest.TestCase):
    def test_examples_hold_conversations(self):
        ran = []
        with tempfile.TemporaryDirectory() as home:
            program = pathlib.Path(sys.executable).with_name("openapi-python-client")
            generate = ["generate", "--url", f"{URL}/openapi.json", "--meta", "none", "--output-path", "cynode_api"]
            subprocess.run([program, *generate], cwd=home, check=True, capture_output=True)
            for heading, language, text in examples():
                for old, new in REPLACED.items():
                    text = text.replace(old, new)
                command = ["sh"] if language == "sh" else [sys.executable, "-"]
                environment = os.environ | {"PYTHONPATH": home}
                with self.subTest(heading):
                    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=300, env=environment)
                    self.assertEqual(done.returncode, 0, done.stderr)
                    self.assertEqual(len(done.stdout.splitlines()), 50, done.stdout)
                    self.assertIn("2401", done.stdout)
                ran.append(heading)
        self.assertEqual(len(ran), 3, ran)


if __name__ == "__main__":
    unittest.main()
