"""What the mirror image and SAM's decoder buy at inference: a run's models on validation scenes, plain and with either.

`stseg-pipeline round --n 3 --backend inline --run runs/inference`, then `python -m benchmarks.inference --run
runs/inference`, writes `benchmarks/inference.json`. Nothing is trained; the models are the start, the student of each
round and the plain baseline.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from jobs.inference.batching import load_images
from jobs.inference.labeller import Labeller
from jobs.inference.model import ModelConfig, model_of
from jobs.inference.refiner import Refining, load_refiner
from jobs.inference.segmenter import MirrorSegmenter, StsegSegmenter, worker_device
from jobs.run import baseline_weights, student_weights
from jobs.stages.evaluate import named_scores
from jobs.stages.evaluated_samples import evaluation_samples
from models.evaluation.metrics import confusion
from models.presets import load_preset
from pipeline.run.run import OpenRun, read_run
from pipeline.tasks.recipe import begun_rounds
from shards.data.sources import ScenesSourceConfig, open_source

CHOICES: Final = {"plain": (), "flip": ("flip",), "refine": ("refine",), "flip and refine": ("flip", "refine")}
METRICS: Final = ("miou", "miou_seen", "miou_unseen", "hiou")


def main() -> None:
    """Measure what the command line names and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/inference"), help="a run with rounds done")
    parser.add_argument("--images", type=int, default=100, help="validation scenes")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("inference.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = read_run(options.run)
    models = {f"round {number}": model_of(run, student_weights(run, number)) for number in begun_rounds(run.layout)}
    models["baseline"] = model_of(run, baseline_weights(run), dea=False)
    rows = [row for name, model in models.items() for row in measured(run, name, model, options.images)]
    result = {"seed": run.config.seed, "split": "validation", "images": options.images, "rows": rows}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        print(f"{row['model']:10}{row['inference']:18}" + "".join(f"{row[name]:>14}" for name in (*METRICS, "ms")))


def measured(run: OpenRun, name: str, model: ModelConfig, count: int) -> list[dict[str, Any]]:
    """Give a model's scores with each choice, in per cent, and the processor time of an image."""
    scenes = ScenesSourceConfig(split="validation", seed=run.config.seed, count=count)
    source, vocabulary = open_source(scenes, run.vocabulary), run.vocabulary
    loaded = list(load_images(evaluation_samples(scenes, run.config.seed, count, vocabulary), source, []))
    truth = {one.ref.key: source.read_label(one.ref, one.frame) for one in loaded}
    network = StsegSegmenter(model, vocabulary, with_encoder=True, text_cache=run.layout.text_embeddings)
    refining = Refining(run.config.refine.refinement, run.config.teacher.top_k, "softmax")
    refiner = load_refiner(model, refining, encoder=network.encoder, device=worker_device())
    images = {one.ref.key: one.image for one in loaded}
    rows = []
    for choice, parts in CHOICES.items():
        labeller = Labeller(
            MirrorSegmenter(network) if "flip" in parts else network,
            load_preset(model.preset).image_size,
            probabilities="softmax",
            refiner=refiner if "refine" in parts else None,
        )
        matrix_KK = np.zeros((len(vocabulary), len(vocabulary)), np.int64)
        started = time.process_time()
        embedded = (lambda key: refiner.embedding(images[key])) if "refine" in parts else None
        for key, _, label in labeller.labels(images.items(), embedded):
            found = truth[key]
            assert found is not None
            matrix_KK += confusion(found.ids, label, len(vocabulary), vocabulary.ignore_index)
        ms = 1000 * (time.process_time() - started) / len(images)
        scores = named_scores(matrix_KK, vocabulary)
        figures = {metric: round(scores[metric], 2) for metric in METRICS}
        rows.append({"model": name, "inference": choice, **figures, "ms": round(ms, 1)})
    return rows


if __name__ == "__main__":
    main()
