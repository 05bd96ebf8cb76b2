"""Training: cases in, averaged weights out. Imports no campaign and no server."""
