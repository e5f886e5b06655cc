"""TRL's experimental SDPOTrainer on one workload; run by `run.py` in TRL's environment.

The trainer is unchanged; three of its methods are timed from outside.
"""

import collections
import functools
import importlib.metadata
import tempfile
import time

import torch
import transformers
from datasets import Dataset
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

from experiments.benchmark_trl import workload as w


def config(workload: w.Workload, folder: str) -> SDPOConfig:
    """TRL's config of a workload, with all work outside the step turned off."""
    support = {"distillation_mode": "full_logits"}
    if workload.top_k:
        support = {
            "distillation_mode": "topk_logits",
            "distillation_topk": workload.top_k,
            "distillation_add_tail": True,
        }
    return SDPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        seed=w.SEED,
        max_steps=workload.updates,
        per_device_train_batch_size=workload.rows,
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
        num_generations=workload.attempts,
        max_prompt_length=workload.prompt,
        max_completion_length=workload.response,
        max_reprompt_len=workload.reprompt,
        temperature=1.0,
        distillation_alpha=w.MIXTURE,
        distillation_is_clip=w.IMPORTANCE_RATIO_CAP,
        **support,
        teacher_model_kind="ema",
        teacher_update_rate=w.TEACHER_RATE,
        solution_template=workload.solution_template.replace(
            "{solution}", "{successful_previous_attempt}"
        ),
        reprompt_template="{prompt}{solution}{feedback}" + workload.instruction,
        learning_rate=w.LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=w.WEIGHT_DECAY,
        max_grad_norm=w.CLIP_NORM,
        model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )


class Watch(transformers.TrainerCallback):
    """Records each of the trainer's steps, and the shapes of its batch."""

    def __init__(self, record: w.Record):
        self.record = record
        self.seconds = collections.Counter()
        self.losses = []
        self.seen = []

    def around(self, trainer: SDPOTrainer, method: str, part: str) -> None:
        """Add the seconds of a method to a phase."""
        original = getattr(trainer, method)

        @functools.wraps(original)
        def timed(*args, **kwargs):
            start_s = time.perf_counter()
            try:
                result = original(*args, **kwargs)
            finally:
                self.seconds[part] += time.perf_counter() - start_s
            if method == "training_step":
                self.losses.append(float(result))
            return result

        setattr(trainer, method, timed)

    def on_self_distillation_batch_prepared(self, **batch):
        """TRL's event for a complete batch."""
        rows, response = batch["completion_ids"].shape
        self.seen.append(
            {
                "prompt": batch["prompt_ids"].shape[1],
                "response": response,
                "reprompt": batch["teacher_input_ids"].shape[1] - response,
                "rows": rows,
                "rows_with_target": int(batch["self_distillation_mask"].sum()),
            }
        )

    def on_step_end(self, *_, **__):
        """TRL's event at the end of a step."""
        rollout_s, sample_s = self.seconds["rollout"], self.seconds["sample"]
        # A training step begins by preparing its batch.
        train_s = self.seconds["train"] - rollout_s
        parts = {"sample": sample_s, "grade": rollout_s - sample_s, "train": train_s}
        self.seconds.clear()
        self.record.step(parts)


def solved(completions, **_) -> list[float]:
    """Scores: 1 for the first attempt at each question, 0 for the others."""
    return [float(i % solved.attempts == 0) for i in range(len(completions))]


def measure(workload: w.Workload, checkpoint: str) -> dict:
    """Train on the workload and return the measurements."""
    torch.set_num_threads(1)
    solved.attempts = workload.attempts
    data = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": x}]} for x in workload.prompts()]
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        checkpoint, padding_side="left"
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = SDPOTrainer(
            model=checkpoint,
            reward_funcs=solved,
            args=config(workload, folder),
            train_dataset=data,
            processing_class=tokenizer,
        )
        watch = Watch(w.Record())
        watch.around(trainer, "sample_rollouts", "sample")
        watch.around(trainer, "_prepare_training_batch", "rollout")
        watch.around(trainer, "training_step", "train")
        trainer.add_callback(watch)
        trainer.train()
    for seen in watch.seen:
        w.check(workload, seen)
    packages = ("trl", "torch", "transformers", "accelerate")
    return {
        **watch.record.result(),
        "loss": watch.losses[w.WARMUP :],
        "seen": watch.seen[-1],
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


if __name__ == "__main__":
    w.run_side(measure, __doc__)
