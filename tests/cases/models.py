"""The encoders of test_model.py, test_export.py and test_odd_files.py, one row each, tiny and random."""

import json

import transformers as T
from conftest import make_tokenizer

SIZE = dict(
    num_hidden_layers=2,
    num_attention_heads=2,
    hidden_size=32,
    intermediate_size=64,
    max_position_embeddings=64,
)
ROBERTA = dict(
    first=["<s>", "<pad>", "</s>", "<unk>"],
    pad="<pad>",
    unk="<unk>",
    cls="<s>",
    sep="</s>",
    mask="<mask>",
)
IDS = dict(pad_token_id=1, bos_token_id=0, eos_token_id=2)
RELATIVE = dict(
    relative_attention=True,
    pos_att_type=["p2c", "c2p"],
    position_biased_input=False,
    max_relative_positions=-1,
)
ARCHITECTURES = {
    "bert": (T.BertConfig, SIZE, {}),
    "roberta": (T.RobertaConfig, {**SIZE, **IDS}, ROBERTA),
    "xlm-roberta": (T.XLMRobertaConfig, {**SIZE, **IDS}, ROBERTA),
    "distilbert": (T.DistilBertConfig, dict(dim=32, hidden_dim=64, n_layers=2, n_heads=2, max_position_embeddings=64), {}),
    "electra": (T.ElectraConfig, {**SIZE, "embedding_size": 16}, {}),
    "albert": (T.AlbertConfig, {**SIZE, "embedding_size": 16}, {}),
    "mpnet": (T.MPNetConfig, {**SIZE, **IDS}, ROBERTA),
    "deberta": (T.DebertaConfig, {**SIZE, **RELATIVE}, {}),
    "deberta-v2": (T.DebertaV2Config, {**SIZE, **RELATIVE, "position_buckets": 16, "share_att_key": True, "norm_rel_ebd": "layer_norm"}, {}),
    "modernbert": (T.ModernBertConfig, {**SIZE, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}, {}),
}  # fmt: skip

SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
GENERATORS = {
    "gpt2": T.GPT2Config(vocab_size=34, n_embd=32, n_layer=2, n_head=2, n_positions=64),
    "opt": T.OPTConfig(vocab_size=34, hidden_size=32, num_hidden_layers=2, ffn_dim=64, num_attention_heads=2, word_embed_proj_dim=32, max_position_embeddings=64),
    "llama": T.LlamaConfig(vocab_size=34, num_key_value_heads=2, **SMALL),
    "qwen2": T.Qwen2Config(vocab_size=34, num_key_value_heads=2, **SMALL),
    "bert as a decoder": T.BertConfig(vocab_size=34, is_decoder=True, max_position_embeddings=64, **SMALL),
}  # fmt: skip


def needs_code(folder):
    """As gte and jina embedding models: config.json names files of Python."""
    path = folder / "config.json"
    code = {"AutoConfig": "configuration.NewConfig", "AutoModel": "modeling.NewModel"}
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "model_type": "new", "auto_map": code})
    )


SPOILT = [  # what is done to the folder; words of the error
    (lambda p: (p / "tokenizer.json").unlink(), "tokenizer"),
    (lambda p: (p / "tokenizer.json").rename(p / "vocab.txt"), "can't be loaded|tokenizer files are missing"),
    (lambda p: (p / "config.json").unlink(), "no config.json"),
    (lambda p: (p / "config.json").write_text("{"), "config.json is damaged or cut short"),
    (lambda p: (p / "tokenizer.json").write_text("{}"), "can't be loaded"),
    (lambda p: make_tokenizer(first=[f"w{i}" for i in range(99)]).save_pretrained(p), "don't belong together"),
    (needs_code, "program code of its own, which is never run"),
]  # fmt: skip


def pointer(name):
    """What Git LFS leaves in place of a file that was not fetched."""
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 90868376\n"
    return lambda p: (p / name).write_text(text)


def cut(name, bytes_left):
    return lambda p: (p / name).write_bytes((p / name).read_bytes()[:bytes_left])


def without(key):
    def spoil(p):
        settings = json.loads((p / "config.json").read_text())
        del settings[key]
        (p / "config.json").write_text(json.dumps(settings))

    return spoil


SOUND = "- use a sound copy, such as a new download"
FILES = [  # what is done to the folder; words of the error
    (pointer("model.safetensors"), "model.safetensors is a Git LFS pointer, not the file itself - run git lfs pull there"),
    (pointer("tokenizer.json"), "tokenizer.json is a Git LFS pointer, not the file itself - run git lfs pull there"),
    (lambda p: [pointer("pytorch_model.bin")(p), (p / "model.safetensors").unlink()], "pytorch_model.bin is a Git LFS pointer"),
    (lambda p: [pointer("model.safetensors")(p), (p / "training_args.bin").write_bytes(b"x")], "model.safetensors is a Git LFS pointer"),
    (cut("model.safetensors", -100), f"model.safetensors is damaged or cut short (Error while deserializing header: incomplete metadata, file not fully covered) {SOUND}"),
    (cut("model.safetensors", 5), "model.safetensors is damaged or cut short"),
    (cut("model.safetensors", 0), "model.safetensors is damaged or cut short"),
    (cut("config.json", 50), "config.json is damaged or cut short (Unterminated string"),
    (cut("tokenizer.json", 200), "tokenizer.json is damaged or cut short ("),
    (cut("tokenizer_config.json", 0), f"tokenizer_config.json is damaged or cut short (Expecting value: line 1 column 1 (char 0)) {SOUND}"),
    (lambda p: (p / "config.json").write_bytes(b"\xff{}"), f"can't decode byte 0xff in position 0: invalid start byte) {SOUND}"),
    (lambda p: [cut("model.safetensors", 0)(p), (p / "model.safetensors").rename(p / "pytorch_model.bin")], f"pytorch_model.bin is damaged or cut short (it is empty) {SOUND}"),
    (lambda p: (p / "model.safetensors").unlink(), "the folder holds no weights (model.safetensors) - save them by save_pretrained"),
    (without("model_type"), ') - add "model_type" to its config.json: "bert", say'),
    (lambda p: (p / "config.json").unlink(), "the folder holds no config.json - give one that save_pretrained wrote"),
    (lambda p: (p / "tokenizer.json").unlink(), "the folder holds no tokenizer file (tokenizer.json, vocab.txt ...) - save the tokenizer there too"),
    (lambda p: (p / "tokenizer.json").write_text("{}"), ") - give a folder as save_pretrained writes it, or another encoder"),
]  # fmt: skip
