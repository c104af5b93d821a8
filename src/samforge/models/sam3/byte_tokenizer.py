"""A stand-in for CLIP's tokenizer where weights are random and phrases mean nothing anyway."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def byte_tokenizer(vocabulary: int) -> Tokenizer:
    """Make a tokenizer with one token a byte and CLIP's two special tokens at the end.

    CLIP's real vocabulary comes with the gated checkpoint. For trials of size and speed with random
    weights only the shape of the ids matters.

    Args:
        vocabulary: Size of the model's embedding table.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: vocabulary - 2]
    tokens = {letter: index for index, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # Fillers put the special tokens where the model expects them: at the end of the vocabulary.
    tokenizer.add_tokens([f"<|unused{index}|>" for index in range(len(tokens), vocabulary - 2)])
    tokenizer.add_special_tokens([BEGIN, END])
    begin, end = tokenizer.token_to_id(BEGIN), tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", special_tokens=[(BEGIN, begin), (END, end)]
    )
    return tokenizer
