"""A run's model in the form of other programs. A file for each format; `export` is the command.

Imports no torch.
"""

FORMATS = {
    "safetensors": "weights by torchvision's (or timm's) own names, and a config.json",
    "onnx": "a graph for ONNX Runtime and others; also with int8 weights",
    "torch-export": "a graph for torch.export.load, without the network's code",
    "timm": "a folder for timm.create_model('local-dir:…')",
    "huggingface": "a folder for Transformers' AutoModelForImageClassification",
}
"""what `--to` takes, and what it stands for"""
