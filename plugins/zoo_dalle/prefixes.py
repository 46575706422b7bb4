"""What stands before the first code: a caption, a class, or a start vector. Each kind of condition is a class.

A prefix has `length` P, answers `forward(cond, rows) -> [B,P,D]`, and owns its null condition, used where
`cond.drop` is True. Fields of the condition it does not read are left alone: a batch may have labels beside captions.

Letters: B rows, T caption positions, P prefix positions, D width, V caption pieces.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ConfigError, PartMismatch
from zoo.interfaces import Cond
from zoo.nn.precision import full_precision
from zoo_dalle import configs
from zoo_dalle.layers import Embedding, Head


def all_null(cond: Cond) -> bool:
    """Return True when every row asks for the null condition."""
    return cond.drop is not None and bool(cond.drop.all())


def check_rows(name: str, given: int, rows: int) -> None:
    """Refuse a condition of another batch size."""
    if given != rows:
        raise PartMismatch(f"'{name}' has {given} rows for a batch of {rows}")


class Caption(nn.Module):
    """Caption tokens. A position without a token holds that position's own learned pad [1] section 2.2."""

    def __init__(self, width: int, vocab: int, length: int) -> None:
        super().__init__()
        self.length = length
        self.token = Embedding(vocab, width)
        self.pad = Embedding(length, width)
        self.position = Embedding(length, width)

    def tokens(self, cond: Cond, rows: int) -> tuple[Tensor, Tensor]:
        """Return ids [B,T] and a mask [B,T], True where a token stands; dropped rows have none.

        Raises:
            PartMismatch: no ids, or another shape than [B,T].
        """
        if cond.ids is None:
            if not all_null(cond):
                raise PartMismatch("this prior reads caption ids, and was given none")
            ids = torch.zeros(rows, self.length, dtype=torch.int64, device=self.token.weight.device)
            return ids, torch.zeros_like(ids, dtype=torch.bool)
        check_rows("ids", len(cond.ids), rows)
        if cond.ids.shape[1] != self.length:
            raise PartMismatch(f"captions have {cond.ids.shape[1]} positions, and this prior has {self.length}")
        mask = torch.ones_like(cond.ids, dtype=torch.bool) if cond.mask is None else cond.mask
        if cond.drop is not None:
            mask = mask & ~cond.drop[:, None]
        return cond.ids.masked_fill(~mask, 0), mask

    def forward(self, cond: Cond, rows: int) -> Tensor:
        """Return [B,T,D]."""
        ids, mask = self.tokens(cond, rows)
        return torch.where(mask[..., None], self.token(ids), self.pad.rows()) + self.position.rows()


class Label(nn.Module):
    """One class vector; the last row of the table is the null class."""

    length = 1

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.token = Embedding(classes + 1, width)

    def forward(self, cond: Cond, rows: int) -> Tensor:
        """Return [B,1,D].

        Raises:
            PartMismatch: no label, or another number of them than rows.
        """
        if cond.label is None:
            if not all_null(cond):
                raise PartMismatch("this prior reads a label, and was given none")
            label = torch.full((rows,), self.classes, device=self.token.weight.device)
        else:
            check_rows("label", len(cond.label), rows)
            label = cond.label if cond.drop is None else cond.label.masked_fill(cond.drop, self.classes)
        return self.token(label)[:, None]


class Start(nn.Module):
    """One learned vector, for a prior that reads nothing."""

    length = 1

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = Embedding(1, width)

    def forward(self, cond: Cond, rows: int) -> Tensor:
        """Return [B,1,D]."""
        return self.token.rows().expand(rows, 1, -1)


def prefix(config: configs.DallePrior) -> Caption | Label | Start:
    """Return the prefix the config reads.

    Raises:
        ConfigError: a field it needs is None.
    """
    if config.reads == "nothing":
        return Start(config.width)
    if config.reads == "label":
        if config.classes is None:
            raise ConfigError("classes: a prior that reads a label needs the number of classes")
        return Label(config.width, config.classes)
    if config.text_vocab is None or config.text_length is None:
        raise ConfigError("text_vocab, text_length: a prior that reads captions needs its tokenizer's sizes")
    return Caption(config.width, config.text_vocab, config.text_length)


class CaptionHead(nn.Module):
    """Cross-entropy of the caption's own tokens.

    Position t predicts token t + 1; nothing stands before the first token, so it is predicted from one learned
    state. The paper is silent here; this way every token counts and the stream stays T + N long. A first token that
    is always the same is not predicted.
    """

    def __init__(self, config: configs.DallePrior) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.empty(config.width)) if config.first_token == "learned" else None
        if self.first is not None:
            nn.init.normal_(self.first)
        self.logits = Head(config.width, config.text_vocab or 0, bias=config.head_bias)

    def predicted(self, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ids [B,t] and mask [B,t] of what is predicted: all T tokens, or all but the first."""
        return (ids_BT, mask_BT) if self.first is not None else (ids_BT[:, 1:], mask_BT[:, 1:])

    def forward(self, x_BTD: Tensor, ids_Bt: Tensor) -> Tensor:
        """Return nats [B,t] of the predicted ids, from the normed states of the caption's positions."""
        states = x_BTD[:, :-1]
        if self.first is not None:
            states = torch.cat((self.first.expand(len(x_BTD), 1, -1), states), 1)
        logits_BtV = self.logits(states)
        with full_precision(x_BTD):
            return F.cross_entropy(logits_BtV.flatten(0, 1), ids_Bt.flatten(), reduction="none").view(ids_Bt.shape)
