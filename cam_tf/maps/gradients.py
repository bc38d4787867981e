"""Maps weighted by gradients: of the class score y (the logit) by the target feature maps A.

g = dy/dA. The tape begins to record at the target layer: where that is the last one, the backbone
is only passed forwards. Formulas act on A and g of shape (N, h, w, K), or with one or three spatial
axes, and return (N, h, w).
"""

from abc import abstractmethod

import tensorflow as tf

from cam_tf.maps.explainer import Explainer
from cam_tf.maps.heatmaps import resize_maps

_SCALE = 256.0  # keeps small gradients out of float16's subnormal numbers


def _space(maps: tf.Tensor) -> list[int]:
    return list(range(1, maps.shape.rank - 1))


def _weighted(maps: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """The sum over channels of maps (N, ..., K) times weights (N, K)."""
    return tf.einsum("n...k,nk->n...", maps, weights)


class GradientExplainer(Explainer):
    """The base of maps that are computed from feature maps and their gradients.

    Args:
        model, layer, input, output, target, jit_compile, frozen: see ``Explainer``.
        relu: keep only positive evidence; default: as the method's definition has it.
    """

    applies_relu = True

    def __init__(self, model, layer=None, *, relu: bool | None = None, **options):
        super().__init__(model, layer, **options)
        self._relu = self.applies_relu if relu is None else relu

    @abstractmethod
    def combine(self, maps: tf.Tensor, gradients: tf.Tensor) -> tf.Tensor:
        """The method's formula: A and g (N, ..., K) -> the map (N, ...), before any ReLU."""

    def _explain(self, inputs, class_ids, top_k):
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            maps, logits, scores = self._forward(inputs, tape)
        class_ids = self._select(logits, class_ids, top_k)

        def of_class(ids):
            gradients = self._gradients(tape, logits, ids, maps)
            return self._fuse([self.combine(*pair) for pair in zip(maps, gradients, strict=True)])

        found = self._for_classes(of_class, tf.transpose(class_ids), maps)
        return self._result(found, class_ids, scores, logits)

    @staticmethod
    def _gradients(tape, logits, ids, maps) -> list[tf.Tensor]:
        """The gradients of each image's class ``ids`` (N,) by the feature maps."""
        chosen = _SCALE * tf.one_hot(ids, tf.shape(logits)[1])
        gradients = tape.gradient(logits, maps, output_gradients=chosen)
        if any(g is None for g in gradients):
            raise ValueError(
                "what is explained does not depend on the target layer in a way that can be "
                "differentiated. Check target= and layer=, or use cam_tf.ScoreCAM, which needs no "
                "gradient."
            )
        return [g / _SCALE for g in gradients]

    def _for_classes(self, function, of_each, maps) -> tf.Tensor:
        """Stacks ``function(of_each[j])`` over the n classes j, in the graph: (N, n, ...)."""
        rank = maps[0].shape.rank - 2
        signature = tf.TensorSpec([None] * (rank + 1), tf.float32)
        stacked = tf.map_fn(function, of_each, fn_output_signature=signature)
        return tf.transpose(stacked, [1, 0, *range(2, rank + 2)])

    def _fuse(self, parts: list[tf.Tensor]) -> tf.Tensor:
        """One layer's map as it is; several are scaled and their maximum is taken (LayerCAM).

        Each loses its negative part, is stretched to the largest, and becomes tanh(2 M / max M):
        equations 8 and 9 of Jiang et al. 2021.
        """
        if len(parts) == 1:
            return tf.nn.relu(parts[0]) if self._relu else parts[0]
        size = tf.reduce_max([tf.shape(part)[1:] for part in parts], axis=0)
        scaled = []
        for part in parts:
            part = resize_maps(tf.nn.relu(part)[:, None], tf.unstack(size))[:, 0]
            top = tf.reduce_max(part, axis=list(range(1, part.shape.rank)), keepdims=True)
            scaled.append(tf.tanh(2.0 * tf.math.divide_no_nan(part, top)))
        return tf.reduce_max(scaled, axis=0)


class GradCAM(GradientExplainer):
    """Grad-CAM: ReLU(sum_k mean(g_k) A_k).

    Source: Selvaraju et al., ICCV 2017, equations 1 and 2.
    """

    def combine(self, maps, gradients):
        """Weights each channel by the mean of its gradient."""
        return _weighted(maps, tf.reduce_mean(gradients, axis=_space(maps)))


class GradCAMPlusPlus(GradientExplainer):
    """Grad-CAM++: w_k = sum alpha_k ReLU(g_k), alpha = g^2 / (2 g^2 + g^3 sum A_k).

    The paper's score is exp(y), whose derivatives share the factor exp(y): it scales the whole map
    and is left out.

    Source: Chattopadhay et al., WACV 2018, equations 10 and 19.
    """

    def combine(self, maps, gradients):
        """Weights each channel by its positive gradients, shared out by alpha."""
        return self.from_moments(maps, gradients, gradients**2, gradients**3)

    @staticmethod
    def from_moments(maps, first, second, third) -> tf.Tensor:
        """The map from the first three derivatives of the score, (N, ..., K) each."""
        space = _space(maps)
        total = tf.reduce_sum(maps, axis=space, keepdims=True)
        alpha = tf.math.divide_no_nan(second, 2.0 * second + third * total)
        return _weighted(maps, tf.reduce_sum(alpha * tf.nn.relu(first), axis=space))


class SmoothGradCAMPlusPlus(GradCAMPlusPlus):
    """Smooth Grad-CAM++: Grad-CAM++ with its derivatives averaged over noisy copies of the image.

    Args:
        model, layer, relu, input, output, target, jit_compile, frozen: see ``GradCAM``.
        samples: the number of noisy copies.
        noise: their standard deviation, as a share of each image's range of values.
        seed: of the noise; the same seed gives the same map.

    Source: Omeiza et al., 2019.
    """

    def __init__(self, model, layer=None, *, samples=8, noise=0.15, seed=0, **options):
        super().__init__(model, layer, **options)
        if samples < 1 or noise < 0:
            raise ValueError(f"samples={samples}, noise={noise}: use at least 1, and at least 0.")
        self._samples, self._noise, self._seed = samples, noise, seed

    def _explain(self, inputs, class_ids, top_k):
        maps, logits, scores = self._forward(inputs)
        class_ids = self._select(logits, class_ids, top_k)
        image = self._image(inputs)
        pixels = list(range(1, image.shape.rank))
        spread = tf.reduce_max(image, pixels, True) - tf.reduce_min(image, pixels, True)

        def add_sample(i, sums):
            # One draw for all images: the map of an image does not depend on its batch.
            seed = tf.stack([self._seed, i])
            noise = self._noise * tf.random.stateless_normal(tf.shape(image)[1:], seed)
            noisy = self._with_image(inputs, image + spread * noise)
            with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
                noisy_maps, noisy_logits, _ = self._forward(noisy, tape)
            powers = tf.map_fn(
                lambda ids: self._powers(self._gradients(tape, noisy_logits, ids, noisy_maps)),
                tf.transpose(class_ids),
                fn_output_signature=[tf.TensorSpec(one.shape, tf.float32) for one in thrice],
            )
            return i + 1, [total + power for total, power in zip(sums, powers, strict=True)]

        thrice = [one for one in maps for _ in range(3)]
        classes = tf.shape(class_ids)[1]
        sums = [tf.repeat(tf.zeros_like(one)[None], classes, axis=0) for one in thrice]
        shapes = [tf.TensorShape([None, *one.shape]) for one in thrice]
        _, sums = tf.while_loop(
            lambda i, sums: i < self._samples,
            add_sample,
            (0, sums),
            shape_invariants=(tf.TensorShape([]), shapes),
            parallel_iterations=1,
        )

        def of_class(means):
            moments = [means[i : i + 3] for i in range(0, len(means), 3)]
            pairs = zip(maps, moments, strict=True)
            return self._fuse([self.from_moments(one, *three) for one, three in pairs])

        found = self._for_classes(of_class, [total / self._samples for total in sums], maps)
        return self._result(found, class_ids, scores, logits)

    @staticmethod
    def _powers(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        return [g**power for g in gradients for power in (1, 2, 3)]


class XGradCAM(GradientExplainer):
    """XGrad-CAM: w_k = sum(g_k A_k) / sum A_k; a channel that sums to zero has no weight.

    Source: Fu et al., BMVC 2020, equation 8.
    """

    def combine(self, maps, gradients):
        """Weights each channel by its gradients, averaged where the channel is active."""
        space = _space(maps)
        weights = tf.math.divide_no_nan(
            tf.reduce_sum(gradients * maps, axis=space), tf.reduce_sum(maps, axis=space)
        )
        return _weighted(maps, weights)


class HiResCAM(GradientExplainer):
    """HiResCAM: sum_k g_k A_k, element by element, without ReLU.

    Source: Draelos and Carin, 2020, equation 5.
    """

    applies_relu = False

    def combine(self, maps, gradients):
        """Multiplies each activation by its own gradient."""
        return tf.reduce_sum(gradients * maps, axis=-1)


class LayerCAM(GradientExplainer):
    """LayerCAM: ReLU(sum_k ReLU(g_k) A_k), element by element; good at earlier layers too.

    Source: Jiang et al., TIP 2021, equations 5 to 7.
    """

    def combine(self, maps, gradients):
        """Multiplies each activation by its own gradient where that is positive."""
        return tf.reduce_sum(tf.nn.relu(gradients) * maps, axis=-1)
