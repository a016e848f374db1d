"""Records of what reads and writes text: encoders, decoders, GGUF files, tokenizers."""
import json
import os
import re
import shutil
import tempfile

import numpy as np
import torch

from common import ROOT, fill, filled, makes, public, rand, record, uniform

# What tokenizers are asked. Each has broken one somewhere.
NASTY = [
    "", " ", "  leading and trailing  ", "Hello, World!", "don't we'LL they'Ve I'm you'd it's", "naïve Äpfel über Straße",
    "a\r\nb\n\n c\t d\r", "1 12 123 1234 12345 3.14159 ٣٤٥", "emoji 🦙🔥👩‍👩‍👧 ok", "中文字符 and ひらがな", "e\u0301 vs \u00e9",
    "x" * 40, "<|im_end|> <|eot_id|> <think>hm</think> </s> [SEP] <|endoftext|>", "user\n\n\nfoo  bar   baz", "ﬁne ½ ①",
    "fn main() { println!(\"{}\", 1_000); }", "\u00a0nbsp\u200bzwsp\ufeffbom", "...!!!???---", "a cat. A CAT? a  cat!",
]
# What the small vocabularies are made from.
CORPUS = (
    "the quick brown fox jumps over the lazy dog. a photo of a cat and a dog in the rain, they'll run; it's 1234 or 12. "
    "hello world, we don't know what you'd say. user assistant safe unsafe content conversation the last message. "
) * 2


def byte_letters():
    """The letters that stand for bytes in byte-level vocabularies."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in kept]
    return {b: chr(b) for b in kept} | {b: chr(256 + i) for i, b in enumerate(rest)}


def merges_of(words, count):
    """The most frequent pairs, one after another; of equals the first in the alphabet."""
    words = [list(word) for word in words]
    merges = []
    while len(merges) < count:
        pairs = {}
        for word in words:
            for pair in zip(word, word[1:]):
                pairs[pair] = pairs.get(pair, 0) + 1
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word in words:
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == best:
                    word[i:i + 2] = ["".join(best)]
                i += 1
    return merges


def byte_level(count, cut):
    """Tokens and merges of a byte-level vocabulary."""
    import regex

    letters = byte_letters()
    words = ["".join(letters[b] for b in word.encode()) for word in regex.findall(cut, CORPUS + "Äpfel über 🦙 中文")]
    merges = merges_of(words, count)
    return [*letters.values(), *("".join(pair) for pair in merges)], merges


def cut_of(digits):
    return (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits
            + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


LLAMA_CUT, QWEN_CUT = cut_of(r"\p{N}{1,3}"), cut_of(r"\p{N}")
LLAMA_SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]


@makes
def bert():
    from transformers import BertConfig, BertModel

    config = dict(vocab_size=61, hidden_size=30, intermediate_size=37, num_hidden_layers=2, num_attention_heads=5,
                  max_position_embeddings=13, type_vocab_size=2, layer_norm_eps=1e-12, hidden_act="gelu")
    model = BertModel(BertConfig(**config, attn_implementation="eager")).eval()
    shapes = fill(model)
    tensors = {}
    for case, rows in {"a": [[1, 5, 9, 17, 33, 60, 2], [1, 44, 2, 0, 0, 0, 0]], "b": [[1, 30, 3, 58, 2]]}.items():
        ids = torch.tensor(rows)
        mask = (ids != 0).long()
        out = model(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).float()
        mean = torch.nn.functional.normalize((out * weights).sum(1) / weights.sum(1).clamp(min=1e-9))
        # What stands at padding is of no use to anybody.
        tensors |= {f"ids.{case}": ids, f"mask.{case}": mask, f"out.{case}": out * weights, f"mean.{case}": mean}
    record("bert", tensors, config, shapes)


def decoder(name, kind, **changes):
    import transformers

    config = dict(vocab_size=61, hidden_size=30, intermediate_size=37, num_hidden_layers=2, num_attention_heads=6,
                  num_key_value_heads=2, head_dim=10, max_position_embeddings=64, rms_norm_eps=1e-5,
                  tie_word_embeddings=False, attn_implementation="eager") | changes
    model = getattr(transformers, kind + "ForCausalLM")(getattr(transformers, kind + "Config")(**config)).eval()
    # A head that is the table of tokens has its numbers.
    shapes = fill(model, skip=("lm_head",) if config["tie_word_embeddings"] else ())
    tensors = {}
    for case, rows in {"a": [[1, 5, 9, 17, 33, 60, 2], [3, 44, 2, 7, 8, 9, 50]], "b": [[1, 30, 3, 58, 2, 11, 12, 13, 40, 41, 42, 43]]}.items():
        ids = torch.tensor(rows)
        tensors |= {f"ids.{case}": ids, f"out.{case}": model(ids).logits}
    stored = {k: v for k, v in json.loads(model.config.to_json_string(use_diff=False)).items()
              if k in config or k in ("model_type", "rope_parameters", "hidden_act", "attention_bias", "use_sliding_window")}
    stored.pop("attn_implementation", None)
    record(name, tensors, stored, shapes)


@makes
def llama():
    # Wavelengths of all three kinds: kept, stretched in part, stretched fully.
    scaling = dict(rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=16)
    decoder("llama", "Llama", rope_parameters=scaling)


@makes
def qwen3():
    decoder("qwen3", "Qwen3", tie_word_embeddings=True, rms_norm_eps=1e-6, rope_parameters=dict(rope_type="default", rope_theta=1e6))


def gguf_name(name):
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
             "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
             "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
             "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    stem = name.removesuffix(".weight")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", stem)
    return (names[stem] if not layer else f"blk.{layer[1]}.{parts[layer[2]]}") + ".weight"


def neighbours(matrix, heads):
    """Rows of queries or keys in the order in which llama.cpp turns them."""
    rows, columns = matrix.shape
    return matrix.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(name, architecture, config, tensors, vocabulary, kind_of):
    """Writes golden/<folder>/model.gguf by gguf's own writer; returns the weights as a reader decodes them."""
    import gguf

    os.makedirs(os.path.join(ROOT, name), exist_ok=True)
    path = os.path.join(ROOT, name, "model.gguf")
    writer = gguf.GGUFWriter(path, architecture)
    tokens, kinds, merges, pre, ids = vocabulary
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    for key, value in ids.items():
        writer.add_uint32(f"tokenizer.ggml.{key}", value)
    decoded = {}
    for tensor, numbers in tensors.items():
        kind = gguf.GGMLQuantizationType[kind_of(tensor, numbers)]
        stored = gguf.quants.quantize(numbers, kind)
        decoded[tensor] = gguf.quants.dequantize(stored, kind).astype(np.float32)
        writer.add_tensor(tensor, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return decoded


def greedy(model, ids, count):
    ids = list(ids)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-count:]


def record_gguf(name, architecture, model, vocabulary, kind_of, extra=()):
    config = model.config
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
    fill(model)
    tensors, back = dict(extra), {}
    for tensor, numbers in model.state_dict().items():
        if tensor == "lm_head.weight" and config.tie_word_embeddings:
            continue
        numbers = numbers.numpy()
        turned = next((h for part, h in heads.items() if part in tensor and architecture == "llama"), None)
        back[gguf_name(tensor)] = (tensor, turned)
        tensors[gguf_name(tensor)] = neighbours(numbers, turned) if turned else numbers
    decoded = write_gguf(name, architecture, config, tensors, vocabulary, kind_of)
    state = {}
    for stored, (tensor, turned) in back.items():
        numbers = decoded[stored]
        if turned:
            rows, columns = numbers.shape
            numbers = numbers.reshape(turned, rows // turned // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
        state[tensor] = torch.from_numpy(np.ascontiguousarray(numbers))
    model.load_state_dict(state, strict=False)
    tensors = {}
    for case, row in {"a": [300, 5, 9, 17, 33, 60, 2], "b": [1, 130, 3, 258, 2, 11, 12, 13, 40, 41, 42]}.items():
        ids = torch.tensor([row])
        tensors |= {f"ids.{case}": ids, f"out.{case}": model(ids).logits, f"next.{case}": torch.tensor(greedy(model, row, 9))}
    record(name, tensors)


def vocabulary_of(cut, special, pre, ids, user=()):
    tokens, merges = byte_level(90, cut)
    kinds = [1] * len(tokens) + [4 if s in user else 3 for s in special]
    tokens = tokens + special
    numbers = {key: tokens.index(token) for key, token in ids.items()}
    return tokens, kinds, merges, pre, numbers


@makes
def gguf_llama():
    """A Llama with the frequencies of Llama 3.2 in a tensor of their own, all in F32, queries and keys reordered."""
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = vocabulary_of(LLAMA_CUT, LLAMA_SPECIAL, "llama-bpe", {"bos_token_id": LLAMA_SPECIAL[0], "eos_token_id": "<|eot_id|>"})
    scaling = dict(rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=16)
    config = LlamaConfig(vocab_size=len(vocabulary[0]), hidden_size=18, intermediate_size=13, num_hidden_layers=2,
                         num_attention_heads=3, num_key_value_heads=1, head_dim=10, max_position_embeddings=512,
                         rms_norm_eps=1e-5, tie_word_embeddings=True, rope_parameters=scaling, attn_implementation="eager")
    model = LlamaForCausalLM(config).eval()
    plain = 1.0 / 500.0 ** (torch.arange(0, 10, 2).float() / 10)
    factors = (plain / model.model.rotary_emb.inv_freq).numpy().astype(np.float32)
    record_gguf("gguf_llama", "llama", model, vocabulary, lambda *_: "F32", {"rope_freqs.weight": factors})


@makes
def gguf_qwen3():
    """A Qwen3 as Ollama has them: most matrices in blocks."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    vocabulary = vocabulary_of(QWEN_CUT, QWEN_SPECIAL, "qwen2", {"eos_token_id": "<|im_end|>"}, user=("<think>", "</think>"))
    config = Qwen3Config(vocab_size=len(vocabulary[0]), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
                         rms_norm_eps=1e-6, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1e6),
                         attn_implementation="eager")

    def kind_of(name, numbers):
        kinds = {"attn_k.weight": "Q5_0", "attn_v.weight": "F16", "ffn_up.weight": "Q4_1", "attn_output.weight": "BF16"}
        if numbers.ndim == 1:
            return "F32"
        return next((kind for part, kind in kinds.items() if name.endswith(part)), "Q8_0")

    record_gguf("gguf_qwen3", "qwen3", Qwen3ForCausalLM(config).eval(), vocabulary, kind_of)


@makes
def gguf_kinds():
    """Every number format that is decoded, and all others by name: bytes at random, scales that are numbers."""
    import gguf

    folder = os.path.join(ROOT, "gguf_kinds")
    os.makedirs(folder, exist_ok=True)
    # Where the half-precision scales of a block are.
    scales = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
              "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}

    def blocks(name, rows, row):
        kind = gguf.GGMLQuantizationType[name]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        count = rows * row // block
        raw = ((uniform("bytes of " + name, count * size) + 1) * 128).astype(np.uint8).reshape(count, size)
        small = (uniform("scales of " + name, count * 2) * 0.05).astype(np.float16)
        for i, at in enumerate(scales.get(name, [])):
            raw[:, at:at + 2] = small[i::2].reshape(count, 1).view(np.uint8)
        return raw.reshape(rows, -1), kind

    tensors = {}
    writer = gguf.GGUFWriter(os.path.join(folder, "kinds.gguf"), "none")
    writer.add_bool("test.yes", True)
    writer.add_int64("test.negative", -5)
    writer.add_float64("test.half", 0.5)
    writer.add_array("test.nested", ["a", "ü", ""])
    for name in scales:
        rows, row = 3, 256 if name.endswith("K") else 160
        raw, kind = blocks(name, rows, row)
        writer.add_tensor(name, raw, raw_dtype=kind)
        tensors[name] = torch.from_numpy(gguf.quants.dequantize(raw, kind).astype(np.float32).copy())
    for name, dtype in (("F32", np.float32), ("F16", np.float16)):
        numbers = uniform(name, 3 * 7 * 5).reshape(3, 7, 5).astype(dtype)
        writer.add_tensor(name, numbers)
        tensors[name] = torch.from_numpy(numbers.astype(np.float32))
    bf16 = rand("BF16", 5, 3).bfloat16()
    writer.add_tensor("BF16", bf16.view(torch.int16).numpy().view(np.uint8).reshape(5, -1), raw_dtype=gguf.GGMLQuantizationType.BF16)
    tensors["BF16"] = bf16.float()
    # No reference decodes this one: a single-precision scale, 256 numbers, 16 sums.
    codes = (uniform("codes", 512) * 127).astype(np.int8).reshape(2, 256)
    scale = np.array([[0.037], [-1.5]], np.float32)
    sums = codes.reshape(2, 16, 16).sum(2).astype(np.int16)
    raw = np.concatenate([scale.view(np.uint8), codes.view(np.uint8), sums.view(np.uint8)], 1)
    writer.add_tensor("Q8_K", raw, raw_dtype=gguf.GGMLQuantizationType.Q8_K)
    tensors["Q8_K"] = torch.from_numpy(codes.astype(np.float32) * scale)
    finish(writer)
    record("gguf_kinds", tensors)

    writer = gguf.GGUFWriter(os.path.join(folder, "others.gguf"), "none")
    for name in ("Q8_1", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16", "I32",
                 "I64", "F64", "IQ1_M", "TQ1_0", "TQ2_0", "MXFP4"):
        kind = gguf.GGMLQuantizationType[name]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        writer.add_tensor(name, np.zeros((1, size), np.uint8), raw_shape=(1, size), raw_dtype=kind)
    writer.add_tensor("F32", np.ones(3, np.float32))
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def asked(encode):
    """The numbers of every text."""
    return [[text, [int(n) for n in encode(text)]] for text in NASTY]


def store(name, file, content):
    folder = os.path.join(ROOT, name)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, file), "w") as out:
        json.dump(content, out, ensure_ascii=True, separators=(",", ":"))
        out.write("\n")


@makes
def tokenizers_gguf():
    """Llama 3 by tiktoken, whose format its tokenizer has; Qwen by transformers. Over the vocabularies of the GGUFs."""
    import tiktoken
    from transformers import Qwen2Tokenizer

    letters = {letter: byte for byte, letter in byte_letters().items()}
    tokens, _ = byte_level(90, LLAMA_CUT)
    ranks = {bytes(letters[letter] for letter in token): i for i, token in enumerate(tokens)}
    # tiktoken numbers bytes by rank too; ours are numbered in the order of the list, so both are the same.
    llama = tiktoken.Encoding("llama", pat_str=LLAMA_CUT, mergeable_ranks=ranks,
                              special_tokens={s: len(tokens) + i for i, s in enumerate(LLAMA_SPECIAL)})
    tokens, merges = byte_level(90, QWEN_CUT)
    qwen = Qwen2Tokenizer(vocab={t: i for i, t in enumerate(tokens + QWEN_SPECIAL)}, merges=merges)
    from tokenizers import AddedToken

    qwen.add_tokens([AddedToken(t, special=t.startswith("<|"), normalized=False) for t in QWEN_SPECIAL])
    store("tokenizers", "gguf.json", {
        "llama": asked(lambda text: llama.encode(text, allowed_special="all")),
        "llama_foreign": asked(lambda text: llama.encode(text, disallowed_special=())),
        "qwen3": asked(lambda text: qwen(text, add_special_tokens=False).input_ids),
    })


def clip_vocabulary(count):
    """Tokens and merges of a small CLIP."""
    import regex

    letters = byte_letters()
    cut = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    words = [[letters[b] for b in word.encode()] for word in regex.findall(cut, CORPUS.lower())]
    merges = merges_of([word[:-1] + [word[-1] + "</w>"] for word in words], count)
    tokens = [*letters.values(), *(letter + "</w>" for letter in letters.values()), *("".join(pair) for pair in merges)]
    return {t: i for i, t in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}, merges


def write_clip(folder, padding, length):
    """A CLIP tokenizer as model repositories have it: vocabulary, merges, settings."""
    os.makedirs(folder, exist_ok=True)
    vocabulary, merges = clip_vocabulary(60)
    with open(os.path.join(folder, "vocab.json"), "w") as out:
        json.dump(vocabulary, out, separators=(",", ":"))
    with open(os.path.join(folder, "merges.txt"), "w") as out:
        out.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    settings = {"model_max_length": length, "pad_token": padding, "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>",
                "unk_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer"}
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as out:
        json.dump(settings, out, separators=(",", ":"))


@makes
def tokenizers_clip():
    """A small vocabulary in both layouts, padded as diffusers does it; and the real one, which open_clip brings."""
    import gzip

    import open_clip
    from transformers import CLIPTokenizer

    found = {}
    for name, padding in (("clip_l", "<|endoftext|>"), ("clip_g", "!")):
        folder = os.path.join(ROOT, "tokenizers", name)
        write_clip(folder, padding, 23)
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        padded = lambda text: tokenizer(text, padding="max_length", max_length=23, truncation=True).input_ids
        found[name] = asked(padded)
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
        if name == "clip_l":
            tokenizer.backend_tokenizer.save(os.path.join(ROOT, "tokenizers", "clip_tokenizer.json"), pretty=False)
    lines = gzip.open(os.path.join(os.path.dirname(open_clip.__file__), "bpe_simple_vocab_16e6.txt.gz"), "rt", encoding="utf-8").read().split("\n")
    merges = [tuple(line.split()) for line in lines[1:49152 - 256 - 2 + 1]]
    letters = list(byte_letters().values())
    # open_clip's order of letters is that of its own table: kept bytes first.
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    vocabulary = {t: i for i, t in enumerate(tokens + ["<|startoftext|>", "<|endoftext|>"])}
    real = CLIPTokenizer(vocab=vocabulary, merges=merges)
    found["real"] = asked(lambda text: real(text).input_ids)
    other = open_clip.SimpleTokenizer()
    same = [text for text in NASTY if [49406, *other.encode(text), 49407] == real(text).input_ids]
    print("open_clip agrees on", len(same), "of", len(NASTY))
    store("tokenizers", "clip.json", found)


@makes
def tokenizers_t5():
    """A small sentencepiece model, and what T5's tokenizer makes of it."""
    import io

    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2
    from transformers import T5Tokenizer

    folder = os.path.join(ROOT, "tokenizers", "t5")
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        rules = os.path.join(scratch, "rules.tsv")
        with open(rules, "w") as out:
            # The real table has 237 KB; these are of its kinds.
            for source, target in (("FB01", "66 69"), ("BD", "31 2044 32"), ("2460", "31"), ("A0", "20"), ("9", "20"), ("A", "20"),
                                   ("D", "20"), ("200B", ""), ("FEFF", ""), ("65 301", "E9"), ("FF21", "41")):
                out.write(f"{source}\t{target}\n")
        model = io.BytesIO()
        words = re.findall(r"\S+", CORPUS)
        sentences = [" ".join(words[i:i + 7]) for i in range(0, len(words), 5)] * 3 + ["Äpfel über Straße 12345 naïve cafés HELLO World!"]
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), model_writer=model, model_type="unigram", vocab_size=140, pad_id=0, eos_id=1,
            unk_id=2, bos_id=-1, normalization_rule_tsv=rules, num_threads=1, minloglevel=2, hard_vocab_limit=False,
        )
        made = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
        # The path of the rules, which is another each time; the rules themselves are in the model.
        made.normalizer_spec.ClearField("normalization_rule_tsv")
        with open(os.path.join(folder, "spiece.model"), "wb") as out:
            out.write(made.SerializeToString())
    tokenizer = T5Tokenizer.from_pretrained(folder)
    found = {"spiece": asked(lambda text: tokenizer(text).input_ids)}
    found["padded"] = asked(lambda text: tokenizer(text, padding="max_length", max_length=9, truncation=True).input_ids)
    found["sentinel"] = tokenizer("a <extra_id_0> b <extra_id_99>").input_ids
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.save(os.path.join(ROOT, "tokenizers", "t5_tokenizer.json"), pretty=False)
    store("tokenizers", "t5.json", found)


@makes
def tokenizers_minilm():
    """Word pieces over the real vocabulary of all-MiniLM-L6-v2; LARDER_TEST_PARTS says where its folder lies."""
    from tokenizers import Tokenizer
    from transformers import BertTokenizer

    folder = os.path.join(os.environ["LARDER_TEST_PARTS"], "minilm")
    tokenizer = BertTokenizer.from_pretrained(folder)
    store("tokenizers", "minilm.json", {"minilm": asked(lambda text: tokenizer(text).input_ids)})


@makes
def minilm():
    """What transformers makes of sentences with the real all-MiniLM-L6-v2; LARDER_TEST_PARTS says where it lies."""
    from transformers import BertModel, BertTokenizer

    folder = os.path.join(os.environ["LARDER_TEST_PARTS"], "minilm")
    model, tokenizer = BertModel.from_pretrained(folder, attn_implementation="eager").eval(), BertTokenizer.from_pretrained(folder)
    sentences = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium.",
                 "Äpfel über Straße 🦙 " * 3, ""]
    found = []
    for sentence in sentences:
        ids = torch.tensor([tokenizer(sentence, truncation=True, max_length=256).input_ids])
        found.append(torch.nn.functional.normalize(model(input_ids=ids).last_hidden_state.mean(1))[0])
    record("minilm", {"embeddings": torch.stack(found)}, sentences)


@makes
def pipeline_texts():
    """SD 3 and Stable Audio from text: the small tokenizers in place of numbers."""
    from diffusers import (AutoencoderKL, AutoencoderOobleck, CosineDPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler,
                           SD3Transformer2DModel, StableAudioDiTModel, StableAudioPipeline, StableDiffusion3Pipeline)
    from diffusers.pipelines.stable_audio import StableAudioProjectionModel
    from diffusers.schedulers import scheduling_cosine_dpmsolver_multistep as scheduling
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

    at = lambda name: os.path.join(ROOT, "tokenizers", name)
    clip_l, clip_g, t5 = CLIPTokenizer.from_pretrained(at("clip_l")), CLIPTokenizer.from_pretrained(at("clip_g")), T5Tokenizer.from_pretrained(at("t5"))
    tower = dict(vocab_size=len(clip_l), max_position_embeddings=23, bos_token_id=len(clip_l) - 2, eos_token_id=len(clip_l) - 1, pad_token_id=1,
                 hidden_size=16, intermediate_size=37, num_hidden_layers=2, num_attention_heads=2)
    configs = {"text_encoder": tower | dict(projection_dim=14, hidden_act="quick_gelu"),
               "text_encoder_2": tower | dict(hidden_size=18, projection_dim=10, hidden_act="gelu"),
               "text_encoder_3": dict(vocab_size=len(t5), d_model=46, d_kv=6, d_ff=37, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu")}
    clip = lambda name: CLIPTextModelWithProjection(CLIPTextConfig(**configs[name])).eval()

    def tower_of(config):
        model = T5EncoderModel(T5Config(**config, pad_token_id=0, decoder_start_token_id=0)).eval()
        model.encoder.embed_tokens = model.shared
        return model

    parts = dict(
        text_encoder=clip("text_encoder"), text_encoder_2=clip("text_encoder_2"), text_encoder_3=tower_of(configs["text_encoder_3"]),
        transformer=SD3Transformer2DModel(
            sample_size=6, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=12,
            num_attention_heads=2, joint_attention_dim=46, caption_projection_dim=24, pooled_projection_dim=24,
            pos_embed_max_size=7, qk_norm="rms_norm").eval(),
        vae=AutoencoderKL(
            in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(6, 10), layers_per_block=1, latent_channels=4, norm_num_groups=2, use_quant_conv=False,
            use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5305).eval(),
    )
    shapes = {"sd3." + name: fill(model, skip=("embed_tokens",)) for name, model in parts.items()}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = StableDiffusion3Pipeline(scheduler=scheduler, tokenizer=clip_l, tokenizer_2=clip_g, tokenizer_3=t5, **parts)
    pipe.set_progress_bar_config(disable=True)
    wanted, unwanted = "A photo of a naïve CAT, it's 1234 in the rain! " * 2, "ugly"
    noise = rand("texts sd3", 1, 4, 6, 10)
    image = pipe(wanted, negative_prompt=unwanted, height=12, width=20, num_inference_steps=2, guidance_scale=4.5, latents=noise,
                 output_type="pt").images
    config = {"sd3": configs | dict(transformer=public(parts["transformer"].config), vae=public(parts["vae"].config),
                                    scheduler=public(scheduler.config)), "wanted": wanted, "unwanted": unwanted}
    tensors = {"sd3.noise": noise, "sd3.out": image}

    audio = dict(vocab_size=len(t5), d_model=12, d_kv=6, d_ff=37, num_layers=2, num_heads=3, feed_forward_proj="relu")
    parts = dict(
        text_encoder=tower_of(audio),
        projection_model=StableAudioProjectionModel(text_encoder_dim=12, conditioning_dim=12, min_value=0, max_value=9).eval(),
        transformer=StableAudioDiTModel(
            sample_size=11, in_channels=3, out_channels=3, num_layers=2, attention_head_dim=12, num_attention_heads=2,
            num_key_value_attention_heads=1, cross_attention_dim=12, time_proj_dim=10, global_states_input_dim=24,
            cross_attention_input_dim=12).eval(),
        vae=AutoencoderOobleck(
            encoder_hidden_size=6, downsampling_ratios=[2, 4], channel_multiples=[1, 2], decoder_channels=4,
            decoder_input_channels=3, audio_channels=2, sampling_rate=10).eval(),
    )
    shapes |= {"audio." + name: fill(model, skip=("embed_tokens",)) for name, model in parts.items()}
    scheduler = CosineDPMSolverMultistepScheduler(sigma_data=0.1)
    t5.model_max_length = 19
    pipe = StableAudioPipeline(scheduler=scheduler, tokenizer=t5, **parts)
    pipe.set_progress_bar_config(disable=True)
    # The first numbers of the stream of seed 7, as the Rust side draws them: in pairs, so one of 34 is left over.
    stream = gaussian(7, 4 * 34).reshape(4, 34)[:, :33].reshape(4, 1, 3, 11)
    fresh = iter(stream[1:])
    scheduling.BrownianTreeNoiseSampler = lambda *_, **__: lambda sigma, after: next(fresh)
    sound = pipe(wanted, audio_end_in_s=5.3, num_inference_steps=3, guidance_scale=2.5, latents=stream[0], output_type="pt").audios
    config["audio"] = dict(text_encoder=audio, projection_model=public(parts["projection_model"].config),
                           transformer=public(parts["transformer"].config), vae=public(parts["vae"].config),
                           scheduler=public(scheduler.config))
    tensors |= {"audio.out": sound, "audio.noise": stream[0]}
    # The same weights in single files: a recipe for each part, by the prefix that its names have there.
    import make

    times = {name: [[name, 0, 1]] for name in shapes["audio.projection_model"]}
    for part, other in {"start_number_conditioner": "seconds_start", "end_number_conditioner": "seconds_total"}.items():
        times = {name.replace(part + ".time_positional_embedding", other + ".embedder.embedding"): v for name, v in times.items()}
    recipes = {
        "sd3.transformer.single_file": make.sd3_single_file(shapes["sd3.transformer"], 2),
        "sd3.vae.single_file": make.vae_single_file(shapes["sd3.vae"], 2),
        "audio.transformer.single_file": make.stable_audio_single_file(shapes["audio.transformer"]),
        "audio.projection_model.single_file": times,
        "audio.vae.single_file": make.oobleck_single_file(shapes["audio.vae"], 2),
    }
    record("pipeline_texts", tensors, config, **shapes, **recipes)


def gaussian(seed, count):
    """splitmix64 and the Box-Muller transform, as samplers/noise.rs has them."""
    import math

    numbers, state, mask = [], seed, (1 << 64) - 1

    def uniform_number():
        nonlocal state
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return ((z ^ (z >> 31)) >> 11) / (1 << 53)

    while len(numbers) < count + count % 2:
        length, angle = uniform_number(), uniform_number()
        length = math.sqrt(-2 * math.log(1 - length))
        numbers += [length * math.cos(2 * math.pi * angle), length * math.sin(2 * math.pi * angle)]
    return torch.tensor(numbers[:count], dtype=torch.float64).float()
