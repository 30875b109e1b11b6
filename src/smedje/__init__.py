"""smedje: the fine-tuning foundry you run yourself."""

__version__ = "0.1.0"
