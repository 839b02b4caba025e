"""The loop of Accelerate's vision example: everything through `prepare`, `gather_for_metrics`.

accelerate launch benchmarks/peers/accelerate_cv.py --help
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import work
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


class Images(Dataset):
    """Image files and their labels, a dictionary for each."""

    def __init__(self, folder: Path, view: Any) -> None:
        classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
        self.files = [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted((folder / name).iterdir())
        ]
        self.view = view

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, label = self.files[index]
        return {"image": self.view(Image.open(path).convert("RGB")), "label": label}


def main() -> None:
    args = work.arguments()
    report = work.Report()
    accelerator = Accelerator()
    set_seed(args.seed)

    data = Path(args.data)
    train_loader = DataLoader(
        Images(data / "train", work.training_view(args)),
        shuffle=True,
        batch_size=args.batch_size,
        num_workers=4,
    )
    val_loader = DataLoader(
        Images(data / "val", work.plain_view(args)),
        shuffle=False,
        batch_size=args.batch_size,
        num_workers=4,
    )

    model = work.make_model(args)
    if args.train == "head":
        work.freeze_all_but_the_head(model)
    model = model.to(accelerator.device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=args.lr, momentum=args.momentum)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, args.step_epochs, args.gamma)
    model, optimizer, train_loader, val_loader = accelerator.prepare(
        model, optimizer, train_loader, val_loader
    )

    for epoch in range(args.epochs):
        model.train()
        report.training_starts()
        total_loss = torch.zeros((), device=accelerator.device)
        for batch in train_loader:
            loss = nn.functional.cross_entropy(model(batch["image"]), batch["label"])
            total_loss += loss.detach()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(trained, args.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            report.stepped(len(batch["label"]) * accelerator.num_processes)
        scheduler.step()
        report.training_ends()

        model.eval()
        predictions: list[Tensor] = []
        labels: list[Tensor] = []
        for batch in val_loader:
            with torch.no_grad():
                predicted = model(batch["image"]).argmax(dim=-1)
            predicted, label = accelerator.gather_for_metrics((predicted, batch["label"]))
            predictions.append(predicted)
            labels.append(label)
        right = work.accuracy(predictions, labels)
        report.evaluated(right)
        mean_loss = total_loss.item() / len(train_loader)
        accelerator.print(f"epoch {epoch + 1}: loss {mean_loss:.4f}, val accuracy {right:.4f}")
    accelerator.end_training()
    if accelerator.is_main_process:
        report.print()


if __name__ == "__main__":
    main()
