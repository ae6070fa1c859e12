"""Configuration of `EncoderClassifier`, apart from the model itself, which takes longer to import."""

from transformers import AutoConfig, PretrainedConfig

ENCODER_CLASSIFIER = "encoder_classifier"


class EncoderClassifierConfig(PretrainedConfig):
    """Named as in BERT's configuration. The defaults give the model of IMDB's scaling study: 11 million parameters."""

    model_type = ENCODER_CLASSIFIER

    vocab_size: int = 30522
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    hidden_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    pad_token_id: int = 0


AutoConfig.register(ENCODER_CLASSIFIER, EncoderClassifierConfig)
