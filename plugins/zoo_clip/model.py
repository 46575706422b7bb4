"""CLIP: which caption belongs to which picture.

[1] A. Radford et al.: Learning Transferable Visual Models From Natural Language Supervision. arXiv:2103.00020
[2] P. Khosla et al.: Supervised Contrastive Learning. arXiv:2004.11362

Shapes: B local batch, G global batch, T text tokens, E joint embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import PartMismatch
from zoo.interfaces import Batch, Cond, Losses, Tokenizer
from zoo.nn import across
from zoo.rng import Rng
from zoo_clip.configs import Clip as Config
from zoo_clip.towers import TextTower, VisionTower


class _Ceiling(torch.autograd.Function):
    """min(x, top). Above it the gradient passes only if it leads back down, as if x were set back after each step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, top: float) -> Tensor:
        ctx.save_for_backward(x >= top)
        return x.clamp(max=top)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (held,) = ctx.saved_tensors
        return torch.where(held, grads[0].clamp(min=0), grads[0]), None


def square(images: Tensor, size: int) -> Tensor:
    """Return images [B,3,H,W] as [B,3,size,size]: the short side resized (bicubic, antialiased), the centre cut out."""
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    scale = size / min(height, width)
    shape = [max(size, round(height * scale)), max(size, round(width * scale))]
    images = F.interpolate(images, shape, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return images[..., top : top + size, left : left + size]


def contrast(ours: Tensor, theirs: Tensor, scale: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """One direction of [1] figure 3.

    Identical captions are all right answers: the target shares its mass among them (the outer sum of [2] eq. (2)),
    and its entropy is subtracted so that a perfect match costs nothing. Where all captions differ, this is the
    paper's cross-entropy.

    Args:
        ours: [B,E] unit vectors.
        theirs: [G,E] unit vectors of the other kind, of the whole batch.
        scale: inverse temperature.
        same: [B,G] bool, True where the captions are equal.

    Returns:
        loss [B] and whether the best match is a right one [B].
    """
    logits = scale * ours @ theirs.T
    count = same.sum(1)
    right = (logits.log_softmax(1) * same).sum(1) / count
    return -right - count.to(logits.dtype).log(), same.gather(1, logits.argmax(1, keepdim=True))[:, 0]


class Clip(nn.Module):
    """Scores how well captions fit pictures.

    Args:
        config: bound; `image_size`, `text_vocab` and `text_length` are set.
        tokenizer: a part of its own: it is not a submodule, and its state is not in this one's.

    Raises:
        PartMismatch: a size is missing, or the tokenizer has another vocabulary or length.
    """

    whole_batch = True
    """The loss compares every pair of the batch: it is not a mean over samples, so it cannot be accumulated."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__()
        c = config
        if c.image_size is None or c.text_vocab is None or c.text_length is None:
            raise PartMismatch("CLIP needs image_size, text_vocab and text_length; they come from its system or card")
        if (tokenizer.vocab_size, tokenizer.length) != (c.text_vocab, c.text_length):
            raise PartMismatch(
                f"CLIP reads {c.text_length} tokens of {c.text_vocab} pieces, "
                f"its tokenizer gives {tokenizer.length} of {tokenizer.vocab_size}"
            )
        self.config = config
        self._parts = (tokenizer,)  # a tuple hides it from parameters() and state_dict()
        self.vision = VisionTower(
            c.image_size, c.patch, c.vision_width, c.vision_layers, c.vision_heads, c.embed_dim, c.activation
        )
        self.text = TextTower(
            c.text_vocab, c.text_length, c.text_width, c.text_layers, c.text_heads, c.embed_dim, c.activation
        )
        self.logit_scale = nn.Parameter(torch.tensor(c.logit_scale_init))

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer this model reads captions with."""
        return self._parts[0]

    def scale(self) -> Tensor:
        """Return the inverse temperature, at most exp(`logit_scale_max`) ([1] section 2.5)."""
        return _Ceiling.apply(self.logit_scale, self.config.logit_scale_max).exp()

    def image_features(self, images: Tensor) -> Tensor:
        """Return unit vectors [B,E] of images [B,3,H,W] in [0, 1], of any size."""
        assert self.config.image_size is not None
        x = square(images, self.config.image_size)
        mean, std = (x.new_tensor(value).view(3, 1, 1) for value in (self.config.mean, self.config.std))
        return _unit(self.vision((x - mean) / std))

    def text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return unit vectors [B,E] of ids [B,T], read at the last True column of mask [B,T]."""
        return _unit(self.text(ids, mask))

    def _trimmed(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return `text_features` without the columns that are padding in every row: no caption is read there."""
        used, device = mask.any(0).nonzero(), self.logit_scale.device
        longest = int(used[-1]) + 1 if len(used) else 1
        return self.text_features(ids[:, :longest].to(device), mask[:, :longest].to(device))

    def score(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Return the cosine [B], in [-1, 1], of images [B,3,H,W] in [0, 1] and B texts.

        Raises:
            NotReady: the tokenizer is not fitted.
        """
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} images and {len(texts)} texts")
        distinct = list(dict.fromkeys(texts))  # candidates of one prompt share its caption
        ids, mask = self.tokenizer.encode(distinct)
        row = {text: i for i, text in enumerate(distinct)}
        text = self._trimmed(ids, mask)[torch.tensor([row[t] for t in texts], device=images.device)]
        return (self.image_features(images) * text).sum(1)

    def loss(self, batch: Batch, cond: Cond, *, step: int, rng: Rng) -> Losses:
        """Return the symmetric contrastive loss over the global batch ([1] figure 3).

        Reads `images` and `texts`. "accuracy" is the share of pictures whose nearest caption is theirs.

        Raises:
            PartMismatch: the batch has no images or no texts.
        """
        if batch.images is None or batch.texts is None:
            raise PartMismatch("CLIP learns from pictures with captions; the data has none")
        device = self.logit_scale.device
        ids, mask = self.tokenizer.encode(batch.texts, rng.fork("bpe"))
        keys = torch.tensor(_keys(batch.texts), device=device)
        image, text = self.image_features(batch.images), self._trimmed(ids, mask)
        with torch.autocast(device.type, enabled=False):
            same = keys[:, None] == across.gather(keys)[None]
            scale = self.scale()
            by_image, hit = contrast(image, across.gather(text), scale, same)
            by_text, _ = contrast(text, across.gather(image), scale, same)
            loss = (by_image + by_text).mean() / 2
        return {"loss": loss, "accuracy": hit.to(loss.dtype).mean(), "scale": scale.detach()}


def _unit(x: Tensor) -> Tensor:
    """Return x [B,E] at unit length, in float32 or better."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def _keys(texts: Sequence[str]) -> list[int]:
    """Return one number a caption: equal captions, but for case and spacing, have equal numbers.

    Ids would not do: two noisy encodings of one caption differ.
    """
    plain = (" ".join(text.lower().split()).encode("utf-8", "replace") for text in texts)
    return [int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big", signed=True) for text in plain]
