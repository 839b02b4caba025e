"""The plain PyTorch loop: ImageFolder, DataLoader, an epoch of training, an epoch of evaluation.

python benchmarks/peers/plain.py --help
"""

from __future__ import annotations

from pathlib import Path

import torch
import work
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder


def main() -> None:
    args = work.arguments()
    report = work.Report()
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")

    views = {"train": work.training_view(args), "val": work.plain_view(args)}
    loaders = {
        part: DataLoader(
            ImageFolder(str(Path(args.data, part)), view),
            batch_size=args.batch_size,
            shuffle=part == "train",
            num_workers=4,
        )
        for part, view in views.items()
    }

    model = work.make_model(args)
    if args.train == "head":
        work.freeze_all_but_the_head(model)
    model = model.to(device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(trained, lr=args.lr, momentum=args.momentum)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, args.step_epochs, args.gamma)

    for epoch in range(args.epochs):
        model.train()
        report.training_starts()
        loss_sum, seen = 0.0, 0
        for images, labels in loaders["train"]:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, args.clip_norm)
            optimizer.step()
            loss_sum += loss.item() * len(labels)
            seen += len(labels)
            report.stepped(len(labels))
        scheduler.step()
        report.training_ends()

        model.eval()
        right, count = 0, 0
        with torch.no_grad():
            for images, labels in loaders["val"]:
                images, labels = images.to(device), labels.to(device)
                right += (model(images).argmax(1) == labels).sum().item()
                count += len(labels)
        report.evaluated(right / count)
        print(f"epoch {epoch + 1}: loss {loss_sum / seen:.4f}, val accuracy {right / count:.4f}")
    report.print()


if __name__ == "__main__":
    main()
