"""What the models are built from: blocks, backbones, pretrained weights, somebody else's model."""
