"""The LightningModule, the data module, strategies and checkpoints."""
