"""The model card: what the saved weights are, how they were made, how they are loaded."""

from typing import Any

PAPER = """@inproceedings{gupta2020swap,
  title     = {Stochastic Weight Averaging in Parallel: Large-Batch Training That Generalizes Well},
  author    = {Gupta, Vipul and Serrano, Santiago Akle and DeCoste, Dennis},
  booktitle = {International Conference on Learning Representations},
  year      = {2020}
}"""


ENDS = {
    "stopping_accuracy": "its stopping accuracy",
    "noise_scale": "its gradient's noise",
    "max_epochs": "its last epoch",
}


def model_card(record: dict[str, Any]) -> str:
    """A README for the folder that a result is saved in, from its record."""
    settings, accuracies, data = record["settings"], record["accuracies"], record["data"]
    net, times = settings["model"], record["times"]
    workers = settings["num_workers"]
    return f"""---
library_name: pytorch
tags:
- swap
- weight-averaging
---

# {net["name"]}, averaged by SWAP

The mean of the weights of {workers} model{"s" if workers > 1 else ""} ({net["parameters"]:,} \
trainable parameters each) that were trained with *Stochastic Weight Averaging in Parallel*: \
phase 1 trains one model with large batches, phase 2 refines a copy on each worker with small \
batches, phase 3 averages the copies and computes batch-norm statistics anew.

## Files

| file | holds |
| --- | --- |
| `averaged.safetensors` | the averaged model |
{_worker_rows(workers)}
| `record.json` | every setting, epoch, time and version |

## Use

```python
{_loading(net)}
```

## How it was made

| | phase 1 | phase 2, each worker |
| --- | ---: | ---: |
{_phase_rows(record)}

Optimizer: {settings["optimizer"]["name"]}; loss: {settings["loss"]}; precision: \
{settings["precision"]}; seed {settings["seed"]}; {data["train_examples"]:,} training examples. \
Phase 1 ended by {ENDS[record["stopped_by"]]}.

## Results

| | test {accuracies["metric"]} | training time (s) |
| --- | ---: | ---: |
| phase 1's model | {_figure(accuracies["phase1"])} | |
| workers, mean | {_figure(accuracies["before_averaging"])} | {times["before_averaging_s"]:.1f} |
| **averaged** | **{_figure(accuracies["averaged"])}** | {times["after_averaging_s"]:.1f} |

{_test_line(data)} Times are those of {_processes(record)}, and count training, averaging and the \
pass for batch-norm statistics, not tests and checkpoints.

## Licence

To be chosen by whoever publishes these weights.

## Citation

```bibtex
{PAPER}
```
"""


def _worker_rows(workers: int) -> str:
    return "\n".join(f"| `worker{w}.safetensors` | worker {w}'s model |" for w in range(workers))


def _loading(net: dict[str, Any]) -> str:
    target = "model._orig_mod" if net["compiled"] else "model"
    return f"""from safetensors.torch import load_file

model = make_model()  # the function that swap_fast.swap was given: {net["made_by"]}
{target}.load_state_dict(load_file("averaged.safetensors"))
model.eval()"""


def _phase_rows(record: dict[str, Any]) -> str:
    phases = [record["settings"]["phase1"], record["settings"]["phase2"]]
    tau = phases[0]["stopping_accuracy"]
    rates = [
        "a schedule of its own" if "learning_rate" in phase else f"{phase['peak_lr']:g}"
        for phase in phases
    ]
    rows = [
        ("batch size", *(f"{phase['global_batch_size']:,}" for phase in phases)),
        ("peak learning rate", *rates),
        (
            "epochs",
            f"{record['phase1_epochs']} of {phases[0]['max_epochs']}",
            phases[1]["max_epochs"],
        ),
        ("stopping train accuracy", "none" if tau is None else f"{tau:g}", "none"),
    ]
    return "\n".join(f"| {name} | {one} | {two} |" for name, one, two in rows)


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"


def _test_line(data: dict[str, Any]) -> str:
    count = data["test_examples"]
    return "Nothing was tested." if count is None else f"On {count:,} test examples."


def _processes(record: dict[str, Any]) -> str:
    count, where = record["world_size"], record["environment"]["device"]
    return f"{count} process{'es' if count > 1 else ''} ({where})"
