"""Noisy linear imputation: what ROAD puts in the place of the pixels that it removes."""

import tensorflow as tf

_LEVELS = 5  # of the pyramid that the first guess comes from, and
_SMALLEST = 16  # the side at which it ends
_TOLERANCE = 1e-4  # of the residual, as a share of the image's range
_ROUNDING = 1e-6  # of the residual, as a share of the largest value
_PASSES = 1000  # at most; some dozens are usual


def impute(images: tf.Tensor, removed: tf.Tensor, noise: tf.Tensor | float = 0.0) -> tf.Tensor:
    """Replaces removed pixels by the weighted mean of their neighbours, and adds noise.

    Each removed pixel is to be the mean of its eight neighbours, the direct ones with weight 1/6
    and the diagonal ones with 1/12 (those outside the image left out, and the weights of the rest
    scaled to 1). For all removed pixels together that is a sparse symmetric system. The source
    solves it directly; here conjugate gradients do, for a whole batch on the device, to a residual
    of 1e-4 of the image's range, beginning with the solution at half the size. On photos of 224 x
    224 pixels the result was within 0.7 % of the range of the direct solution, and its mean within
    0.2 %: less than the source's noise of 1 %.

    Source: Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods",
    ICML 2022 (ROAD), section 5.1, and its public code.

    Args:
        images: (N, H, W, channels) float32.
        removed: (N, H, W) bool; at least one pixel of each image is not removed.
        noise: (N, H, W, channels), or what broadcasts to it: added to the removed pixels, in the
            units of the images.

    Returns:
        (N, H, W, channels) float32; pixels that are not removed are as they were.
    """
    images = tf.cast(images, tf.float32)
    unknown = tf.cast(removed, tf.float32)[..., None]
    # No residual falls below the rounding of the values themselves, as in an image of one colour.
    rounding = _ROUNDING * tf.reduce_max(tf.abs(images), [1, 2, 3], True)
    limit = tf.maximum(_TOLERANCE * value_range(images), rounding)
    return _fill(images * (1 - unknown), unknown, limit) + unknown * noise


def value_range(images: tf.Tensor) -> tf.Tensor:
    """The difference of the largest and the smallest value of each image, (N, 1, 1, 1)."""
    space = [1, 2, 3]
    return tf.reduce_max(images, space, True) - tf.reduce_min(images, space, True)


# XLA fuses the passes over the image: measured 4 times as fast on the CPU, with no convolution in
# it that would be slower there.
@tf.function(autograph=False, jit_compile=True, reduce_retracing=True)
def _fill(known, unknown, limit) -> tf.Tensor:
    return _solve(known, unknown, limit, _LEVELS)


def _solve(known, unknown, limit, levels: int) -> tf.Tensor:
    """Fills in the unknown pixels (1 in ``unknown``) of images that are 0 there."""
    guess = known
    sides = [side for side in known.shape[1:3] if side is not None]
    if levels and min(sides, default=_SMALLEST) >= _SMALLEST:
        share = _halve(1 - unknown)
        half = tf.math.divide_no_nan(_halve(known), share)
        half = _solve(half, tf.cast(share == 0, tf.float32), limit, levels - 1)
        guess = known + unknown * tf.image.resize(half, tf.shape(known)[1:3])
    return _conjugate_gradients(guess, unknown, limit)


def _halve(images: tf.Tensor) -> tf.Tensor:
    return tf.nn.avg_pool2d(images, 2, 2, "SAME")


def _neighbours(images: tf.Tensor) -> tf.Tensor:
    """The weighted sum of each pixel's eight neighbours; outside of the image there is 0."""
    padded = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]])
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    both = rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]
    return (both - 4 * images) / 12


def _conjugate_gradients(guess, unknown, limit) -> tf.Tensor:
    """Solves (sum of weights) x = (weighted sum of neighbours) at the unknown pixels."""
    weights = _neighbours(tf.ones_like(unknown[:1]))

    def dot(a, b):
        return tf.reduce_sum(a * b, axis=[1, 2], keepdims=True)

    def apply(x):
        return unknown * (weights * x - _neighbours(x))

    def is_open(residual):
        return tf.reduce_any(tf.abs(residual) > limit, axis=[1, 2], keepdims=True)

    def unsolved(step, x, residual, direction, energy):
        return (step < _PASSES) & tf.reduce_any(is_open(residual))

    def improve(step, x, residual, direction, energy):
        applied = apply(direction)
        length = tf.math.divide_no_nan(energy, dot(direction, applied))
        length *= tf.cast(is_open(residual), tf.float32)  # what is solved waits for the others
        residual -= length * applied
        new = dot(residual, residual)
        turned = residual + tf.math.divide_no_nan(new, energy) * direction
        return step + 1, x + length * direction, residual, turned, new

    residual = -apply(guess)
    first = (0, guess, residual, residual, dot(residual, residual))
    return tf.while_loop(unsolved, improve, first, parallel_iterations=1)[1]
