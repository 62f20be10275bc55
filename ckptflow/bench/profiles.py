"""How large the state of a well-known model is: parameters x bytes of each x (itself and the optimizer's slots).

Sizes alone: what is measured are tensors of 16 MiB, whatever the layers are. The authors give these parameters:

- ResNet-50: 25.6 M, keras.io/api/applications
- BERT: 110 M and 340 M, Devlin et al. 2018, arXiv 1810.04805, section 3
- ViT-B/16: 86 M, Dosovitskiy et al. 2020, arXiv 2010.11929, table 1
- GPT-2: 124 M and 1,558 M, github.com/openai/gpt-2 (models 124M and 1558M)
- T5-base: 220 M, Raffel et al. 2019, arXiv 1910.10683, section 3.7
- Gemma-2B: 2,506 M with its embeddings, arXiv 2403.08295, table 2
- Llama-3-8B: 8.03 B, arXiv 2407.21783 and Meta's model card
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Profile:
    """One model as it is trained: a slot is one more value of the optimizer for each parameter."""

    parameters: int
    dtype: str
    dtype_bytes: int
    slots: int
    optimizer: str

    @property
    def size_bytes(self) -> int:
        return self.parameters * self.dtype_bytes * (1 + self.slots)

    def __str__(self) -> str:
        return f"{self.parameters / 1e6:,.0f} M parameters, {self.dtype}, {self.optimizer}"


def _adam(parameters: int, dtype: str = "float32", dtype_bytes: int = 4) -> Profile:
    return Profile(parameters, dtype, dtype_bytes, 2, "Adam")


PROFILES = {
    "resnet-50": Profile(25_600_000, "float32", 4, 1, "SGD with momentum"),
    "vit-b16": _adam(86_000_000),
    "bert-base": _adam(110_000_000),
    "gpt-2": _adam(124_000_000),
    "t5-base": _adam(220_000_000),
    "bert-large": _adam(340_000_000),
    "gpt-2-xl": _adam(1_558_000_000),
    "gemma-2b": _adam(2_506_000_000, "bfloat16", 2),
    "llama-3-8b": _adam(8_030_000_000, "bfloat16", 2),
}
