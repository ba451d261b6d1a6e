"""The lm-eval model against `transformers` on the exported weights."""

import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM, AutoTokenizer

from moxin.evaluate.lm import MoxinLM

LONG = "Orvek Holloway lives in Tarn, and " * 12
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where does <|end|> Mira live?"},
]


@pytest.fixture
def lm(model, tokenizer):
    return MoxinLM(model, tokenizer, batch_size=3)


@pytest.fixture(scope="module")
def theirs(released):
    return AutoModelForCausalLM.from_pretrained(released, dtype=torch.float32).eval()


def request(*arguments) -> Instance:
    return Instance(request_type="", doc={}, arguments=arguments, idx=0)


@torch.no_grad()
def scored(theirs, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """One sequence alone, by transformers, in float64."""
    logps = theirs(torch.tensor([context + continuation])).logits[0].double().log_softmax(-1)
    own = logps[len(context) - 1 : -1]
    said = torch.tensor(continuation)
    return own.gather(1, said[:, None]).sum().item(), bool((own.argmax(1) == said).all())


def test_loglikelihood_is_that_of_transformers(lm, tokenizer, theirs):
    cases = [
        ("Question: Where does Mira live?\nAnswer:", " Mira lives in Tarn."),
        ("Question: Where does Mira live?\nAnswer: ", "Low Wick"),
        ("", "Orvek"),
        ("a", ""),
        ("Wo wohnt", " Körbchen ✓"),
        ("x", " knows why! " * 3),
    ]
    bos = [tokenizer.bos_id]
    wanted = [
        scored(theirs, bos + tokenizer.encode(c.rstrip()), tokenizer.encode(c[len(c.rstrip()) :] + t))
        for c, t in cases
    ]
    found = lm.loglikelihood([request(*case) for case in cases])
    assert [logp for logp, _ in found] == pytest.approx([logp for logp, _ in wanted], rel=1e-5, abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]


def test_greedy_continuations_are_called_greedy(lm, tokenizer, theirs):
    context = [tokenizer.bos_id, *tokenizer.encode("Mira")]
    token = int(theirs(torch.tensor([context])).logits[0, -1].argmax())
    assert lm._score([(context, [token]), (context, [token ^ 1])]) == [
        (pytest.approx(scored(theirs, context, [token])[0], abs=1e-4), True),
        (pytest.approx(scored(theirs, context, [token ^ 1])[0], abs=1e-4), False),
    ]


def test_too_long_contexts_lose_their_beginning_and_too_long_continuations_are_errors(lm, tokenizer, theirs):
    ids, continuation = tokenizer.encode(LONG.rstrip()), tokenizer.encode(" Tarn.")
    assert len(ids) > 65
    kept = ids[-(65 - len(continuation)) :]
    found = lm.loglikelihood([request(LONG.rstrip(), " Tarn.")])
    assert found[0][0] == pytest.approx(scored(theirs, kept, continuation)[0], rel=1e-5)
    with pytest.raises(ValueError, match="exceeds the model's 64"):
        lm.loglikelihood([request("a", LONG)])


def test_rolling_predicts_every_token_once(lm, tokenizer, theirs):
    text = LONG + "Körbchen ✓\n"
    ids = [tokenizer.bos_id, *tokenizer.encode(text)]
    logps = []  # token t is seen with all that its window holds; windows of 64 follow one another
    for start in range(0, len(ids) - 1, 64):
        end = min(start + 64, len(ids) - 1)
        begin = max(0, end - 64)
        logps.append(scored(theirs, ids[begin : start + 1], ids[start + 1 : end + 1])[0])
    found = lm.loglikelihood_rolling([request("a"), request(text), request("")])
    assert len(logps) > 2
    assert found[1] == pytest.approx(sum(logps), rel=1e-5)
    assert found[0] == pytest.approx(scored(theirs, [tokenizer.bos_id], tokenizer.encode("a"))[0], rel=1e-5)
    assert found[2] == 0


def test_chat_prompts_keep_their_tokens(lm, tokenizer, released):
    text = lm.apply_chat_template(MESSAGES)
    ids, _ = tokenizer.render(MESSAGES, add_generation_prompt=True)
    assert lm.prompt(text) == ids
    assert ids != [tokenizer.bos_id, *tokenizer.encode(text)]
    plain = [MESSAGES[0], {"role": "user", "content": "Where?"}]
    theirs = AutoTokenizer.from_pretrained(released).apply_chat_template(plain, add_generation_prompt=True)
    assert lm.prompt(lm.apply_chat_template(plain)) == theirs["input_ids"]


def test_replies_are_those_of_transformers(lm, tokenizer, theirs):
    prompts = ["Question: Where?\nAnswer:", lm.apply_chat_template(MESSAGES), LONG]
    replies = lm.generate_until([request(text, {"until": [], "max_gen_toks": 12}) for text in prompts])
    for text, reply in zip(prompts, replies, strict=True):
        ids = lm.prompt(text)[-(64 - 12) :]
        generated = theirs.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[
            0, len(ids) :
        ].tolist()
        assert reply == tokenizer.decode(generated)
    start = next(char for char in replies[0][2:] if replies[0].index(char) > 0)
    (cut,) = lm.generate_until([request(prompts[0], {"until": [start], "max_gen_toks": 12})])
    assert cut == replies[0][: replies[0].index(start)]
