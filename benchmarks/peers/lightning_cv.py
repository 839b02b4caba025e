"""The same as a LightningModule, trained by a Trainer as it comes.

python benchmarks/peers/lightning_cv.py --help
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import lightning as pl
import torch
import work
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder


class Classifier(pl.LightningModule):
    """A network, its loss and its optimizer."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.args = args
        self.model = work.make_model(args)
        if args.train == "head":
            work.freeze_all_but_the_head(self.model)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self.model(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        images, labels = batch
        right = (self.model(images).argmax(1) == labels).float().mean()
        self.log("val_accuracy", right, batch_size=len(labels), prog_bar=True)

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=self.args.lr, momentum=self.args.momentum)
        scheduler = torch.optim.lr_scheduler.StepLR(
            optimizer, self.args.step_epochs, self.args.gamma
        )
        return [optimizer], [scheduler]


class Measure(pl.Callback):
    """Tells the report what happens when."""

    def __init__(self, report: work.Report) -> None:
        self.report = report

    def on_train_epoch_start(self, *_: Any) -> None:
        self.report.training_starts()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        self.report.stepped(len(batch[1]))
        if trainer.is_last_batch:
            self.report.training_ends()  # the evaluation comes within the epoch

    def on_validation_end(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.report.evaluated(float(trainer.callback_metrics["val_accuracy"]))


def main() -> None:
    args = work.arguments()
    report = work.Report()
    data = Path(args.data)
    train_loader = DataLoader(
        ImageFolder(str(data / "train"), work.training_view(args)),
        batch_size=args.batch_size,
        shuffle=True,
        num_workers=4,
    )
    val_loader = DataLoader(
        ImageFolder(str(data / "val"), work.plain_view(args)),
        batch_size=args.batch_size,
        num_workers=4,
    )
    trainer = pl.Trainer(
        max_epochs=args.epochs, gradient_clip_val=args.clip_norm, callbacks=[Measure(report)]
    )
    trainer.fit(Classifier(args), train_loader, val_loader)
    report.print()


if __name__ == "__main__":
    main()
