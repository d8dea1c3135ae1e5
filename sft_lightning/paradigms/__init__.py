"""The paradigms: LightningModules, one readable file each."""
