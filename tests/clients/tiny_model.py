"""Writes a language model that knows nothing: `tiny_model.py FILE`.

It has the architecture of Llama, 99 tokens and random weights, always the same, in a file of 200 KB: enough for a real
model server to load it and to stream real tokens.
"""

import string
import sys

import gguf
import numpy

CONTEXT_LENGTH = 2048
WIDTH = 32
HIDDEN = 64
HEADS = 2
BLOCKS = 2
CHAT_TEMPLATE = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}<assistant>"


def vocabulary():
    """Tokens with their types; text is spelled letter by letter, what has no letter is unknown."""
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    yield "<unk>", gguf.TokenType.UNKNOWN
    yield "<s>", control
    yield "</s>", control
    for letter in "\u2581\n" + string.ascii_letters + string.digits + string.punctuation:
        yield letter, normal


def weights(tokens):
    """Tensors by name. A tensor that maps m numbers to n has n rows."""
    random = numpy.random.default_rng(seed=18)

    def matrix(rows, columns=WIDTH):
        return random.normal(scale=0.4, size=(rows, columns)).astype(numpy.float32)

    def norm():
        return numpy.ones(WIDTH, dtype=numpy.float32)

    yield "token_embd", matrix(tokens)
    for n in range(BLOCKS):
        block = f"blk.{n}"
        yield f"{block}.attn_norm", norm()
        for part in ("q", "k", "v", "output"):
            yield f"{block}.attn_{part}", matrix(WIDTH)
        yield f"{block}.ffn_norm", norm()
        yield f"{block}.ffn_gate", matrix(HIDDEN)
        yield f"{block}.ffn_up", matrix(HIDDEN)
        yield f"{block}.ffn_down", matrix(WIDTH, HIDDEN)
    yield "output_norm", norm()
    output = matrix(tokens)
    # What is not text has the score 0, so that many letters are likelier and answers are never empty.
    output[:3] = 0
    yield "output", output


def write(path):
    tokens, types = zip(*vocabulary())
    model = gguf.GGUFWriter(path, "llama")
    model.add_name("tiny")
    model.add_file_type(gguf.LlamaFileType.ALL_F32)
    model.add_context_length(CONTEXT_LENGTH)
    model.add_embedding_length(WIDTH)
    model.add_feed_forward_length(HIDDEN)
    model.add_block_count(BLOCKS)
    model.add_head_count(HEADS)
    model.add_head_count_kv(HEADS)
    model.add_rope_dimension_count(WIDTH // HEADS)
    model.add_layer_norm_rms_eps(1e-5)
    model.add_vocab_size(len(tokens))
    model.add_tokenizer_model("llama")
    model.add_token_list(list(tokens))
    model.add_token_types(list(types))
    model.add_token_scores([-float(n) for n in range(len(tokens))])
    model.add_unk_token_id(0)
    model.add_bos_token_id(1)
    model.add_eos_token_id(2)
    model.add_add_bos_token(True)
    model.add_chat_template(CHAT_TEMPLATE)
    for name, tensor in weights(len(tokens)):
        model.add_tensor(f"{name}.weight", tensor)
    model.write_header_to_file()
    model.write_kv_data_to_file()
    model.write_tensors_to_file()
    model.close()


if __name__ == "__main__":
    write(sys.argv[1])
