"""Evaluation inside a training: scores the averaged weights exactly, on all ranks."""

from dataclasses import asdict

from pipeline.data.evaluation_loader import eval_batches
from pipeline.data.sources import open_index
from pipeline.engine.step import Stepper
from pipeline.engine.warmup import rehearse_evaluation
from pipeline.evaluate.score import Scores, score
from pipeline.jobs.prepare import Prepared
from pipeline.jobs.progress import Progress
from pipeline.parallel.world import World
from pipeline.run.files import write_json

NUM_GUESSES = 24


class Scoring:
    """Scores the eval split; keeps the last result."""

    def __init__(
        self, prepared: Prepared, world: World, stepper: Stepper, progress: Progress
    ) -> None:
        recipe = prepared.recipe
        self._prepared = prepared
        self._world = world
        self._stepper = stepper
        self._progress = progress
        data = recipe.data
        self._index = open_index(data.path, data.shards, prepared.manifest, data.eval)
        self._last: tuple[int, Scores] | None = None

    def rehearse(self) -> None:
        """Try a batch of the evaluation; raises Misuse where it does not fit into memory."""
        recipe = self._prepared.recipe
        images = min(recipe.evaluate.batch, -(-len(self._index) // self._world.size))
        rehearse_evaluation(self._stepper, recipe.preprocess.eval_px, images)

    def at_step(self, step: int) -> float:
        """Score after `step` steps and return top-1."""
        scores = self._score()
        self._last = (step, scores)
        self._progress.evaluated(
            step, {"top1": scores.top1, "top5": scores.top5, "loss": scores.loss}
        )
        return scores.top1

    def final(self, step: int) -> Scores:
        """Return the scores after `step` steps; on rank 0 also write them to evaluation.json."""
        if self._last is None or self._last[0] != step:
            self._last = (step, self._score())
        scores = self._last[1]
        if self._world.is_first:
            labels = self._prepared.manifest.labels
            write_json(
                self._prepared.recipe.folder.evaluation,
                {
                    "step": step,
                    "num_images": scores.num_images,
                    "top1": scores.top1,
                    "top5": scores.top5,
                    "loss": scores.loss,
                    "classes": [labels.text(index) for index in range(len(labels))],
                    "confusion": scores.confusion,
                    "samples": [asdict(guess) for guess in scores.guesses],
                },
            )
        return scores

    def _score(self) -> Scores:
        recipe = self._prepared.recipe
        batches = eval_batches(
            self._index,
            recipe.preprocess,
            rank=self._world.rank,
            world=self._world.size,
            batch=recipe.evaluate.batch,
            workers=recipe.loader.workers,
        )
        return score(
            self._stepper.ema.module,
            batches,
            self._stepper.inputs.images,
            self._prepared.manifest.num_classes,
            len(self._index),
            self._world.sum,
            NUM_GUESSES,
        )
