"""Images in and out: reading, writing, and the recorded way to the model grid and back."""
