"""Small audio encoders with random weights, as Hugging Face writes them, and sounds whose chord is what counts."""

import io

import numpy as np
import soundfile
import torch

RATE = 8_000
TONES = (300, 900, 2_000)


def wav(loudness, *, seconds=0.3, rate=RATE, seed=0, form="WAV", channels=1):
    """Bytes of a chord: three numbers from 0 to 1 say how loud its three tones are; a little noise and a phase of their own."""
    rng = np.random.default_rng(seed)
    moment = np.arange(int(seconds * rate)) / rate
    tones = [np.sin(2 * np.pi * (tone * moment + rng.random())) for tone in TONES]
    samples = 0.3 * np.asarray(loudness) @ np.array(tones) + rng.normal(0, 0.003, len(moment))
    target = io.BytesIO()
    soundfile.write(target, np.tile(samples[:, None], channels).astype(np.float32), rate, format=form)
    return target.getvalue()


def small_whisper(folder):
    """A Whisper of one layer that hears a second."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=8, max_source_positions=50, max_target_positions=8,
        vocab_size=40, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    WhisperModel(config).save_pretrained(folder)
    # At its own rate: the filters reach to 8,000 Hz whatever the rate, and those beyond half of a lower one stay empty.
    WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(folder)
    return folder


def small_wav2vec2(folder):
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    torch.manual_seed(1)
    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conv_dim=(16, 16, 16),
        conv_stride=(5, 4, 4), conv_kernel=(10, 8, 4), num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=RATE).save_pretrained(folder)
    return folder


def small_ast(folder):
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    torch.manual_seed(2)
    config = ASTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_mel_bins=16, max_length=64
    )
    ASTModel(config).save_pretrained(folder)
    ASTFeatureExtractor(sampling_rate=16_000, num_mel_bins=16, max_length=64).save_pretrained(folder)
    return folder


def small_clap(folder):
    """A CLAP of words and sounds."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

    torch.manual_seed(3)
    words = {word: at for at, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "a", "low", "high", "sound", "song"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=16
    )
    config = ClapConfig(
        text_config={
            "vocab_size": len(words), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "max_position_embeddings": 20,
        },
        audio_config={
            "spec_size": 64, "num_mel_bins": 8, "window_size": 4, "patch_embeds_hidden_size": 16, "depths": [1, 1],
            "num_attention_heads": [2, 2], "hidden_size": 32, "num_hidden_layers": 2, "enable_fusion": False,
        },
        projection_dim=16,
    )  # fmt: skip
    ClapModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    ClapFeatureExtractor(
        feature_size=8, sampling_rate=16_000, hop_length=160, max_length_s=1, fft_window_size=1024, truncation="rand_trunc"
    ).save_pretrained(folder)
    return folder
