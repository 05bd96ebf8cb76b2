"""What a scanner adds: blur, noise, bias field, and the scale of its numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hermes.phantoms.shapes import waves

Image = NDArray[np.float64]
_FWHM_PER_SIGMA = 2.3548
CT_AIR_HU = -1024.0
CT_STEP_HU = 4.0
"""HU come in this step, far below the noise: it halves the size of the files in the repository."""


def _grain(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> Image:
    """Gaussian noise of standard deviation 1 with the grain of a reconstruction kernel."""
    field = ndimage.gaussian_filter(rng.normal(size=shape), sigma, mode="wrap")
    return np.asarray(field / field.std())


def computed_tomography(image: Image, rng: np.random.Generator) -> Image:
    """HU with correlated noise, most in the middle of the body, in steps of 4, nothing below -1024."""
    level = rng.uniform(9.0, 20.0)
    tissue = ndimage.uniform_filter((image > -600).astype(np.float64), 9)
    noise = _grain(rng, image.shape, 0.55) * level * (0.1 + tissue)
    blurred = ndimage.gaussian_filter(image, 0.4)
    return np.asarray(np.maximum(np.round((blurred + noise) / CT_STEP_HU) * CT_STEP_HU, CT_AIR_HU))


def emission(image: Image, spacing_zyx_mm: tuple[float, float, float], rng: np.random.Generator) -> Image:
    """SUV at the resolution of a PET, with noise that grows with the root of the uptake."""
    fwhm = rng.uniform(6.0, 8.0)
    sigma = [fwhm / _FWHM_PER_SIGMA / s for s in spacing_zyx_mm]
    activity = ndimage.gaussian_filter(image, sigma)
    counts = rng.uniform(18.0, 40.0)
    noisy = activity + np.sqrt((activity + 0.03) / counts) * _grain(rng, image.shape, 0.7)
    return np.asarray(np.maximum(noisy, 0.0))


def magnetic_resonance(
    image: Image, points: NDArray[np.float64], rng: np.random.Generator, *, bias: float = 0.22
) -> Image:
    """Magnitude signal with a bias field, Rician noise and an arbitrary scale.

    Args:
        image: signal, fat about 1.
        points: ``(3, D, H, W)`` coordinates in mm; the bias field is a smooth function of them.
        rng: source of everything random.
        bias: about the standard deviation of the logarithm of the bias field.
    """
    field = np.exp(bias * 0.6 * waves(rng, 420.0, count=4)(points))
    signal = ndimage.gaussian_filter(image, 0.4) * field
    level = rng.uniform(0.018, 0.04)
    real = signal + level * _grain(rng, image.shape, 0.35)
    magnitude = np.hypot(real, level * _grain(rng, image.shape, 0.35))
    return np.asarray(np.round(magnitude * rng.uniform(250.0, 1500.0)))


def texture(image: Image, rng: np.random.Generator, amount: float) -> Image:
    """``image`` with the unevenness of living tissue: a few per cent at two scales."""
    field = 0.6 * _grain(rng, image.shape, 1.6) + 0.4 * _grain(rng, image.shape, 0.8)
    return np.asarray(image * (1.0 + amount * field))
