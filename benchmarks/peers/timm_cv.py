"""timm's network and its loader, which normalises on the GPU, in a loop of its kind.

python benchmarks/peers/timm_cv.py --help
"""

from __future__ import annotations

import timm
import torch
import work
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from torch import nn


def main() -> None:
    args = work.arguments()
    report = work.Report()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    torch.manual_seed(args.seed)
    model = timm.create_model(args.model, num_classes=work.num_classes(args))
    if args.weights:
        state = torch.load(args.weights, weights_only=True)
        for name, _ in work.head_of(model):
            del state[name]
        model.load_state_dict(state, strict=False)
    if args.train == "head":
        work.freeze_all_but_the_head(model)
    model = model.to(device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = create_optimizer_v2(
        model, opt="momentum", lr=args.lr, momentum=args.momentum, weight_decay=0.0
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, args.step_epochs, args.gamma)

    loaders = {
        part: create_loader(
            create_dataset("", root=args.data, split=part, class_map=""),
            input_size=(3, args.image_size, args.image_size),
            batch_size=args.batch_size,
            is_training=part == "train",
            no_aug=args.augment == "none",
            color_jitter=0.0,
            use_prefetcher=device.type == "cuda",
            interpolation="bilinear",
            mean=work.MEAN,
            std=work.STD,
            crop_pct=224 / 256,
            num_workers=4,
            device=device,
        )
        for part in ("train", "val")
    }

    for epoch in range(args.epochs):
        model.train()
        report.training_starts()
        for images, labels in loaders["train"]:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            nn.utils.clip_grad_norm_(trained, args.clip_norm)
            optimizer.step()
            report.stepped(len(labels))
        scheduler.step()
        report.training_ends()

        model.eval()
        predictions, true = [], []
        with torch.no_grad():
            for images, labels in loaders["val"]:
                predictions.append(model(images.to(device)).argmax(1))
                true.append(labels.to(device))
        accuracy = work.accuracy(predictions, true)
        report.evaluated(accuracy)
        print(f"epoch {epoch + 1}: val accuracy {accuracy:.4f}")
    report.print()


if __name__ == "__main__":
    main()
