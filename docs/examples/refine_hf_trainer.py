"""Phases 2 and 3 of SWAP around the Trainer of Hugging Face's transformers."""

import tempfile

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import swap_fast


class Classifier(nn.Module):
    """Tells 4 kinds of points apart, and gives what the Trainer takes: loss and logits by name."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, points: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(points)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def main(examples: int = 4000, epochs: int = 3) -> swap_fast.RefineResult:
    """Train a model with large batches, then refine it on 4 workers with small ones."""
    points = torch.randn(examples, 2)
    labels = (points > 0).long() @ torch.tensor([1, 2])
    rows = [{"points": x, "labels": y} for x, y in zip(points, labels, strict=True)]
    held = examples // 4

    def fit(model: nn.Module, batch_size: int, learning_rate: float, seed: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                num_train_epochs=epochs,
                per_device_train_batch_size=batch_size,
                learning_rate=learning_rate,
                seed=seed,  # one a worker: the Trainer seeds everything by it
                use_cpu=not torch.cuda.is_available(),
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            Trainer(model, arguments, train_dataset=rows[held:]).train()

    def accuracy(model: nn.Module) -> float:
        device = next(model.parameters()).device
        logits = model(points[:held].to(device), labels[:held].to(device))["logits"]
        return (logits.argmax(1).cpu() == labels[:held]).double().mean().item()

    model = Classifier()
    fit(model, batch_size=256, learning_rate=0.02, seed=0)
    result = swap_fast.refine(
        model,
        lambda worker, copy: fit(copy, batch_size=64, learning_rate=0.005, seed=worker),
        workers=4,
        batches=DataLoader(rows[held:], 256),
        evaluate=accuracy,
    )
    print(f"workers {result.accuracy_before_averaging:.2%}, averaged {result.accuracy:.2%}")
    return result


if __name__ == "__main__":
    main().save("refined-hf-trainer")
