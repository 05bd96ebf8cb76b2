"""The code that imports MONAI Label: thin classes around what the other layers do."""
