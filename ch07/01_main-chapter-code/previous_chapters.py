"""What chapters 2 to 6 made, for lines that begin `from previous_chapters import`.

Support: readers with the book have such lines. In this course each name has one home,
from which our own files take it; none is defined here. Where chapters 5 and 6 use one
name, `calc_loss_batch`, it is chapter 5's; chapter 6's is in `gpt_class_finetune`.

>>> GPTModel.__module__, train_model_simple.__module__
('gpt', 'gpt_train')
"""

from dataloader import GPTDatasetV1, create_dataloader_v1
from gpt import (
    GELU,
    FeedForward,
    GPTModel,
    LayerNorm,
    TransformerBlock,
    generate_text_simple,
)
from gpt_class_finetune import (
    SpamDataset,
    calc_accuracy_loader,
    classify_review,
    plot_values,
    train_classifier_simple,
)
from gpt_download import download_and_load_gpt2, load_weights_into_gpt
from gpt_generate import generate
from gpt_train import (
    calc_loss_batch,
    calc_loss_loader,
    evaluate_model,
    generate_and_print_sample,
    plot_losses,
    text_to_token_ids,
    token_ids_to_text,
    train_model_simple,
)
from message_data import create_balanced_dataset, random_split
from multihead_attention import MultiHeadAttention
from safetensors_files import assign

__all__ = [
    "GELU",
    "FeedForward",
    "GPTDatasetV1",
    "GPTModel",
    "LayerNorm",
    "MultiHeadAttention",
    "SpamDataset",
    "TransformerBlock",
    "assign",
    "calc_accuracy_loader",
    "calc_loss_batch",
    "calc_loss_loader",
    "classify_review",
    "create_balanced_dataset",
    "create_dataloader_v1",
    "download_and_load_gpt2",
    "evaluate_model",
    "generate",
    "generate_and_print_sample",
    "generate_text_simple",
    "load_weights_into_gpt",
    "plot_losses",
    "plot_values",
    "random_split",
    "text_to_token_ids",
    "token_ids_to_text",
    "train_classifier_simple",
    "train_model_simple",
]
