#!/usr/bin/env bash
# All that a GPU is needed for, in one go, meant for 8 minutes: the kernels' tests compiled, attention against its peers, whole
# training steps. Needs torch with CUDA, transformers, numba, rich and pytest; neither Ray nor DeepSpeed. Results go to
# benchmarks/results.
#
#     benchmarks/gpu.sh
set -euo pipefail
cd "$(dirname "$0")/.."
python -c 'import torch; assert torch.cuda.is_available(), "no CUDA device"; print(torch.cuda.get_device_name(), torch.__version__)'
python -m pytest tests/kernels tests/model/test_decoder_transformers.py -q -p no:cacheprovider -m "not slow"
python benchmarks/attention.py
python benchmarks/model_step.py
