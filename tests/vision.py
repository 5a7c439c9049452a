"""Small vision encoders with random weights, as Hugging Face writes them, and pictures whose colour is what counts."""

import io
import json

import numpy as np
import torch
from PIL import Image

SIZE = 32


def _processor(folder, kind, **size):
    settings = {
        "image_processor_type": kind, "do_resize": True, "do_normalize": True, "do_rescale": True, "resample": 2,
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": size or {"height": SIZE, "width": SIZE},
        "crop_size": {"height": SIZE, "width": SIZE},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def small_vit(folder, seed=0):
    """A ViT of two layers. Its vectors tell colours apart, as random features do."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=SIZE, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    _processor(folder, "ViTImageProcessor")
    return folder


def small_dinov2(folder):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(1)
    config = Dinov2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=SIZE, patch_size=8)
    Dinov2Model(config).save_pretrained(folder)
    _processor(folder, "BitImageProcessor")
    return folder


def small_convnext(folder):
    from transformers import ConvNextConfig, ConvNextModel

    torch.manual_seed(2)
    ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)).save_pretrained(folder)
    _processor(folder, "ConvNextImageProcessor", shortest_edge=SIZE)
    return folder


def small_efficientnet(folder):
    from transformers import EfficientNetConfig, EfficientNetModel

    torch.manual_seed(4)
    config = EfficientNetConfig(
        image_size=SIZE, width_coefficient=0.25, depth_coefficient=0.2, kernel_sizes=[3, 3], in_channels=[8, 8],
        out_channels=[8, 16], depthwise_padding=[], strides=[1, 2], num_block_repeats=[1, 1], expand_ratios=[1, 2],
        hidden_dim=320, initializer_range=0.5,
    )  # fmt: skip
    EfficientNetModel(config).save_pretrained(folder)
    _processor(folder, "EfficientNetImageProcessor")
    return folder


LAYER = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
LONGEST_TEXT = 16


def small_clip(folder, words="red green blue shoes coffee"):
    """A CLIP of one layer each for pictures and words."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(3)
    size = _tokenizer(folder, words, single="<|startoftext|> $A <|endoftext|>")
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    config = CLIPConfig(
        text_config={**LAYER, **ends, "vocab_size": size, "max_position_embeddings": LONGEST_TEXT},
        vision_config={**LAYER, "image_size": SIZE, "patch_size": 8},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    _processor(folder, "CLIPImageProcessor")
    return folder


def small_siglip(folder, words="red green blue shoes coffee"):
    """A SigLIP of one layer each: it reads the last of LONGEST_TEXT places of a text, most of which are filling."""
    from transformers import SiglipConfig, SiglipModel

    torch.manual_seed(5)
    size = _tokenizer(folder, words, single="$A <|endoftext|>")
    config = SiglipConfig(
        text_config={**LAYER, "vocab_size": size, "max_position_embeddings": LONGEST_TEXT, "pad_token_id": 1},
        vision_config={**LAYER, "image_size": SIZE, "patch_size": 8},
    )
    SiglipModel(config).save_pretrained(folder)
    _processor(folder, "SiglipImageProcessor")
    return folder


def _tokenizer(folder, words, single):
    """Whole words, each text between the tokens of `single`; returns how many there are."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "<unk>": 2} | {
        word: 3 + at for at, word in enumerate(words.split())
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<|startoftext|>", 0), ("<|endoftext|>", 1)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|startoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>",
        unk_token="<unk>", model_max_length=LONGEST_TEXT,
    )  # fmt: skip
    fast.save_pretrained(folder)
    return len(vocabulary)


def png(colour, *, size=(24, 20), seed=0, form="PNG"):
    """Bytes of a picture of about one colour (3 numbers from 0 to 1), a little noisy."""
    rng = np.random.default_rng(seed)
    cells = np.clip(np.asarray(colour)[None, None] + rng.normal(0, 0.03, (size[1], size[0], 3)), 0, 1)
    target = io.BytesIO()
    Image.fromarray((cells * 255).astype(np.uint8)).save(target, form)
    return target.getvalue()
