"""From a prepared image to a label map: windows, streaming reduction, the predictor."""
