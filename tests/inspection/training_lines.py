"""What axolotl 0.19 (transformers 5.16, TRL 1.9) wrote into the logs of `axolotl paft demo --quick`, shortened in the middle.

Origin: `logs/sft-l1.log` and `logs/dpo.log` of such a run; only folders are renamed, and what is left out is cut at line breaks.
"""

from __future__ import annotations

import re

from paft_plugin.inspection.training_log import Training, advance

TRAIN = "$ python -m axolotl.cli.main train configs/sft-l1.yml --launcher python\n"
START = (
    "\rTokenizing Prompts (num_proc=2):   8%|▊         | 1000/12800 [00:00<00:08, 1367.66 examples/s]"
    "\rTokenizing Prompts (num_proc=2): 100%|██████████| 12800/12800 [00:02<00:00, 5667.36 examples/s]\n"
    "\rLoading weights:   0%|          | 0/38 [00:00<?, ?it/s]"
    "\rLoading weights: 100%|██████████| 38/38 [00:00<00:00, 43369.67it/s]\n"
    "[2026-11-24 23:38:07,142] [INFO] [axolotl.train] Starting trainer...\n"
    "\r  0%|          | 0/120 [00:00<?, ?it/s][2026-11-24 23:38:07,493] [WARNING] [py.warnings] dataloader.py:1102: "
    "UserWarning: 'pin_memory' argument is set as true but no accelerator is found.\n\n"
    "\r  1%|          | 1/120 [00:00<01:04,  1.86it/s]"
)
FIRST = (
    "\r  8%|▊         | 10/120 [00:01<00:14,  7.49it/s]\r                                                 \r"
    "{'loss': '0.3016', 'grad_norm': '0.1272', 'learning_rate': '0.000225', 'paft/l1_norm': '23.94', 'paft/penalty': "
    "'0.002394', 'paft/lambda': '0.0001', 'paft/sparsity@1e-5': '0.656', 'ppl': '1.352', 'memory/max_active (GiB)': '0', "
    "'tokens/trainable': 3624, 'tokens/total': 14080, 'epoch': '0.05'}\n"
    "\r  8%|▊         | 10/120 [00:01<00:14,  7.49it/s]"
)
LAST = (
    "\r100%|██████████| 120/120 [00:28<00:00,  6.05it/s]\r                                                 \r"
    "{'loss': '0.1736', 'grad_norm': '0.1178', 'learning_rate': '5e-06', 'paft/l1_norm': '151.9', 'paft/penalty': "
    "'0.01519', 'paft/lambda': '0.0001', 'paft/sparsity@1e-5': '0.8852', 'ppl': '1.19', 'memory/max_active (GiB)': '0', "
    "'tokens/train_per_sec_per_gpu': '2167', 'tokens/trainable': 44247, 'tokens/total': 168960, 'epoch': '0.6'}\n"
    "\r100%|██████████| 120/120 [00:28<00:00,  6.05it/s]\r                                                 \r"
    "{'train_runtime': '28.6', 'train_samples_per_second': '268.5', 'train_steps_per_second': '4.195', 'train_loss': "
    "'0.2042', 'memory/max_active (GiB)': '0', 'epoch': '0.6'}\n"
    "\r100%|██████████| 120/120 [00:28<00:00,  6.05it/s]\r100%|██████████| 120/120 [00:28<00:00,  4.20it/s]\n"
    "[2026-11-24 23:38:36,813] [INFO] [axolotl.train] Training completed! Saving trained model to branches/sft-l1.\n"
    "\rWriting model shards:   0%|          | 0/1 [00:00<?, ?it/s]"
    "\rWriting model shards: 100%|██████████| 1/1 [00:00<00:00, 157.18it/s]\n"
)
DPO = (
    "[2026-11-24 23:38:46,255] [INFO] [axolotl.train] Starting trainer...\n"
    "\r  1%|▏         | 1/80 [00:00<00:58,  1.35it/s]\r                                               \r"
    "{'loss': '0.6931', 'grad_norm': '1.142', 'learning_rate': '0', 'entropy': '0.09204', 'num_tokens': '1452', "
    "'logits/chosen': '-0.7453', 'logits/rejected': '-0.9582', 'mean_token_accuracy': '0.922', 'rewards/chosen': '0', "
    "'rewards/rejected': '0', 'rewards/accuracies': '0', 'rewards/margins': '0', 'logps/chosen': '-1.612', "
    "'logps/rejected': '-1.068', 'epoch': '0.006667'}\n"
    "\r  1%|▏         | 1/80 [00:00<00:58,  1.35it/s]\r 26%|██▋       | 21/80 [00:12<00:34,  1.73it/s]"
)
SCORE = (
    "Running loglikelihood requests:   0%|          | 0/300 [00:00<?, ?it/s]\n"
    "\r  0%|          | 0/100 [00:00<?, ?it/s]\r100%|██████████| 100/100 [00:00<00:00, 43369.67it/s]\n"
)


def read_training(log: str) -> Training:
    """What a whole log says."""
    training = Training()
    for line in re.split(r"[\r\n]", log):
        training = advance(training, line)
    return training
