"""From a job's options to the parts of a training spec: the only place where an option's default becomes a number."""

from smedje.training.options import TrainingOptions
from smedje.training.spec import LoraSpec, LossSpec, ObjectiveSpec, OptimizerSpec, ScheduleSpec, WatchSpec

# The usual betas, as in the optimizers' papers; the base models' default rates are for adamw with these.
BETAS = {"lion": (0.9, 0.99)}
USUAL_BETAS = (0.9, 0.999)
MOMENTUM = {"muon": 0.95}
USUAL_MOMENTUM = 0.9
# Optimizers for which the base models' default rates mean something.
RATED = ("adamw", "adam")


def optimizer_spec(options: TrainingOptions, *, base_rate: float, multiplier: float) -> OptimizerSpec:
    """The update rule. base_rate: the base model's default peak rate."""
    beta1, beta2 = BETAS.get(options.optimizer, USUAL_BETAS)
    momentum = MOMENTUM.get(options.optimizer, USUAL_MOMENTUM)
    return OptimizerSpec(
        kind=options.optimizer,
        learning_rate=options.learning_rate,
        multiplier=multiplier,
        base_learning_rate=base_rate,
        beta1=beta1 if options.beta1 is None else options.beta1,
        beta2=beta2 if options.beta2 is None else options.beta2,
        eps=options.eps or OptimizerSpec().eps,
        momentum=momentum if options.momentum is None else options.momentum,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        batch_factor=options.batch_size_multiplier * options.gradient_accumulation_steps,
    )


def schedule_spec(options: TrainingOptions) -> ScheduleSpec:
    """How the rate rises and falls."""
    return ScheduleSpec(
        kind=options.scheduler,
        warmup_ratio=options.warmup_ratio,
        warmup_steps=options.warmup_steps,
        power=options.scheduler_power or ScheduleSpec().power,
    )


def loss_spec(options: TrainingOptions) -> LossSpec:
    """The loss of a labelled token."""
    usual = LossSpec()
    return LossSpec(
        kind=options.loss,
        smoothing=options.label_smoothing or usual.smoothing,
        gamma=options.focal_gamma or usual.gamma,
    )


def objective_spec(options: TrainingOptions, *, method: str, beta: float | None) -> ObjectiveSpec:
    """What a job of this method minimises. beta: of dpo, None for its default."""
    if method == "dpo":
        return ObjectiveSpec(kind="dpo", beta=ObjectiveSpec().beta if beta is None else beta)
    noise = options.neftune_alpha or 0.0
    if method == "classification":
        weights = options.class_weights
        return ObjectiveSpec(
            kind="classification",
            loss=loss_spec(options),
            neftune_alpha=noise,
            balanced=weights == "balanced",
            class_weights=weights if isinstance(weights, dict) else {},
        )
    return ObjectiveSpec(loss=loss_spec(options), neftune_alpha=noise)


def watch_spec(options: TrainingOptions) -> WatchSpec:
    """When to measure, keep and stop."""
    return WatchSpec(
        evaluate_every=options.eval_every_steps,
        patience=options.early_stopping_patience,
        threshold=options.early_stopping_threshold,
        best=options.checkpoint == "best",
        checkpoint_epochs=options.checkpoint_every_epochs,
    )


def lora_spec(options: TrainingOptions, kept: LoraSpec, *, initial: str | None) -> LoraSpec:
    """The adapter: what was asked, and where nothing was, what is `kept` (of the model to continue, or the default).

    initial: where the adapter to continue lies.
    """
    if options.tuning == "full":
        return LoraSpec(full=True, initial=initial, recompute=options.recompute)
    layers, last = kept.layers, kept.last_layers
    if isinstance(options.lora_layers, int):
        layers, last = None, -options.lora_layers
    elif options.lora_layers is not None:
        layers, last = tuple(sorted(set(options.lora_layers))), None
    return LoraSpec(
        rank=options.lora_rank or kept.rank,
        alpha=options.lora_alpha or kept.alpha,
        dropout=options.lora_dropout,
        rslora=kept.rslora if options.rslora is None else options.rslora,
        targets=kept.targets if options.lora_targets is None else options.lora_targets,
        layers=layers,
        last_layers=last,
        dora=kept.dora if options.dora is None else options.dora,
        initial=initial,
        precision=options.precision or kept.precision,
        recompute=options.recompute,
    )
