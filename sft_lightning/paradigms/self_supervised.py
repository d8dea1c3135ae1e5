"""Self-supervised pre-training: an encoder that gives random views of an example similar features, without labels.

theta* = argmin L(p(f(v_1(x))), p(f(v_2(x)))), v_1 and v_2 random views, p a projector that is discarded afterward. What
keeps the features from collapsing to a point is the objective's business: negatives (SimCLR, MoCo v3, DenseCL),
statistics (VICReg, Barlow Twins, LeJEPA), a predictor (BYOL, SimSiam), or balanced prototypes (DINO, SwAV). A masked
autoencoder (MAE) predicts hidden patches of a single view instead.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from sft_lightning.data.contract import BatchRequest, few_label_data
from sft_lightning.losses.pretraining.base import Objective
from sft_lightning.losses.regularizers.base import Regularizer
from sft_lightning.networks.build import build_encoder
from sft_lightning.paradigms.base import StepResult, compile_in_place, resolve_input_spec
from sft_lightning.paradigms.effective_rank import compute_effective_rank
from sft_lightning.paradigms.encoder_pretraining import EncoderPretraining
from sft_lightning.paradigms.feature_metrics import FeatureMetrics
from sft_lightning.paradigms.labeled_features import compute_labeled_features
from sft_lightning.training.figures import ExampleRows, Figure
from sft_lightning.training.momentum_network import MomentumNetwork
from sft_lightning.training.nonfinite import OnNonfinite
from sft_lightning.training.optimizers import count_total_steps
from sft_lightning.utils.distributed import all_gather_cat
from sft_lightning.utils.errors import InputError, check_min
from sft_lightning.utils.inputs import Inputs, InputSpec, map_inputs

_SHOWN = 8  # examples whose views are drawn
_RANKED = 2048  # evaluated examples of all processes whose features give the effective rank
_COLLAPSED = 0.1  # spread of the projections; 0.7 and more is healthy
_DEAD = 0.01  # spread that no network starts with
_PATIENCE = 3  # entries of the log with a collapsed spread before a warning


class SelfSupervisedModule(EncoderPretraining):
    """An encoder trained by a self-supervised objective on random views of unlabeled examples.

    While it learns, the log shows the effective rank of the features (1 is a collapse) and, where labels exist, their
    k-nearest-neighbor accuracy. At the end of `fit` the encoder is written as `encoder.safetensors` into the run's
    folder, from which every other paradigm starts (`weights`).
    """

    monitor: ClassVar[tuple[str, str]] = ("val/effective_rank", "max")

    def __init__(
        self,
        objective: Objective,
        backbone: str,
        input_spec: InputSpec | Mapping[str, Any] | Sequence[int] | None = None,
        num_classes: int = 0,
        weights: str = "none",
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        neighbors: int = 20,
        remembered: int = 10_000,
        compile: bool | str = False,
        regularizer: Regularizer | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        on_nonfinite: OnNonfinite = "raise",
        nonfinite_limit: int = 10,
    ) -> None:
        """Build the encoder, the objective's networks and, if it needs one, the momentum network.

        Args:
            objective: L: `SimCLR`, `VICReg`, `BarlowTwins`, `BYOL`, `MoCoV3`, `SimSiam`, `LeJEPA`, `DINO`, `SwAV`,
                `DenseCL`, `MAE` or a class of your own.
            backbone: `mlp`, `conv`, `resnet8`, `wrn_28_2`, a torchvision or timm name, or the class path of an
                `Encoder`; `resnet8:flatten` keeps all cells of the last map.
            input_spec: Specification of the inputs: `input_spec` of the data, or (C, H, W) of images, by default
                (3, 224, 224). The command line takes it from the data.
            num_classes: Number of classes, for the metrics only; the command line takes it from the data.
            weights: `none`, `default` (published, downloaded), or the path of a `.safetensors`, checkpoint or run.
            mean: Mean of the pixels for normalization; null for that of the weights.
            std: Standard deviation of the pixels for normalization; null for that of the weights.
            neighbors: Number k of neighbors for the k-nearest-neighbor accuracy.
            remembered: Maximum number of labeled examples that evaluations compare features with.
            compile: Compile the encoder: true, or a mode of `torch.compile`.
            regularizer: lambda R(theta): `L2`, `L2SP`, `DELTA`, `BSS` or a class of your own.
            optimizer: Function that makes an optimizer from parameter groups; needed for training only.
            lr_scheduler: Function that makes a schedule from the optimizer, or None for a constant rate.
            on_nonfinite: Policy for a step whose loss or gradients are NaN or infinite: stop the training (`raise`) or
                leave the step out (`skip`). In either case it changes no parameter.
            nonfinite_limit: Number of steps that may be left out; one more stops the training.

        Raises:
            InputError: A setting is out of its range, the backbone is unknown, or the weights do not fit.
        """
        super().__init__(optimizer, lr_scheduler, regularizer, on_nonfinite, nonfinite_limit)
        if not isinstance(objective, Objective):
            raise InputError(f"objective is {objective!r:.60}: give an object such as SimCLR() (in YAML, a class_path)")
        if compile and not objective.takes_compiled:
            name = type(objective).__name__
            raise InputError(f"compile is {compile!r}, and {name} reads maps inside of the backbone: set it to false")
        check_min(1, neighbors=neighbors, remembered=remembered)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler", "regularizer", "objective"])
        spec = resolve_input_spec(input_spec, None, (3, 224, 224))
        self.hparams["input_spec"] = spec.to_dict()
        self.encoder, _ = build_encoder(backbone, spec, weights, mean, std)
        self.objective = objective
        objective.attach(self.encoder)
        self.momentum: MomentumNetwork | None = None
        if objective.needs_momentum:
            self.momentum = MomentumNetwork(objective.list_averaged(self.encoder), objective.decay)
        self.regularize(self.encoder, compile)
        compile_in_place(self.encoder, compile)
        self.remembered = remembered
        size = num_classes, self.encoder.num_features, neighbors
        stages = ("val", "test") if num_classes > 1 else ()
        self._feature_metrics = nn.ModuleDict({f"{stage}_features": FeatureMetrics(*size) for stage in stages})
        self._evaluated: list[Tensor] = []
        self._example: tuple[Inputs, ...] | None = None
        self._features: Tensor | None = None  # of the last training batch
        self._low_entries = 0  # of the log, in a row, with a collapsed spread
        self._first_spread: float | None = None  # in the first entry of the log

    def batch_request(self) -> BatchRequest:
        """Return that unlabeled batches hold the views of the objective and no other."""
        objective = self.objective
        views = ("pretrain",) * objective.num_views + ("pretrain_local",) * objective.num_local_views
        return BatchRequest(self.batch_parts, views)

    def forward(self, x: Inputs) -> Tensor:
        """Compute features.

        Args:
            x: Inputs as the data module gives them, such as images in [0, 1], (B, C, H, W).

        Returns:
            Features, (B, F).
        """
        features: Tensor = self.encoder(x)
        return features

    def features(self, x: Inputs) -> Tensor:
        """Compute features, as `forward` does.

        Args:
            x: Inputs as the data module gives them, such as images in [0, 1], (B, C, H, W).
        """
        return self.forward(x)

    # --- training

    def on_train_start(self) -> None:
        """Find out how long the training is, over which the decay of the momentum network rises."""
        super().on_train_start()
        self._low_entries, self._first_spread = 0, None
        try:
            self._total_steps: int | None = count_total_steps(self.trainer)
        except InputError:  # a training without an end
            self._total_steps = None

    def step(self, batch: Any) -> StepResult:
        """Compute the objective of the views of a batch."""
        unlabeled = batch["unlabeled"]
        if self.momentum is not None:
            averaged = self.objective.list_averaged(self.encoder)
            self.momentum.follow(averaged, self.global_step, self._total_steps)
        with self.watched():
            when = self.global_step, self.current_epoch
            result = self.objective.compute(self.encoder, self.momentum, unlabeled, *when)
        self._features = result.features
        if self._example is None:  # a copy, so that the batch can be freed
            self._example = tuple(map_inputs(lambda t: t[:_SHOWN].clone(), row) for row in result.make_rows())
        return StepResult(result.loss, result.logs)

    def derived(self, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the effective rank of the last batch's features, and warn of a collapse.

        Args:
            means: Mean of each logged scalar since the last log entry.
        """
        if self._features is None:
            return {}
        if "projection_spread" in means:
            self._warn_of_collapse(float(means["projection_spread"]))
        return {"effective_rank": compute_effective_rank(self._features)}

    def _warn_of_collapse(self, spread: float) -> None:
        self._first_spread = self._first_spread or spread
        # Small networks without normalization start with a low spread, which rises.
        collapsed = spread < max(_DEAD, min(_COLLAPSED, self._first_spread / 2))
        self._low_entries = self._low_entries + 1 if collapsed else 0
        if self._low_entries == _PATIENCE:
            rank_zero_info(
                f"Warning: the projections have collapsed at step {self.global_step} (train/projection_spread is "
                f"{spread:.3f}, 1 at best), so that the examples look alike to {type(self.objective).__name__}: lower "
                "the learning rate, raise batch_size, or use an objective with a variance term, such as VICReg."
            )

    # --- evaluation

    def setup(self, stage: str) -> None:
        """Measure no features by class where examples have several.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.
        """
        data = few_label_data(self.trainer)
        if data is not None and data.target != "class":
            self._feature_metrics = nn.ModuleDict()

    def _begin_evaluation(self, stage: str) -> None:
        self._evaluated = []
        if not self._feature_metrics:
            return
        metrics: Any = self._feature_metrics[f"{stage}_features"]
        labeled = compute_labeled_features(self, self.encoder, self.remembered)
        if labeled is None:
            metrics.forget()
        else:
            metrics.remember(*labeled)

    def on_validation_epoch_start(self) -> None:
        """Store the labeled features that validation compares with."""
        self._begin_evaluation("val")

    def on_test_epoch_start(self) -> None:
        """Store the labeled features that the test compares with."""
        self._begin_evaluation("test")

    def _evaluation_step(self, stage: str, batch: Any) -> None:
        features = self(batch.x)
        missing = _RANKED // self.trainer.world_size - sum(map(len, self._evaluated))
        if missing > 0:
            self._evaluated.append(features[:missing].float().clone())
        if self._feature_metrics:
            metrics: Any = self._feature_metrics[f"{stage}_features"]
            metrics.update(features, batch.y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add the features of a batch of unaugmented examples to the validation metrics."""
        self._evaluation_step("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add the features of a batch of unaugmented examples to the test metrics."""
        self._evaluation_step("test", batch)

    def evaluate(self, stage: str) -> dict[str, Tensor]:
        """Return the effective rank and, where labels exist, the metrics of the features by class."""
        features, self._evaluated = torch.cat(self._evaluated), []
        values = {"effective_rank": compute_effective_rank(all_gather_cat(features))}
        if self._feature_metrics:
            metrics: Any = self._feature_metrics[f"{stage}_features"]
            values |= metrics.compute()
        return values

    def figures(self, stage: str) -> dict[str, Figure]:
        """Return views of some training examples, one above the other, to see what the objective compares."""
        example, self._example = self._example, None
        return {} if example is None else {"views": ExampleRows(example)}

    def predict_step(self, batch: Any, batch_idx: int) -> NoReturn:
        """Refuse to predict.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "a SelfSupervisedModule learns features and has no classifier to predict with: train one from this run "
            "(--model.init_args.weights RUN) and predict with that"
        )
