"""A small transformer on text: batches are dicts, the loss is your own, the optimizer is AdamW."""

import math

import torch
from torch import Tensor, nn

import swap_fast
from swap_fast import Phase

LETTERS = "abcdefgh"
PADDING = len(LETTERS)


class Transformer(nn.Module):
    """Says of a text which of two classes it is of; it has no batch norm."""

    def __init__(self, width: int = 32, layers: int = 2, longest: int = 24) -> None:
        super().__init__()
        self.letters = nn.Embedding(len(LETTERS) + 1, width, padding_idx=PADDING)
        self.places = nn.Parameter(0.02 * torch.randn(longest, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.1, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 2)

    def forward(self, tokens: Tensor, padding: Tensor) -> Tensor:
        """Map tokens [B, T], of which some are padding, to logits [B, 2]."""
        made = self.letters(tokens) + self.places[: tokens.shape[1]]
        made = self.encoder(made, src_key_padding_mask=padding)
        kept = (~padding)[:, :, None]
        return self.head((made * kept).sum(1) / kept.sum(1))


def loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, int]:
    """The mean loss of a batch, how many texts were right, and of how many."""
    logits = model(batch["tokens"], batch["padding"])
    right = (logits.argmax(1) == batch["label"]).sum()
    return nn.functional.cross_entropy(logits, batch["label"]), right, len(logits)


def groups(model: nn.Module) -> list[dict[str, object]]:
    """No weight decay on what is no matrix."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": matrices}, {"params": others, "weight_decay": 0.0}]


def texts(count: int, seed: int, longest: int = 24) -> dict[str, Tensor]:
    """Texts of 8 to 24 letters; their label says whether they have more a's than b's."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(len(LETTERS), (count, longest), generator=draw)
    lengths = torch.randint(8, longest + 1, (count, 1), generator=draw)
    padding = torch.arange(longest) >= lengths
    tokens[padding] = PADDING
    more = (tokens == 0).sum(1) > (tokens == 1).sum(1)
    return {"tokens": tokens, "padding": padding, "label": more.long()}


def main(examples: int = 20_000, epochs: int = 12) -> swap_fast.SwapResult:
    """Train it on four workers."""
    return swap_fast.swap(
        Transformer,
        texts(examples, 1),
        texts(2_000, 2),
        workers=4,
        phase1=Phase(
            global_batch_size=256, peak_lr=2e-3, max_epochs=epochs, stopping_accuracy=0.97
        ),
        phase2=Phase(global_batch_size=64, peak_lr=5e-4, max_epochs=max(1, epochs // 3)),
        schedule1=lambda epoch: 1e-3 * (1 + math.cos(math.pi * min(1.0, epoch / epochs))),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, weight_decay=0.01),
        parameter_groups=groups,
        clip_gradient_norm=1.0,
        loss=loss,
    )


if __name__ == "__main__":
    main().save("swapped-transformer")
