"""Phases 2 and 3 of SWAP around Lightning's Trainer."""

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import swap_fast


class Classifier(lightning.LightningModule):
    """Tells 4 kinds of points apart."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
        self.peak_lr = 0.4

    def forward(self, points: Tensor) -> Tensor:
        return self.net(points)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        points, kinds = batch
        return nn.functional.cross_entropy(self(points), kinds)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.peak_lr, momentum=0.9)


def main(examples: int = 4000, epochs: int = 3) -> swap_fast.RefineResult:
    """Train a model with large batches, then refine it on 4 workers with small ones."""
    points = torch.randn(examples, 2)
    kinds = (points > 0).long() @ torch.tensor([1, 2])
    held = examples // 4
    train_set = TensorDataset(points[held:], kinds[held:])

    def fit(model: Classifier, batch_size: int, peak_lr: float) -> None:
        model.peak_lr = peak_lr
        trainer = lightning.Trainer(
            max_epochs=epochs,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, DataLoader(train_set, batch_size, shuffle=True))

    def accuracy(model: Classifier) -> float:
        found = model(points[:held].to(model.device)).argmax(1).cpu()
        return (found == kinds[:held]).double().mean().item()

    model = Classifier()
    fit(model, batch_size=256, peak_lr=0.4)
    result = swap_fast.refine(
        model,
        lambda worker, copy: fit(copy, batch_size=64, peak_lr=0.1),
        workers=4,
        batches=DataLoader(train_set, 256),
        evaluate=accuracy,
    )
    print(f"workers {result.accuracy_before_averaging:.2%}, averaged {result.accuracy:.2%}")
    return result


if __name__ == "__main__":
    main().save("refined-lightning")
