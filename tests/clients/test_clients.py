"""Official clients of OpenAI, Anthropic and Ollama at a running cynode.

tests/it/official_clients.rs starts the system and sets:

CYNODE_URL    URL of the gateway
CYNODE_KEY    an API key
CYNODE_MODEL  `echo`, a model that says everything back, or `random`, a real one that says anything; it is named `tiny`
"""

import os
import unittest

import anthropic
import ollama
import openai

URL = os.environ["CYNODE_URL"]
KEY = os.environ["CYNODE_KEY"]
IS_ECHO = os.environ["CYNODE_MODEL"] == "echo"
MODEL = "tiny"
PROMPT = "hello there"
MESSAGES = [{"role": "user", "content": PROMPT}]
MAX_TOKENS = 16


class ClientTest(unittest.TestCase):
    def assert_answer(self, text):
        if IS_ECHO:
            self.assertEqual(text, f"echo: {PROMPT}")
        else:
            self.assertTrue(text)

    def assert_tokens(self, prompt, completion):
        """Checks token counts: the echo's are words."""
        if IS_ECHO:
            self.assertEqual((prompt, completion), (2, 3))
        else:
            self.assertGreater(prompt, 0)
            self.assertTrue(0 < completion <= MAX_TOKENS, completion)


only_echo = unittest.skipUnless(IS_ECHO, "the real server computes no such answers")


class OpenAi(ClientTest):
    def setUp(self):
        self.client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
        self.addCleanup(self.client.close)

    def chat(self, **more):
        return self.client.chat.completions.create(
            **{"model": MODEL, "messages": MESSAGES, "max_tokens": MAX_TOKENS, **more}
        )

    def test_models(self):
        models = self.client.models.list().data
        self.assertEqual([(model.id, model.owned_by) for model in models], [("tiny:latest", "box")])
        self.assertEqual(self.client.models.retrieve("tiny:latest").id, "tiny:latest")

    def test_chat(self):
        answer = self.chat()
        self.assert_answer(answer.choices[0].message.content)
        self.assert_tokens(answer.usage.prompt_tokens, answer.usage.completion_tokens)

    def test_chat_stream(self):
        chunks = list(self.chat(stream=True, stream_options={"include_usage": True}))
        parts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        self.assertGreater(len([part for part in parts if part]), 1, "parts come one by one")
        self.assert_answer("".join(parts))
        usage = chunks[-1].usage
        self.assert_tokens(usage.prompt_tokens, usage.completion_tokens)

    def test_stream_closed_early(self):
        with self.chat(stream=True, max_tokens=1000) as stream:
            next(iter(stream))
        self.assert_answer(self.chat().choices[0].message.content)

    def test_responses(self):
        ask = {"model": MODEL, "input": PROMPT, "max_output_tokens": MAX_TOKENS}
        answer = self.client.responses.create(**ask)
        self.assert_answer(answer.output_text)
        self.assert_tokens(answer.usage.input_tokens, answer.usage.output_tokens)
        events = list(self.client.responses.create(**ask, stream=True))
        self.assertEqual(events[-1].type, "response.completed")
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        self.assert_answer("".join(deltas))

    @only_echo
    def test_embeddings(self):
        answer = self.client.embeddings.create(model=MODEL, input=["hello there", "x"])
        self.assertEqual([data.embedding for data in answer.data], [[11.0, 2.0], [1.0, 1.0]])

    def test_unknown_model(self):
        for stream in (False, True):
            with self.assertRaises(openai.NotFoundError) as caught:
                self.chat(model="other", stream=stream)
            self.assertEqual(caught.exception.code, "model_not_found")
            self.assertIn("tiny:latest", caught.exception.message)

    def test_wrong_key(self):
        client = self.client.with_options(api_key="cyk_wrong")
        with self.assertRaises(openai.AuthenticationError) as caught:
            client.models.list()
        self.assertEqual(caught.exception.code, "invalid_api_key")

    def test_large_body(self):
        messages = [{"role": "user", "content": "x" * (11 << 20)}]
        with self.assertRaises(openai.APIStatusError) as caught:
            self.chat(messages=messages)
        self.assertEqual(caught.exception.status_code, 413)


class Anthropic(ClientTest):
    def setUp(self):
        self.client = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)
        self.addCleanup(self.client.close)
        self.ask = {"model": MODEL, "messages": MESSAGES, "max_tokens": MAX_TOKENS}

    def test_message(self):
        answer = self.client.messages.create(**self.ask)
        self.assert_answer(answer.content[0].text)
        cached = answer.usage.cache_read_input_tokens or 0
        self.assert_tokens(answer.usage.input_tokens + cached, answer.usage.output_tokens)

    def test_message_stream(self):
        with self.client.messages.stream(**self.ask) as stream:
            parts = list(stream.text_stream)
            answer = stream.get_final_message()
        self.assertGreater(len(parts), 1, "parts come one by one")
        self.assert_answer("".join(parts))
        self.assertGreater(answer.usage.output_tokens, 0)

    def test_bearer_token(self):
        with anthropic.Anthropic(base_url=URL, auth_token=KEY, max_retries=0) as client:
            self.assert_answer(client.messages.create(**self.ask).content[0].text)

    def test_unknown_model(self):
        with self.assertRaises(anthropic.NotFoundError) as caught:
            self.client.messages.create(**{**self.ask, "model": "other"})
        error = caught.exception.body["error"]
        self.assertEqual(error["type"], "not_found_error")
        self.assertIn("tiny:latest", error["message"])

    def test_wrong_key(self):
        with anthropic.Anthropic(base_url=URL, api_key="cyk_wrong", max_retries=0) as client:
            with self.assertRaises(anthropic.AuthenticationError) as caught:
                client.messages.create(**self.ask)
        self.assertEqual(caught.exception.body["error"]["type"], "authentication_error")


class Ollama(ClientTest):
    """The model server itself answers here: the real one has no such API, so that the echo stands in for it."""

    def setUp(self):
        self.client = ollama.Client(host=URL, headers={"Authorization": f"Bearer {KEY}"})
        self.addCleanup(self.client.close)
        self.answer = f"echo: {PROMPT}"

    def test_lists(self):
        self.assertEqual([model.model for model in self.client.list().models], ["tiny:latest"])
        self.client.chat(MODEL, MESSAGES)
        self.client.ps()

    def test_chat(self):
        answer = self.client.chat(MODEL, MESSAGES)
        self.assertEqual(answer.message.content, self.answer)
        self.assertEqual((answer.prompt_eval_count, answer.eval_count), (2, 3))

    def test_chat_stream(self):
        parts = list(self.client.chat(MODEL, MESSAGES, stream=True))
        self.assertEqual("".join(part.message.content for part in parts), self.answer)
        self.assertEqual([part.done for part in parts], [False] * 3 + [True])

    def test_generate(self):
        self.assertEqual(self.client.generate(MODEL, PROMPT).response, self.answer)

    def test_embed(self):
        self.assertEqual(self.client.embed(MODEL, ["hello there"]).embeddings, [[11.0, 2.0]])

    def test_show(self):
        self.assertEqual(self.client.show(MODEL).details.format, "gguf")

    def test_unknown_model(self):
        with self.assertRaises(ollama.ResponseError) as caught:
            self.client.chat("other", MESSAGES)
        self.assertEqual(caught.exception.status_code, 404)
        self.assertIn("tiny:latest", caught.exception.error)

    def test_changes_are_refused(self):
        for change in (self.client.pull, self.client.delete, lambda name: self.client.copy(name, "b")):
            with self.assertRaises(ollama.ResponseError) as caught:
                change(MODEL)
            self.assertEqual(caught.exception.status_code, 403)

    def test_no_key(self):
        with ollama.Client(host=URL) as client, self.assertRaises(ollama.ResponseError) as caught:
            client.list()
        self.assertEqual(caught.exception.status_code, 401)


if __name__ == "__main__":
    unittest.main()
