"""Every supported architecture, tiny and random: train, save, load, the same again.

python -m pytest tests/test_model.py
"""

import json
import shutil
import sys
import typing

import numpy as np
import pytest
import torch
import transformers as T
from cases.models import ARCHITECTURES, SIZE, SPOILT
from conftest import make_bert, make_tokenizer
from safetensors.torch import load_file, save_file

import model as M
import train
from config import BUNDLED, Config
from data import DataCollator, encode
from support import active, dropout, encoders, tokentable
from support.encoders import inspect_encoder, load_encoder
from support.process import UserError
from support.versions import numbers

TRANSFORMERS_5 = numbers(T.__version__) >= [5]

TEXTS = [
    "i am so happy",
    "the night of the storm",
    "rain",
    "nobody came and the dog ran in the rain , suddenly weeping",
]


def make(folder, kind):
    make_config, size, tokens = ARCHITECTURES[kind]
    tokenizer = make_tokenizer(**tokens)
    torch.manual_seed(0)
    encoder = T.AutoModel.from_config(make_config(vocab_size=len(tokenizer), **size))
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def batch_of(tokenizer, labels=False):
    dataset = encode(tokenizer, TEXTS, 32)
    dataset.targets = np.eye(4, 3, dtype=np.float32) if labels else None
    collate = DataCollator(tokenizer.pad_token_id)
    return dataset, collate([dataset[i] for i in range(len(dataset))])


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_trains_saves_and_loads(kind, tmp_path, monkeypatch):
    encoder_info = inspect_encoder(make(tmp_path / "a", kind))
    m = M.EmotionClassifier(load_encoder(encoder_info.path), Config(labels=list("abc")))
    assert not any("pooler" in n for n, _ in m.named_parameters())
    dataset, batch = batch_of(encoder_info.tokenizer, labels=True)
    y = batch.pop("labels")
    before = {n: p.detach().clone() for n, p in m.named_parameters()}
    optimizer = torch.optim.AdamW(m.parameters(), 1e-3, fused=True)
    for _ in range(2):
        torch.nn.functional.binary_cross_entropy_with_logits(m.train()(**batch), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert sum(not torch.equal(p, before[n]) for n, p in m.named_parameters()) > 0.7 * len(before)
    m.save(tmp_path / "b")
    encoder_info.tokenizer.save_pretrained(tmp_path / "b")
    again = M.EmotionClassifier.load(tmp_path / "b", Config(labels=list("abc")))
    plain = T.AutoModel.from_pretrained(tmp_path / "b").eval()
    with torch.no_grad():
        assert torch.equal(m.eval()(**batch), again(**batch))
        assert torch.allclose(
            plain(**batch).last_hidden_state, m.encoder(**batch).last_hidden_state, atol=1e-6
        )
    monkeypatch.setattr(M, "token_batches", lambda n, _, real=M.token_batches: real(n, 16))
    logits, _ = M.run_over_rows(again, dataset, DataCollator(encoder_info.tokenizer.pad_token_id))
    # whatever the batch and the padding
    assert np.allclose(logits, again(**batch).detach().numpy(), atol=1e-5)


def padding_check(folder):
    encoder_info = inspect_encoder(str(folder))
    encoders.check_weights(encoder_info, batch_of(encoder_info.tokenizer)[0])
    return encoder_info


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_padding_changes_nothing(kind, tmp_path, capsys):
    padding_check(make(tmp_path, kind))
    assert capsys.readouterr().err == ""


def test_an_encoder_that_heeds_padding_is_named_and_one_that_wants_more_than_text_refused(
    tmp_path, train_csv, capsys
):
    """FNet mixes all positions, Nystromformer takes means over the padding too; X-MOD wants to be
    told a language. In transformers 4 FNet takes no mask at all."""
    tokenizer = make_tokenizer()
    for make_config in (T.FNetConfig, T.NystromformerConfig, T.XmodConfig):
        torch.manual_seed(0)
        T.AutoModel.from_config(make_config(vocab_size=len(tokenizer), **SIZE)).save_pretrained(
            tmp_path
        )
        tokenizer.save_pretrained(tmp_path)
        if make_config is T.XmodConfig:
            argv = [
                "--model",
                str(tmp_path),
                "--max-length",
                "32",
                "--train",
                str(train_csv),
                "--out",
                str(tmp_path / "run"),
            ]
            assert train.main(argv) == 2 and not (tmp_path / "run").exists()
            assert "language unknown" in capsys.readouterr().err
        elif make_config is T.FNetConfig and not TRANSFORMERS_5:
            with pytest.raises(UserError, match="unexpected keyword argument 'attention_mask'"):
                padding_check(tmp_path)
        else:
            padding_check(tmp_path)
            assert "padding moves" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_table_of_the_tokens_that_occur_computes_the_same(kind, tmp_path):
    """20 steps in fp32 without dropout on the whole table and on the rows that occur: the same
    weights to 1e-5."""
    encoder_info = inspect_encoder(make(tmp_path / "a", kind))
    dataset, batch = batch_of(encoder_info.tokenizer, labels=True)
    y = batch.pop("labels")
    used = np.union1d(dataset.token_ids, encoder_info.tokenizer.pad_token_id)
    results = []
    for few in (False, True):
        torch.manual_seed(0)
        m = M.EmotionClassifier(load_encoder(encoder_info.path), Config(labels=list("abc"))).eval()
        before = m.encoder(**batch).last_hidden_state
        if few:
            table = tokentable.TokenTable(m.encoder.get_input_embeddings(), used)
            m.encoder.set_input_embeddings(table)
            assert torch.equal(before, m.encoder(**batch).last_hidden_state)
        optimizer = torch.optim.AdamW(m.parameters(), 1e-3, weight_decay=0.1, eps=1e-4)
        for _ in range(20):
            optimizer.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(
                M.compute_loss(m, batch)[0], y
            ).backward()
            optimizer.step()
        rows = len(m.encoder.get_input_embeddings().weight)
        assert rows == (len(used) if few else len(encoder_info.tokenizer))
        results.append(tokentable.whole_state(m.encoder))
        m.encoder.save_pretrained(tmp_path / str(few), state_dict=results[-1])
    whole, few = results
    again = load_encoder(str(tmp_path / "True")).state_dict()
    start = load_encoder(encoder_info.path).state_dict()
    assert whole.keys() == few.keys() and again.keys() <= few.keys()
    for n, p in whole.items():
        if n.endswith("word_embeddings.weight") or n.endswith("tok_embeddings.weight"):
            unused = np.setdiff1d(np.arange(len(p)), used)
            assert len(unused) and torch.equal(few[n][unused], start[n][unused])
            assert not torch.equal(p[unused], start[n][unused])  # decay
            p, few[n] = p[used], few[n][used]
            assert torch.equal(again[n][used], few[n])
        if "key" not in n or "bias" not in n:  # a key's bias has no gradient but rounding
            assert torch.allclose(p, few[n], atol=1e-5), n


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_table_is_used_where_it_pays(kind, tmp_path):
    encoder_info = inspect_encoder(make(tmp_path / "a", kind))
    encoder, rows = load_encoder(encoder_info.path), len(encoder_info.tokenizer)
    tokentable.use_token_table(encoder, np.arange(round(0.8 * rows)))
    assert type(encoder.get_input_embeddings()) is torch.nn.Embedding
    tokentable.use_token_table(encoder, np.array([5, 0, 1, 2, 2]))
    assert len(encoder.get_input_embeddings().weight) == 4


def test_byte_dropout_drops_as_asked_and_repeats():
    d, x = dropout.ByteDropout(0.1).train(), torch.ones(500, 1001, requires_grad=True)
    torch.manual_seed(3)
    a = d(x)
    torch.manual_seed(3)
    assert torch.equal(a, d(x)) and not torch.equal(a, d(x))
    assert abs((a == 0).float().mean() - 0.1) < 0.002 and abs(a.mean() - 1) < 0.003
    a.sum().backward()
    assert torch.equal(x.grad, a.detach())  # the same mask and scale backward
    assert torch.equal(d.eval()(x), x) and torch.equal(dropout.ByteDropout(0.0).train()(x), x)
    pairs = ((a[:, 1:] == 0) & (a[:, :-1] == 0)).float().mean()
    assert abs(pairs - 0.01) < 0.001  # neighbours are independent


def attention_case() -> tuple[list[torch.Tensor], torch.nn.Module, torch.Tensor]:
    """query, key, value (2, 4, 7, 8), a module that looks both ways, a mask of padding."""
    torch.manual_seed(0)
    tensors = [torch.randn(2, 4, 7, 8, requires_grad=True) for _ in range(3)]
    module = torch.nn.Module()
    module.is_causal = False
    mask = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    mask[1, ..., 5:] = False
    return tensors, module, mask


def sdpa(tensors: list[torch.Tensor], mask: torch.Tensor | None) -> torch.Tensor:
    plain = torch.nn.functional.scaled_dot_product_attention
    return plain(*tensors, mask, scale=0.3).transpose(1, 2)


@pytest.mark.parametrize("kind", ["no mask", "booleans", "numbers"])
def test_byte_attention_is_sdpa_but_for_the_masks(kind, monkeypatch):
    """With dropout's mask taken away, the output and the gradients are SDPA's."""
    tensors, module, mask = attention_case()
    lowest = torch.finfo(torch.float32).min
    numbers = torch.zeros(2, 1, 7, 7).masked_fill(~mask, lowest)
    mask = {"no mask": None, "booleans": mask, "numbers": numbers}[kind]
    drops = []
    monkeypatch.setattr(dropout, "byte_dropout", lambda x, p: drops.append(p) or x)
    plain = sdpa(tensors, mask)
    weight = torch.randn(plain.shape)
    wanted = torch.autograd.grad((plain * weight).sum(), tensors)
    for p in (0.0, 0.1):
        out, _ = dropout.byte_attention(module, *tensors, mask, dropout=p, scaling=0.3)
        assert torch.allclose(out, plain, atol=1e-6)
        for grad, want in zip(
            torch.autograd.grad((out * weight).sum(), tensors), wanted, strict=True
        ):
            assert torch.allclose(grad, want, atol=1e-5)
    assert drops == [0.1]


def test_byte_attention_is_sdpa_on_average_and_repeats():
    tensors, module, mask = attention_case()
    options = {"dropout": 0.2, "scaling": 0.3}
    with torch.no_grad():
        torch.manual_seed(3)
        draws = [dropout.byte_attention(module, *tensors, mask, **options)[0] for _ in range(4000)]
        torch.manual_seed(3)
        again, _ = dropout.byte_attention(module, *tensors, mask, **options)
        assert torch.equal(draws[0], again) and not torch.equal(draws[0], draws[1])
        assert (torch.stack(draws).mean(0) - sdpa(tensors, mask)).abs().max() < 0.05


@pytest.mark.parametrize("case", ["causal", "asked to be", "bias", "grouped", "another device"])
def test_byte_attention_leaves_the_rest_to_transformers(case, monkeypatch):
    tensors, module, _ = attention_case()
    options = {"dropout": 0.1}
    module.is_causal = case == "causal"
    module.num_key_value_groups = 2 if case == "grouped" else 1
    if case == "asked to be":
        options["is_causal"] = True
    if case == "bias":
        options["position_bias"] = torch.zeros(1)
    if case == "another device":
        tensors = [x.to("meta") for x in tensors]
    calls = []
    monkeypatch.setattr(dropout, "sdpa_attention_forward", lambda *a, **k: calls.append(k))
    dropout.byte_attention(module, *tensors, None, **options)
    assert calls == [options]


@pytest.mark.skipif(not TRANSFORMERS_5, reason="transformers 4 drops BERT's weights by itself")
def test_attention_drops_with_the_faster_masks_in_training_alone(bert, monkeypatch):
    encoder = load_encoder(str(bert))
    _, batch = batch_of(make_tokenizer())
    dropout.fast_dropout(encoder)
    shapes = []
    monkeypatch.setattr(dropout, "byte_dropout", lambda x, p: shapes.append(x.shape) or x)
    with torch.no_grad():
        trained = encoder.train()(**batch).last_hidden_state
        assert shapes.count((4, 2, 14, 14)) == 2  # the attention weights of two layers
        number = len(shapes)
        found = encoder.eval()(**batch).last_hidden_state
        assert len(shapes) == number
        assert torch.allclose(trained, found, atol=1e-6)
        assert torch.equal(found, load_encoder(str(bert)).eval()(**batch).last_hidden_state)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_fast_dropout_is_used_in_training_and_leaves_no_trace(kind, tmp_path, monkeypatch):
    encoder_info = inspect_encoder(make(tmp_path / "a", kind))
    m = M.EmotionClassifier(load_encoder(encoder_info.path), Config(labels=list("abc")))
    _, batch = batch_of(encoder_info.tokenizer)
    with torch.no_grad():
        before = m.eval()(**batch)
        dropout.fast_dropout(m.encoder)
        assert torch.equal(m.eval()(**batch), before)
        drops, real = [], dropout.byte_dropout
        monkeypatch.setattr(dropout, "byte_dropout", lambda x, p: drops.append(p) or real(x, p))
        m.train()(**batch)
    assert bool(drops) == (kind not in ("albert", "modernbert"))  # whose dropouts are 0
    m.encoder.save_pretrained(tmp_path / "b")
    assert "byte" not in (tmp_path / "b" / "config.json").read_text()


def test_bundled_encoder_is_the_published_one(monkeypatch):
    encoder_info = inspect_encoder(BUNDLED)
    assert (encoder_info.num_parameters, encoder_info.layers) == (22_565_376, 6)
    assert (encoder_info.max_positions, encoder_info.config.hidden_size) == (512, 384)
    monkeypatch.setattr(encoders, "BUNDLED_SHA256", "0" * 64)
    with pytest.raises(UserError, match="not the published"):
        inspect_encoder(BUNDLED)


def test_position_limits(tmp_path):
    limits = {
        k: inspect_encoder(make(tmp_path / k, k)).max_positions
        for k in ("bert", "roberta", "mpnet", "deberta-v2", "modernbert")
    }
    assert limits == {
        "bert": 64,
        "roberta": 62,
        "mpnet": 62,
        "deberta-v2": None,
        "modernbert": None,
    }


def test_half_precision_checkpoint_is_read_as_fp32(tmp_path):
    make(tmp_path / "a", "deberta-v2")
    f = tmp_path / "a" / "model.safetensors"
    save_file({k: v.half() for k, v in load_file(f).items()}, f, {"format": "pt"})
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    config.pop("dtype", None)
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    assert {p.dtype for p in load_encoder(str(tmp_path / "a")).parameters()} == {torch.float32}


def test_missing_weights_are_an_error(tmp_path, bert):
    other = make(tmp_path / "a", "distilbert")
    shutil.copy(bert / "model.safetensors", other)
    with pytest.raises(UserError, match="lack|can't be loaded"):
        load_encoder(other)


def test_a_tokenizer_of_far_fewer_tokens_is_said(tmp_path, capsys):
    folder = make_bert(tmp_path / "a")
    make_tokenizer(first=[f"w{i}" for i in range(99)]).save_pretrained(folder)
    known = len(make_tokenizer(first=[f"w{i}" for i in range(99)]))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 3 * known}))
    inspect_encoder(str(folder))
    assert f"knows {known} tokens, the encoder {3 * known}" in capsys.readouterr().err


@pytest.mark.parametrize("spoil, words", SPOILT)
def test_damaged_model_folders(tmp_path, spoil, words):
    folder = make_bert(tmp_path / "a")
    spoil(folder)
    with pytest.raises(UserError, match=words):
        inspect_encoder(str(folder))


def test_pooling():
    hidden, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert torch.equal(M.pool(hidden, mask, "cls"), hidden[:, 0])
    assert torch.allclose(
        M.pool(hidden, mask, "mean"), torch.stack([hidden[0, :2].mean(0), hidden[1].mean(0)])
    )


def what_it_gives(flag, value):
    """A number that depends on one of the choices of `flag`."""
    if flag == "pooling":
        hidden = torch.tensor([[[1.0], [5.0], [3.0], [9.0]]])
        return M.pool(hidden, torch.tensor([[1, 1, 1, 0]]), value).item()
    config = Config(device="cpu", **{flag: value})
    if flag == "scheduler":
        return train.lr_factor(70, 100, config)
    y = np.eye(2, dtype=np.float32)
    return train.make_criterion(config, y)(torch.tensor([[2.0, -1.0]]), torch.tensor(y[:1])).item()


@pytest.mark.parametrize("flag", ["pooling", "loss", "scheduler"])
def test_each_choice_of_a_flag_does_something_of_its_own(flag):
    """None is missing in `pool`, `make_criterion` or `lr_factor`, or is another's twin."""
    choices = typing.get_args(typing.get_type_hints(Config)[flag])
    values = [round(what_it_gives(flag, value), 6) for value in choices]
    equal = dict(zip(choices, values, strict=True))
    assert len(set(values)) == len(values), f"two choices of {flag} do the same: {equal}"


def test_head_stays_fp32_under_autocast(bert):
    m = M.EmotionClassifier(load_encoder(str(bert)), Config())
    _, batch = batch_of(make_tokenizer())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert M.compute_loss(m, batch)[0].dtype == torch.float32


def sentencepiece_folder(tmp_path, name, settings):
    """A folder with a sentencepiece model of 48 tokens and a tokenizer_config.json."""
    import sentencepiece

    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(f"{t} number {i}" for i in range(60) for t in TEXTS))
    folder = tmp_path / "m"
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / name),
        vocab_size=48,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
        user_defined_symbols=["[MASK]"],
        minloglevel=2,
    )
    (folder / f"{name}.vocab").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_the_tokenizer_is_the_one_that_predict_will_read(tmp_path, train_csv, monkeypatch):
    """RemBERT's, read from sentencepiece.model alone, sets no [CLS] and [SEP]; saved and read again
    it does."""
    folder = sentencepiece_folder(
        tmp_path, "sentencepiece", {"tokenizer_class": "RemBertTokenizer"}
    )
    config = T.RemBertConfig(
        vocab_size=64, **SIZE, input_embedding_size=16, output_embedding_size=16
    )
    T.AutoModel.from_config(config).save_pretrained(folder)
    flags = ["--model", str(folder), "--train", str(train_csv), "--max-length", "32"]
    seen, real = [], train.encode
    monkeypatch.setattr(train, "encode", lambda t, *a: seen.append(t) or real(t, *a))
    monkeypatch.setattr(active, "check_weights", lambda *a: sys.exit(9))  # enough
    with pytest.raises(SystemExit):
        train.main(flags)
    (trained,) = seen
    trained.save_pretrained(tmp_path / "fold")
    config.save_pretrained(tmp_path / "fold")
    again = T.AutoTokenizer.from_pretrained(tmp_path / "fold")
    assert trained(TEXTS)["input_ids"] == again(TEXTS)["input_ids"]
    assert (
        trained(TEXTS)["input_ids"]
        == inspect_encoder(str(tmp_path / "fold")).tokenizer(TEXTS)["input_ids"]
    )


def test_sentencepiece_checkpoint_with_only_a_bin_file(tmp_path):
    """Laid out as DeBERTa-v3 lies on the Hub: spm.model, pytorch_model.bin in fp16, no
    tokenizer.json."""
    folder = sentencepiece_folder(tmp_path, "spm", {"do_lower_case": False, "vocab_type": "spm"})
    make_config, size, _ = ARCHITECTURES["deberta-v2"]
    config = make_config(vocab_size=64, **size)
    encoder = T.AutoModel.from_config(config).half()
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in config.to_dict().items() if k not in ("dtype", "torch_dtype")})
    )
    torch.save(
        {f"deberta.{k}": v for k, v in encoder.state_dict().items()}, folder / "pytorch_model.bin"
    )
    encoder_info = inspect_encoder(str(folder))
    m = M.EmotionClassifier(load_encoder(encoder_info.path), Config(labels=list("abc"))).eval()
    assert torch.equal(
        m.encoder.get_input_embeddings().weight, encoder.get_input_embeddings().weight.float()
    )
    dataset, batch = batch_of(encoder_info.tokenizer)
    assert (dataset.token_ids == encoder_info.tokenizer.unk_token_id).mean() < 0.2
    assert M.compute_loss(m, batch)[0].isfinite().all()
