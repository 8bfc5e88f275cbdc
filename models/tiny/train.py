"""`python -m models.tiny.train clip|sam`: train one of the shipped models anew, in place."""

import argparse
import logging
from pathlib import Path

import torch

from models.weights.files import WEIGHTS_FOLDER, write_weights


def main() -> None:
    """Train what is named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=("clip", "sam"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--first-cycle", type=int, default=0, help="of CLIP's: continue from the weights in --out")
    parser.add_argument("--out", type=Path, default=WEIGHTS_FOLDER)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    if options.model == "clip":
        from models.tiny.clip_training import ClipTrainingConfig, train_tiny_clip

        start = options.out / "clip_tiny.safetensors" if options.first_cycle else None
        config = ClipTrainingConfig(seed=options.seed)
        state = train_tiny_clip(config, first_cycle=options.first_cycle, start=start).clip.state_dict()
    else:
        from models.tiny.sam_training import SamTrainingConfig, train_tiny_sam

        state = train_tiny_sam(SamTrainingConfig(seed=options.seed)).state_dict()
    write_weights(state, options.out / f"{options.model}_tiny.safetensors", half=True)


if __name__ == "__main__":
    main()
