"""Maps weighted by what the scores do when the image or the feature maps are changed.

A channel is one question to the network, so K channels cost K forward passes. They are asked in
chunks inside one compiled graph: memory is that of a chunk, whatever K is.
"""

from abc import abstractmethod
from typing import Literal

import keras
import tensorflow as tf

from cam_tf.maps.explainer import Explainer
from cam_tf.maps.heatmaps import resize_maps


class PerturbationExplainer(Explainer):
    """The base of maps that are sums of channels, weighted by the answers to perturbed passes.

    Args:
        model, layer, input, output, target, jit_compile, frozen: see ``Explainer``. One layer.
        batch_size: the number of perturbed passes in one chunk; it bounds the memory. (In a call,
            ``batch_size`` is the number of images, which are explained one after the other.)
        max_channels: ask only the channels that matter most, by ``_importance``;
            ``result.details["kept_share"]`` then tells what share of the summed importance they
            hold, for each image. Default: all.
        progress: show a progress bar, in channels.
        relu: keep only positive evidence.
    """

    def __init__(
        self,
        model,
        layer=None,
        *,
        batch_size: int = 32,
        max_channels: int | None = None,
        progress: bool = False,
        relu: bool = True,
        **options,
    ):
        if batch_size < 1 or (max_channels is not None and max_channels < 1):
            raise ValueError(
                f"batch_size={batch_size}, max_channels={max_channels}: use at least 1."
            )
        self._chunk, self._max_channels = batch_size, max_channels
        self._progress, self._relu = progress, relu
        self._bar: keras.utils.Progbar | None = None
        super().__init__(model, layer, **options)
        if self._jit_compile:  # XLA wants fixed sizes, and how many channels vary is not known
            self._jit_compile = False
            self._ask = tf.function(self._ask, autograph=False, jit_compile=True)

    def _check(self):
        if len(self.anatomy.layers) > 1:
            raise ValueError(f"{type(self).__name__} takes one target layer: name one.")

    def _context(self, inputs) -> list[tf.Tensor]:
        """The tensors (N, ...) that a perturbed pass needs besides the feature maps."""
        return inputs

    @staticmethod
    @abstractmethod
    def _importance(maps) -> tf.Tensor:
        """How much each channel of maps (hw, K) can matter, (K,); one of 0 is not asked."""

    @abstractmethod
    def _ask(self, context, maps, channels) -> tuple[tf.Tensor, tf.Tensor]:
        """The logits and scores (chunk, C) of one image, a channel perturbed in each pass.

        Args:
            context: what ``_context`` returns, of one image, with a batch axis of 1.
            maps: its feature maps (1, h, w, K) float32.
            channels: (chunk,) int32.
        """

    @abstractmethod
    def _weigh(self, logits, scores, logit) -> tf.Tensor:
        """The weights (m, n) of the m channels that were asked, for n classes.

        Args:
            logits: (m, n), what the perturbed passes answered.
            scores: (m, n), likewise.
            logit: (n,), of the unperturbed image.
        """

    def _explain(self, inputs, class_ids, top_k):
        (maps,), logits, scores = self._forward(inputs)
        class_ids = self._select(logits, class_ids, top_k)
        context, images = self._context(inputs), tf.shape(maps)[0]

        def of_image(i):
            one = slice(i, i + 1)
            asked, share = self._channels(maps[one])
            answers = self._answers([each[one] for each in context], maps[one], asked, i, images)
            answers = [tf.gather(each, class_ids[i], axis=1) for each in answers]
            weights = self._weigh(*answers, tf.gather(logits[i], class_ids[i]))
            shape = [maps.shape[-1], tf.shape(class_ids)[1]]
            return tf.transpose(tf.scatter_nd(asked[:, None], weights, shape)), share

        weights, share = tf.map_fn(
            of_image,
            tf.range(images),
            fn_output_signature=(
                tf.TensorSpec([None, maps.shape[-1]], tf.float32),
                tf.TensorSpec([], tf.float32),
            ),
            parallel_iterations=1,
        )
        found = tf.einsum("n...k,nck->nc...", maps, weights)
        found = tf.nn.relu(found) if self._relu else found
        return self._result(found, class_ids, scores, logits, kept_share=share)

    def _channels(self, maps) -> tuple[tf.Tensor, tf.Tensor]:
        """The channels (m,) to ask about, in order, and their share of all importance."""
        spread = self._importance(tf.reshape(maps, [-1, maps.shape[-1]]))
        asked = tf.where(spread > 0)[:, 0]
        if self._max_channels is not None:
            count = tf.minimum(self._max_channels, tf.size(asked))
            asked = tf.sort(tf.math.top_k(spread, count).indices)
        kept = tf.reduce_sum(tf.gather(spread, asked))
        return tf.cast(asked, tf.int32), tf.math.divide_no_nan(kept, tf.reduce_sum(spread))

    def _answers(self, context, maps, asked, image, images) -> list[tf.Tensor]:
        """The logits and scores (m, C) of all channels asked, a chunk of passes at a time."""
        total, channels = tf.size(asked), maps.shape[-1]

        def ask(start, arrays):
            chunk = asked[start : start + self._chunk]
            answers = self._ask(context, maps, chunk)
            index = start // self._chunk
            done = image * channels + tf.minimum(start + self._chunk, total)
            with tf.control_dependencies(self._show(done, images * channels)):
                return start + self._chunk, [
                    array.write(index, each) for array, each in zip(arrays, answers, strict=True)
                ]

        width = self.anatomy.classes if self._target is None else None
        arrays = [
            tf.TensorArray(
                tf.float32, 0, dynamic_size=True, infer_shape=False, element_shape=[None, width]
            )
            for _ in range(2)
        ]
        _, arrays = tf.while_loop(
            lambda start, arrays: start < total, ask, (0, arrays), parallel_iterations=1
        )
        answers = [tf.reshape(array.concat(), [total, -1]) for array in arrays]
        with tf.control_dependencies(answers):
            shown = self._show((image + 1) * channels, images * channels)
        with tf.control_dependencies(shown):
            return [tf.identity(each) for each in answers]

    def _show(self, done, total) -> list:
        """The operation that moves the progress bar, where there is one."""
        if not self._progress:
            return []

        def move(done, total):
            done, total = int(done), int(total)
            if self._bar is None or self._bar.target != total or done < self._bar._seen_so_far:
                self._bar = keras.utils.Progbar(total, unit_name="channel")
            self._bar.update(done, finalize=done == total)

        return [tf.py_function(move, [done, total], [])]


class ScoreCAM(PerturbationExplainer):
    """Score-CAM: each channel is weighed by the score of the image seen through its map.

    H_k = minmax(upsample(A_k)), S_k = f_c(X * H_k); ReLU(sum_k w_k A_k). The images are multiplied
    as they are given to the model: what H_k hides of RGB 0..255 becomes black. A channel whose map
    is constant has no H_k: it has no weight and is not asked. Importance is standard deviation.

    Args:
        model, layer, batch_size, max_channels, progress, relu, input, output, target, jit_compile,
            frozen: see ``PerturbationExplainer``.
        weighting: ``"softmax"``, the paper's: the softmax over channels of the logits
            S_k - f_c(X_b). The baseline X_b is the same for all channels and cancels, so it costs
            no pass. ``"probability"``, as in widely used code: the class's score for X * H_k.

    Source: Wang et al., CVPR Workshops 2020, Algorithm 1.
    """

    def __init__(
        self,
        model,
        layer=None,
        *,
        weighting: Literal["softmax", "probability"] = "softmax",
        **options,
    ):
        if weighting not in ("softmax", "probability"):
            raise ValueError(f"weighting={weighting!r}: use 'softmax' or 'probability'.")
        self._weighting = weighting
        super().__init__(model, layer, **options)

    @staticmethod
    def _importance(maps):
        return tf.math.reduce_std(maps, axis=0)

    def _ask(self, context, maps, channels):
        image = self._image(context)
        masks = self._masks(maps, channels, tf.unstack(tf.shape(image)[1:-1]))
        return self._score(context, image * masks)

    @staticmethod
    def _masks(maps, channels, size) -> tf.Tensor:
        """The maps of some channels, stretched and scaled to [0, 1]: (chunk, H, W, 1)."""
        last = maps.shape.rank - 1
        chosen = tf.transpose(tf.gather(maps, channels, axis=-1), [0, last, *range(1, last)])
        masks = resize_maps(chosen, size)[0]
        space = list(range(1, masks.shape.rank))
        low, high = tf.reduce_min(masks, space, True), tf.reduce_max(masks, space, True)
        return tf.math.divide_no_nan(masks - low, high - low)[..., None]

    def _score(self, context, images):
        """The logits and scores of perturbed copies of one image, its other inputs repeated."""
        repeated = [tf.repeat(one, tf.shape(images)[0], axis=0) for one in context]
        return self._evaluate(self.anatomy.bind(self._with_image(repeated, images)))

    @staticmethod
    def _mean(function, samples: int) -> list[tf.Tensor]:
        """The mean of the logits and of the scores that ``function(i)`` returns."""

        def add(i, sums):
            return i + 1, [total + one for total, one in zip(sums, function(i), strict=True)]

        first = list(function(tf.constant(0)))
        _, sums = tf.while_loop(lambda i, sums: i < samples, add, (1, first), parallel_iterations=1)
        return [total / samples for total in sums]

    def _weigh(self, logits, scores, logit):
        return tf.nn.softmax(logits, axis=0) if self._weighting == "softmax" else scores


class SSCAM(ScoreCAM):
    """SS-CAM: Score-CAM with each score averaged over noisy copies of the masked image.

    Args:
        model, layer, weighting, batch_size, max_channels, progress, relu, input, output, target,
            jit_compile, frozen: see ``ScoreCAM``.
        samples: the number of noisy copies: the cost is that of so many Score-CAMs.
        noise: their standard deviation, as a share of each masked image's range of values.
        seed: of the noise; the same seed gives the same map for any ``batch_size``.

    Source: Wang et al., 2020 (SS-CAM), type 2, noise on the masked input.
    """

    def __init__(self, model, layer=None, *, samples=8, noise=0.15, seed=0, **options):
        if samples < 1 or noise < 0:
            raise ValueError(f"samples={samples}, noise={noise}: use at least 1, and at least 0.")
        self._samples, self._noise, self._seed = samples, noise, seed
        super().__init__(model, layer, **options)

    def _score(self, context, images):
        space = list(range(1, images.shape.rank))
        spread = tf.reduce_max(images, space, True) - tf.reduce_min(images, space, True)

        def of_sample(i):
            # One draw for all channels: it does not depend on how they are cut into chunks.
            seed = tf.stack([self._seed, i])
            noise = self._noise * tf.random.stateless_normal(tf.shape(images)[1:], seed)
            return super(SSCAM, self)._score(context, images + spread * noise)

        return self._mean(of_sample, self._samples)


class ISCAM(ScoreCAM):
    """IS-CAM: Score-CAM with each score averaged over masks of growing strength.

    S_k = (1/M) sum over i = 1..M of f_c(X * (i/M) H_k).

    Args:
        model, layer, weighting, batch_size, max_channels, progress, relu, input, output, target,
            jit_compile, frozen: see ``ScoreCAM``.
        samples: M, the number of steps: the cost is that of so many Score-CAMs.

    Source: Naidu et al., 2020 (IS-CAM), equation 5.
    """

    def __init__(self, model, layer=None, *, samples=10, **options):
        if samples < 1:
            raise ValueError(f"samples={samples}: use at least 1.")
        self._samples = samples
        super().__init__(model, layer, **options)

    def _score(self, context, images):
        def of_step(i):
            strength = tf.cast((i + 1) / self._samples, tf.float32)
            return super(ISCAM, self)._score(context, images * strength)

        return self._mean(of_step, self._samples)


class AblationCAM(PerturbationExplainer):
    """Ablation-CAM: w_k = (y - y_k) / y, where y_k is the score with channel k set to zero.

    Only the network above the target layer is passed again, not the backbone below it. A channel
    that is zero everywhere has no weight and is not asked. Importance is the mean magnitude.

    Source: Desai and Ramaswamy, WACV 2020, equation 5.
    """

    @staticmethod
    def _importance(maps):
        return tf.reduce_mean(tf.abs(maps), axis=0)

    def _beside(self):
        return self.anatomy.graph.boundary(self.anatomy.feature_maps, self.anatomy.wanted)

    def _context(self, inputs):
        return self.anatomy.graph.run(self.anatomy.bind(inputs), self._beside())

    def _ask(self, context, maps, channels):
        count = tf.shape(channels)[0]
        kept = 1.0 - tf.one_hot(channels, maps.shape[-1])
        kept = tf.reshape(kept, [count, *[1] * (maps.shape.rank - 2), maps.shape[-1]])
        target = self.anatomy.feature_maps
        given = {target: tf.cast(maps * kept, target.symbol.dtype)}
        for value, tensor in zip(self._beside(), context, strict=True):
            given[value] = tf.repeat(tensor, count, axis=0)
        return self._evaluate(given)

    def _weigh(self, logits, scores, logit):
        return tf.math.divide_no_nan(logit - logits, logit)
