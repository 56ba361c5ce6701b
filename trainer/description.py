"""What a model is, by looking at it."""

from sentence_transformers.sentence_transformer.modules import Pooling

from trainer.encoder import load_encoder


def describe(name: str) -> dict[str, object]:
    """Load a model, and tell its size and what it reads and gives.

    Args:
        name: As ``load_encoder``.

    Returns:
        parameters (millions), dimension, max_length (tokens, None where there is no end), pooling (None where
        the model has no pooling layer) and prompts.

    Raises:
        ModelError: There is no such model, or it cannot be loaded.
        ArtifactError: A checkpoint of ours is damaged.
    """
    model = load_encoder(name).model
    pooling = next((module.pooling_mode for module in model if isinstance(module, Pooling)), None)
    return {
        "parameters": round(sum(weights.numel() for weights in model.parameters()) / 1e6, 3),
        "dimension": model.get_embedding_dimension(),
        "max_length": model.max_seq_length,
        "pooling": pooling,
        "prompts": {side: prompt for side, prompt in model.prompts.items() if prompt},
    }
