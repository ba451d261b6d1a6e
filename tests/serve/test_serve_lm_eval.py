"""lm-eval's `local-completions` against the running service, and lm-eval's own transformers model on the same folder."""

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalCompletionsAPI
from serve_helpers import TEXT, served, tiny_tokenizer
from small import noisy

from moxin.infer.engine import Engine
from moxin.infer.load import load
from moxin.model import huggingface
from moxin.recipe import ModelConfig
from moxin.tokens.tokenizer import Tokenizer

CASES = [
    ("The quick brown", " fox jumps"),
    ("Who owns the dog?", " Ada owns the lazy dog."),
    ("Who owns the dog?", " The fox."),
    ("naïve", " 漢字 🎉"),
    (TEXT * 3, " Who owns"),
]


@pytest.mark.slow
def test_log_likelihoods_over_http_are_those_of_the_model_in_process(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("lm_eval")
    config = ModelConfig(n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_ff=64, vocab_size=300, max_seq_len=512,
                         sliding_window=64)  # fmt: skip
    tiny_tokenizer().save(str(folder / "tokenizer"))
    release = str(folder / "release")
    huggingface.export(noisy(config, seed=3), str(folder / "tokenizer"), release, dtype="float32")
    theirs = HFLM(
        pretrained=release, dtype="float32", device="cpu", batch_size=1, max_length=512, add_bos_token=True
    )
    requests = [Instance(request_type="loglikelihood", doc={}, arguments=case, idx=0) for case in CASES]
    wanted = theirs.loglikelihood(requests, disable_tqdm=True)
    torch.set_num_threads(1)
    tokenizer = Tokenizer.load(release)
    engine = Engine(load(release), max_batch=4, decode=tokenizer.decode)
    with served(engine, tokenizer, max_len=512) as (url, _):
        ours = LocalCompletionsAPI(
            base_url=f"{url}/v1/completions", model="tiny", tokenizer=release, tokenizer_backend="huggingface",
            max_length=512, add_bos_token=True, batch_size=2, max_retries=1,
        )  # fmt: skip
        found = ours.loglikelihood(requests, disable_tqdm=True)
        until = {"max_gen_toks": 6, "until": ["zzz"]}
        continued = Instance(request_type="generate_until", doc={}, arguments=("The", until), idx=0)
        generated = ours.generate_until([continued], disable_tqdm=True)
    assert [logp for logp, _ in found] == pytest.approx([logp for logp, _ in wanted], abs=1e-5, rel=0)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    assert len(generated[0]) > 0
