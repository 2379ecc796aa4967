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


# Bytes that are no text go in and come out by the generated client.
FILES = """
import io, os
from cynode_api import AuthenticatedClient
from cynode_api.api.sandboxes import create_sandbox, delete_sandbox, read_file, write_file
from cynode_api.models import CreateSandbox
from cynode_api.types import File

api = AuthenticatedClient("http://localhost:12080", os.environ["CYNODE_TOKEN"], raise_on_unexpected_status=True)
box = str(create_sandbox.sync(client=api, body=CreateSandbox(image="IMAGE")).id)
data = bytes(range(256)) * 1000
write_file.sync(box, client=api, path="all", body=File(payload=io.BytesIO(data)))
assert read_file.sync(box, client=api, path="all").payload.read() == data
delete_sandbox.sync_detailed(box, client=api)
"""


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
            self.run_example("files", "python", FILES, home)
            for heading, language, text in examples():
                with self.subTest(heading):
                    done = self.run_example(heading, language, text, home)
                    self.assertEqual(len(done.stdout.splitlines()), 50, done.stdout)
                    self.assertIn("2401", done.stdout)
                ran.append(heading)
        self.assertEqual(len(ran), 3, ran)

    def run_example(self, heading, language, text, home):
        for old, new in REPLACED.items():
            text = text.replace(old, new)
        command = ["sh"] if language == "sh" else [sys.executable, "-"]
        environment = os.environ | {"PYTHONPATH": home}
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=300, env=environment)
        self.assertEqual(done.returncode, 0, f"{heading}: {done.stderr}")
        return done


if __name__ == "__main__":
    unittest.main()
