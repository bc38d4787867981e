"""Training on several machines: a step of our own under ``tf.distribute``, where Keras 3 has none.

Keras 3's ``fit`` fails under ``MultiWorkerMirroredStrategy`` (3.15: before the first step, with
"Attempt to convert a value (PerReplica...) to a Tensor"). Here each worker has a share of the data
and ``strategy.run`` takes the steps, with Keras's optimizer, which adds up the gradients of all.
After an epoch the weights are copied into a model without a strategy, on which the first worker
runs the same callbacks as a single device does: so its files are the same files.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import keras
import tensorflow as tf

from training.checkpoints import State, tidy
from training.config import Config, save_config
from training.data import one_hot, open_data
from training.devices import Watch, worker
from training.phases import Phase, build, loss_and_metrics, prepare


def train_together(config: Config, strategy: tf.distribute.Strategy) -> dict:
    """Trains with the other workers; ``train`` calls it on each of them.

    Returns:
        What is in ``results.json``; on other workers than the first, nothing.

    Raises:
        TrainingError: as for ``train``. A worker that waits for others for five minutes ends the
            process with status 1.
        ValueError: as for ``train``, or what does not go with several workers.
    """
    from training import train as single

    index, workers = worker(strategy)
    _check(config)
    config.folder.mkdir(parents=True, exist_ok=True)
    first = index == 0
    with single.alone(config.folder) if first else _nothing(), single.explaining_errors(config):
        state = State.of(config.folder)
        if first:
            save_config(config, begun=state.epochs > 0)
            tidy(config.folder, state.epochs)
        replicas = strategy.num_replicas_in_sync
        shard = {"replicas": replicas, "shard": (index, workers)}
        data = open_data(config, config.train_split, training=True, **shard)
        share = open_data(config, config.validation_split, like=data, **shard)
        held_out = open_data(config, config.validation_split, like=data)
        plain = build(config, len(data.classes))
        with strategy.scope():
            model = build(config, len(data.classes))
        team = _Team(config, strategy, model, plain)
        for phase, resumed in single.remaining(plain, config, state, data.steps):
            with strategy.scope():
                prepare(model, config, phase, data.steps)
            callbacks = []
            if first:
                callbacks = single.epoch_callbacks(config, held_out, state, resumed)
            team.fit(data, share, phase, state.epochs, callbacks)
            state.epochs = phase.end
        team.meet()
        return single.finish(config, plain, data, state) if first else {}


def _check(config: Config) -> None:
    if config.ema is not None:
        raise ValueError("ema goes with strategies 'one' and 'mirrored' only.")
    if config.xla:
        raise ValueError("xla goes with strategies 'one' and 'mirrored' only.")
    if config.mixed_precision == "float16":
        raise ValueError(
            "mixed_precision='float16' scales the loss; with several workers use 'bfloat16', which "
            "needs no scale."
        )


@contextmanager
def _nothing() -> Iterator[None]:
    yield


class _Team:
    """The model under the strategy, and the plain one that its values are copied to and from."""

    def __init__(self, config, strategy, model: keras.Model, plain: keras.Model):
        self._config, self._strategy = config, strategy
        self._model, self._plain = model, plain
        classes = model.output_shape[-1]
        self._loss = loss_and_metrics(config, classes)["loss"]
        self._top5 = classes > 5
        self._summed = tf.function(
            lambda share: self._sum(strategy.run(tf.identity, args=(share,)))
        )
        self._local = strategy.num_replicas_in_sync // worker(strategy)[1]

    def fit(self, data, share, phase: Phase, start: int, callbacks: list) -> None:
        """Trains epochs ``start`` to ``phase.end``."""
        self._copy(self._plain, self._model)
        train_step, test_step = tf.function(self._step), tf.function(self._test_step)
        callbacks = keras.callbacks.CallbackList(callbacks, model=self._plain, epochs=phase.end)
        batches = iter(self._distributed(data, start))
        with Watch() as watch:
            callbacks.on_train_begin()
            for epoch in range(start, phase.end):
                began = time.monotonic()
                callbacks.on_epoch_begin(epoch)
                sums = 0.0
                for step in range(data.steps):
                    sums += train_step(*next(batches))
                    watch.alive()
                    logs = self._figures(sums)
                    callbacks.on_train_batch_end(step, logs)
                self._copy(self._model, self._plain)
                logs |= {f"val_{k}": v for k, v in self._validate(test_step, share).items()}
                self._print(epoch, logs, time.monotonic() - began)
                callbacks.on_epoch_end(epoch, logs)
                watch.alive()
            self.meet()
            callbacks.on_train_end()

    def _distributed(self, data, start: int):
        classes = self._model.output_shape[-1]
        size = self._config.batch_size // self._strategy.num_replicas_in_sync

        def share(context) -> tf.data.Dataset:
            batches = data.epochs(start).rebatch(size)  # one for each replica of this worker
            return one_hot(batches, classes)

        return self._strategy.distribute_datasets_from_function(share)

    def _step(self, *batch) -> tf.Tensor:
        return self._sum(self._strategy.run(self._train_step, args=batch))

    def _train_step(self, images, labels):
        replicas = self._strategy.num_replicas_in_sync
        with tf.GradientTape() as tape:
            scores = self._model(images, training=True)
            loss = self._mean_loss(labels, scores)
            penalties = self._model.losses  # of layers; Keras adds them to the loss
            total = (loss + tf.add_n(penalties) if penalties else loss) / replicas
        variables = self._model.trainable_variables
        self._model.optimizer.apply_gradients(
            zip(tape.gradient(total, variables), variables, strict=True)
        )
        return self._counts(loss, labels, scores)

    def _test_step(self, images, labels):
        """Measures on the plain model: nothing waits for other workers here."""
        scores = self._plain(images, training=False)
        return self._counts(self._mean_loss(labels, scores), labels, scores)

    def _mean_loss(self, labels, scores) -> tf.Tensor:
        """The mean over the images given; a Keras loss itself also divides it among replicas."""
        return tf.reduce_mean(self._loss.call(labels, scores))

    def _counts(self, loss, labels, scores) -> tf.Tensor:
        """(images, loss, right, right among five), added up over a batch."""
        count = tf.cast(tf.shape(labels)[0], tf.float32)
        truth = tf.argmax(labels, axis=-1)
        right = tf.reduce_sum(tf.cast(tf.equal(tf.argmax(scores, axis=-1), truth), tf.float32))
        among = tf.cast(tf.math.in_top_k(truth, scores, 5), tf.float32) if self._top5 else 0.0
        return tf.stack([count, loss * count, right, tf.reduce_sum(among)])

    def _figures(self, sums: tf.Tensor) -> dict[str, float]:
        count, loss, right, among = sums.numpy().tolist()
        figures = {"accuracy": right / count, "loss": loss / count}
        return figures | ({"top5_accuracy": among / count} if self._top5 else {})

    def _sum(self, values) -> tf.Tensor:
        return self._strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None)

    def _validate(self, test_step: Callable, share) -> dict[str, float]:
        """Each worker measures its share, however many batches that has; then all add up."""
        sums = tf.zeros(4)
        for images, labels in one_hot(share.dataset, self._model.output_shape[-1]):
            sums += test_step(images, labels)
        return self._figures(self._add_up(sums))

    def _add_up(self, sums: tf.Tensor) -> tf.Tensor:
        """The sum of what the workers have, each once."""
        return self._summed(sums / self._local)

    def meet(self) -> None:
        """Waits until all workers are here: none reads what the first is still writing."""
        self._add_up(tf.zeros(4))

    def _copy(self, source: keras.Model, target: keras.Model) -> None:
        """All workers do it together: some values are averages over the replicas."""
        both = zip(
            [*source.variables, *source.optimizer.variables],
            [*target.variables, *target.optimizer.variables],
            strict=True,
        )
        for given, taken in both:
            taken.assign(keras.ops.convert_to_numpy(given))

    def _print(self, epoch: int, logs: dict, seconds: float) -> None:
        figures = " - ".join(f"{name}: {value:.4f}" for name, value in logs.items())
        print(f"Epoch {epoch + 1}: {seconds:.0f} s - {figures}", flush=True)
