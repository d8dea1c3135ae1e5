"""One call of AutoGluon's MultiModalPredictor, run by `autogluon_sources.py` with the Python of another environment.

    PYTHON autogluon_worker.py TRAIN_CSV TEST_CSV MINUTES FOLDER

The tables have the columns image and label. The network is EfficientNet-Lite0, whose weights lie in the cache of the
hub that HF_HOME names. All other settings are AutoGluon's own. Prints JSON: the version, the seconds and the class of
each test image.
"""

import json
import sys
import time
from importlib.metadata import version


def main() -> None:
    """Train and predict."""
    import pandas
    from autogluon.multimodal import MultiModalPredictor

    train, test, minutes, folder = sys.argv[1:]
    begin = time.monotonic()
    predictor = MultiModalPredictor(label="label", path=folder, problem_type="multiclass", eval_metric="acc")
    predictor.fit(
        pandas.read_csv(train),
        time_limit=60 * float(minutes),
        hyperparameters={
            "model.names": ["timm_image"],
            "model.timm_image.checkpoint_name": "tf_efficientnet_lite0",
            "env.num_workers": 0,
            "env.num_workers_inference": 0,
        },
        seed=0,
    )
    seconds = round(time.monotonic() - begin)
    predicted = predictor.predict(pandas.read_csv(test))
    print(json.dumps({"version": version("autogluon.multimodal"), "seconds": seconds, "predicted": predicted.tolist()}))


if __name__ == "__main__":
    main()
