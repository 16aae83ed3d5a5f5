"""What leaves the program: secrets are taken out of it, and names are made safe for the target they go to.

May import config_folders, and on demand the store's schema, whose words are no secrets. Must not import torch.
"""
