"""Train the embedded image model: a small Flux on Noto's emoji and their names, written as a diffusers folder.

    python train.py --out emoji-flux --work work        # hours on two cores; goes on where it was stopped

Two stages. First the autoencoder (pixels to latents of an eighth the size). Then the transformer with both of its text
encoders, all from nothing, by flow matching: on the line from a picture's latents to noise, predict the direction. Made
of diffusers' own modules, so that the folder is one by construction, and reading it is a test of ours.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import shutil
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from data import Emoji, load, phrase
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

CHANNELS = 16  # of the latents, as Flux has
TEXT_TOKENS = 16
CLIP_TOKENS = 24  # while training: CLIP looks back only and is read at its end token, so padding to 77 changes nothing
DROPPED = 0.1  # share of captions that are blanked, so that guidance has something to compare with
KEEP_EVERY = 200
STEPS, GUIDANCE = 20, 3.0  # of a request that does not say


def autoencoder() -> AutoencoderKL:
    """Flux's autoencoder, small: 1.7 million weights."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=64,
        force_upcast=False,
    )


def transformer() -> FluxTransformer2DModel:
    """Flux's transformer, small, with text from nothing: 7 million weights with its text encoders."""
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * CHANNELS,
        num_layers=2,
        num_single_layers=6,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=128,
        pooled_projection_dim=128,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )


def text_encoders(clip_words: CLIPTokenizer, t5_words: T5TokenizerFast) -> tuple[CLIPTextModel, T5EncoderModel]:
    """Two layers each, for the vocabularies of the two tokenizers."""
    clip = CLIPTextConfig(
        vocab_size=len(clip_words),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=128,
        max_position_embeddings=77,
        bos_token_id=clip_words.bos_token_id,
        eos_token_id=clip_words.eos_token_id,
        pad_token_id=clip_words.pad_token_id,
    )
    t5 = T5Config(
        vocab_size=len(t5_words),
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return CLIPTextModel(clip), T5EncoderModel(t5)


def tokenizers(captions: list[str], work: Path) -> tuple[CLIPTokenizer, T5TokenizerFast]:
    """Both vocabularies, made of the captions: CLIP's pairs of bytes and T5's pieces of words."""
    chance = random.Random(0)
    texts = [phrase(caption, chance) for caption in captions for _ in range(6)]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=2600, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False),
    )
    made = json.loads(bpe.to_str())["model"]
    vocab = dict(made["vocab"])
    for character in alphabet:
        vocab.setdefault(character + "</w>", len(vocab))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    folder = work / "clip_tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in made["merges"]) + "\n")
    clip = CLIPTokenizer.from_pretrained(folder, model_max_length=77)

    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    unigram.train_from_iterator(
        texts,
        trainers.UnigramTrainer(
            vocab_size=2000, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
        ),
    )
    unigram.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    (work / "t5_tokenizer").mkdir(exist_ok=True)
    unigram.save(str(work / "t5_tokenizer/tokenizer.json"))
    t5 = T5TokenizerFast(
        tokenizer_object=unigram,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_ids=0,
        model_max_length=TEXT_TOKENS,
    )
    return clip, t5


class Log:
    """Rows of numbers, kept in a file and continued by the next run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **row: float) -> None:
        """Add a row, and print it."""
        fresh = not self.path.exists()
        with self.path.open("a", newline="") as file:
            out = csv.DictWriter(file, row)
            if fresh:
                out.writeheader()
            out.writerow({key: f"{value:.6g}" for key, value in row.items()})
        print(" ".join(f"{key} {value:.5g}" for key, value in row.items()), flush=True)


def rate(step: int, steps: int, peak: float, warm: int = 200) -> float:
    """The learning rate: up in a line, down along a cosine to a hundredth."""
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


def fast_products() -> torch.autocast:
    """Products of bfloat16 in what stands under it, half the time where a processor has them; weights stay float32."""
    return torch.autocast("cpu", dtype=torch.bfloat16)


def pixels(pictures: np.ndarray) -> Tensor:
    """u8[n, h, w, 3] as f32[n, 3, h, w] in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def keep(path: Path, **state: object) -> None:
    """Write what a run needs to go on, whole or not at all."""
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def resume(path: Path, **parts: torch.nn.Module | torch.optim.Optimizer) -> int:
    """Put what `keep` wrote into the parts, if there is any; the steps that were done."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"]


def train_autoencoder(emoji: Emoji, work: Path, steps: int, batch: int) -> AutoencoderKL:
    """Stage one: pictures through 8x8 latents and back. Absolute and squared error, that of edges, a little noise."""
    torch.manual_seed(0)
    vae, log, path = autoencoder(), Log(work / "autoencoder.csv"), work / "autoencoder.pt"
    adam = torch.optim.AdamW(vae.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    average, began = deepcopy(vae).requires_grad_(False), time.monotonic()
    first = resume(path, model=vae, average=average, adam=adam)
    total = 0.0
    for step in range(first, steps):
        chance = np.random.default_rng((1, step))
        shown = pixels(emoji.pictures[chance.choice(len(emoji.captions), batch, p=emoji.weights)])
        if chance.random() < 0.5:
            shown = shown.flip(-1)
        with fast_products():
            posterior = vae.encode(shown).latent_dist
            made = vae.decode(posterior.sample()).sample.float()
        edges = sum((made.diff(dim=d) - shown.diff(dim=d)).abs().mean() for d in (-1, -2))
        loss = (
            (made - shown).abs().mean() + functional.mse_loss(made, shown) + edges + 2e-5 * posterior.kl().mean() / 64
        )
        for group in adam.param_groups:
            group["lr"] = rate(step, steps, 1e-3)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        adam.step()
        follow(average, vae, min(0.998, (step + 1) / (step + 10)))
        total += functional.mse_loss(made, shown).item()
        if (step + 1) % 50 == 0:
            log.write(step=step + 1, minutes=(time.monotonic() - began) / 60, psnr=10 * math.log10(4 / (total / 50)))
            total = 0.0
        if (step + 1) % KEEP_EVERY == 0 or step + 1 == steps:
            keep(path, model=vae.state_dict(), average=average.state_dict(), adam=adam.state_dict(), step=step + 1)
    return average.eval()


@torch.no_grad()
def follow(average: torch.nn.Module, model: torch.nn.Module, share: float) -> None:
    """Move a running average of the weights."""
    for mean, value in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(value, 1 - share)


@torch.no_grad()
def latents_of(vae: AutoencoderKL, pictures: np.ndarray) -> Tensor:
    """Means f32[n, CHANNELS, 8, 8] of all pictures, not scaled."""
    return torch.cat(
        [vae.encode(pixels(part)).latent_dist.mean for part in np.array_split(pictures, len(pictures) // 32)]
    )


def packed(latents: Tensor) -> Tensor:
    """[n, c, h, w] as Flux's tokens [n, h/2 w/2, 4 c]."""
    n, c, h, w = latents.shape
    return latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, 4 * c)


class Drawer(torch.nn.Module):
    """The transformer and its text encoders: what stage two trains together."""

    def __init__(self, clip: CLIPTextModel, t5: T5EncoderModel) -> None:
        super().__init__()
        self.clip, self.t5, self.flux = clip, t5, transformer()

    def forward(self, noisy: Tensor, time: Tensor, clip_ids: Tensor, t5_ids: Tensor) -> Tensor:
        """The predicted direction [n, t, 4 CHANNELS], for tokens of the same shape and their times [n] in 0..1."""
        side = math.isqrt(noisy.shape[1])
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        places = torch.stack((torch.zeros(side, side), rows, columns), -1).view(-1, 3).float()
        return self.flux(
            hidden_states=noisy,
            timestep=time,
            pooled_projections=self.clip(clip_ids).pooler_output,
            encoder_hidden_states=self.t5(t5_ids).last_hidden_state,
            txt_ids=torch.zeros(t5_ids.shape[1], 3),
            img_ids=places,
        ).sample


def train_drawer(emoji: Emoji, vae: AutoencoderKL, work: Path, steps: int, batch: int, words: tuple) -> Drawer:
    """Stage two: flow matching on the latents, with the captions phrased in several ways."""
    clip_words, t5_words = words
    torch.manual_seed(1)
    latents = packed((latents_of(vae, emoji.pictures) - vae.config.shift_factor) * vae.config.scaling_factor)
    drawer, log, path = (
        Drawer(*text_encoders(clip_words, t5_words)),
        Log(work / "transformer.csv"),
        work / "transformer.pt",
    )
    adam = torch.optim.AdamW(drawer.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=1e-3)
    average, began = deepcopy(drawer).requires_grad_(False), time.monotonic()
    drawer.flux.compile()  # a third less time a step; needs a C++ compiler
    first = resume(path, model=drawer, average=average, adam=adam)
    total = 0.0
    for step in range(first, steps):
        chance, words_chance = np.random.default_rng((2, step)), random.Random(step)
        generator = torch.Generator().manual_seed(step)
        picks = chance.choice(len(emoji.captions), batch, p=emoji.weights)
        texts = [
            "" if words_chance.random() < DROPPED else phrase(emoji.captions[pick], words_chance) for pick in picks
        ]
        clip_ids = clip_words(
            texts, padding="max_length", max_length=CLIP_TOKENS, truncation=True, return_tensors="pt"
        ).input_ids
        t5_ids = t5_words(
            texts, padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt"
        ).input_ids
        clean = latents[torch.from_numpy(picks)]
        noise = torch.randn(clean.shape, generator=generator)
        when = torch.sigmoid(torch.randn(batch, generator=generator) * 1.2 + 0.3)
        noisy = torch.lerp(clean, noise, when[:, None, None])
        with fast_products():
            made = drawer(noisy, when, clip_ids, t5_ids)
        loss = functional.mse_loss(made.float(), noise - clean)
        for group in adam.param_groups:
            group["lr"] = rate(step, steps, 1e-3)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(drawer.parameters(), 1.0)
        adam.step()
        follow(average, drawer, min(0.9985, (step + 1) / (step + 10)))
        total += loss.item()
        if (step + 1) % 50 == 0:
            log.write(step=step + 1, minutes=(time.monotonic() - began) / 60, loss=total / 50)
            total = 0.0
        if (step + 1) % KEEP_EVERY == 0 or step + 1 == steps:
            keep(path, model=drawer.state_dict(), average=average.state_dict(), adam=adam.state_dict(), step=step + 1)
    return average.eval()


def pipeline(drawer: Drawer, vae: AutoencoderKL, words: tuple) -> FluxPipeline:
    """All parts as diffusers puts them together."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False)
    return FluxPipeline(scheduler, vae, drawer.clip, words[0], drawer.t5, words[1], drawer.flux)


def main() -> None:
    """Run both stages and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("emoji-flux"), help="folder to write")
    parser.add_argument("--work", type=Path, default=Path("work"), help="data, state and logs of the run")
    parser.add_argument("--autoencoder-steps", type=int, default=1400)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--autoencoder-batch", type=int, default=32)
    parser.add_argument("--batch", type=int, default=96)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    emoji = load(options.work)
    words = tokenizers(emoji.captions, options.work)
    print(f"{len(emoji.captions)} pictures; {len(words[0])} and {len(words[1])} tokens", flush=True)
    vae = train_autoencoder(emoji, options.work, options.autoencoder_steps, options.autoencoder_batch)
    latents = latents_of(vae, emoji.pictures)
    vae.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())
    drawer = train_drawer(emoji, vae, options.work, options.steps, options.batch, words)
    pipeline(drawer.half(), vae.half(), words).save_pretrained(options.out)
    finish(options.out, options.work)


def finish(folder: Path, work: Path) -> None:
    """What a request gets that says nothing, and beside the weights their licence and the run's logs."""
    index = json.loads((folder / "model_index.json").read_text())
    index["_slipstream"] = {"steps": STEPS, "guidance": GUIDANCE}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    here = Path(__file__).parent
    shutil.copy(here / "MODEL.md", folder / "README.md")
    shutil.copy(here.parents[1] / "LICENSE", folder / "LICENSE")
    for log in ("autoencoder.csv", "transformer.csv"):
        shutil.copy(work / log, folder / log)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)


if __name__ == "__main__":
    main()
