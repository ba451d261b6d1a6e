"""The whole road on a laptop: `demo` (about 11 minutes on 2 CPU cores) and `smoke` (the same road in about 4)."""

from dataclasses import replace

from moxin.recipe import (
    CurateConfig,
    DPOConfig,
    EvaluateConfig,
    ModelConfig,
    PhaseConfig,
    PretrainConfig,
    Recipe,
    ScalingConfig,
    SFTConfig,
    SourceConfig,
    TinyworldConfig,
    TokenizerConfig,
)


def demo() -> Recipe:
    """1.6M parameters outside the embeddings, 1.8M tokens in three phases whose mix and context change."""
    return Recipe(
        name="demo",
        model=ModelConfig(n_layers=4, d_model=192, n_heads=6, n_kv_heads=2, d_ff=512, sliding_window=128),
        sources=(
            SourceConfig("prose", "prose", license="PSF-2.0", max_bytes=3_000_000),
            SourceConfig("code", "code", license="PSF-2.0", max_bytes=4_000_000),
            SourceConfig("tinyworld", "tinyworld", license="CC0-1.0"),
            SourceConfig("quiz", "quiz", license="CC0-1.0"),
        ),
        tinyworld=TinyworldConfig(),
        curate=CurateConfig(decontamination_ngram=8),
        tokenizer=TokenizerConfig(vocab_size=2048),
        pretrain=PretrainConfig(
            phases=(
                PhaseConfig("phase1", 600_000, 128, {"tinyworld": 0.7, "prose": 0.2, "code": 0.1}),
                PhaseConfig("phase2", 600_000, 256, {"tinyworld": 0.7, "prose": 0.1, "code": 0.2}),
                # Capability enhancement, as in Moxin's third phase: questions with answers join the mix. They never ask
                # about a held-out fact.
                PhaseConfig(
                    "phase3", 600_000, 256, {"tinyworld": 0.6, "quiz": 0.3, "prose": 0.05, "code": 0.05}
                ),
            ),
        ),
        sft=SFTConfig(),
        dpo=DPOConfig(),
        evaluate=EvaluateConfig(),
        scaling=ScalingConfig(),
    )


def smoke() -> Recipe:
    """Every stage of `demo` with everything smaller: it checks the road and learns nothing to speak of."""
    recipe = demo()
    phases = tuple(replace(phase, tokens=24 * 1024, context=64) for phase in recipe.pretrain.phases)
    return replace(
        recipe,
        name="smoke",
        model=replace(
            recipe.model, n_layers=2, d_model=64, n_heads=4, d_ff=128, vocab_size=1024, max_seq_len=128
        ),
        sources=tuple(replace(source, max_bytes=source.max_bytes // 20) for source in recipe.sources),
        tinyworld=replace(
            recipe.tinyworld,
            n_people=24,
            n_documents=300,
            n_quiz_documents=60,
            n_questions=24,
            n_chats=60,
            n_preferences=32,
            n_near_duplicates=10,
            n_exact_duplicates=6,
            n_gibberish=6,
            n_foreign=6,
            n_personal=6,
            n_leaks=6,
        ),
        tokenizer=replace(recipe.tokenizer, vocab_size=1024, sample_bytes=400_000),
        pretrain=replace(
            recipe.pretrain,
            phases=phases,
            global_batch=1024,
            micro_batch=512,
            warmup_tokens=4096,
            checkpoint_every=10,
        ),
        sft=replace(
            recipe.sft, epochs=1, context=128, global_batch=1024, micro_batch=512, checkpoint_every=5
        ),
        dpo=replace(recipe.dpo, context=128, global_batch=8, micro_batch=4, checkpoint_every=2),
        evaluate=replace(recipe.evaluate, perplexity_bytes=8_000),
        shards=2,
    )
