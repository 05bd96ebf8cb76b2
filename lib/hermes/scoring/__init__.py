"""What is measured of predictions and labels; arrays in, numbers out."""
