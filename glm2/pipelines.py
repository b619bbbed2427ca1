"""The guide's pipeline: texts in, texts out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Union

from glm2.auto import AutoModel, AutoTokenizer
from glm2.errors import UsageError
from glm2.tokenizer import Tokenizer

if TYPE_CHECKING:
    from glm2.model import Glm2

TASK = "text_generation"


class TextGenerationPipeline:
    """Continues texts with one model.

    >>> pipeline = TextGenerationPipeline(model="glm2_6b", max_length=2048)  # doctest: +SKIP
    >>> pipeline("你好")                                                      # doctest: +SKIP
    [{'text_generation_text': ['你好，我是 …']}]

    ``model`` is a name (see ``glm2.auto``) or a network, which then needs its ``tokenizer``;
    ``batch_size`` texts are continued side by side; ``options`` are those of ``Glm2.generate``.
    """

    def __init__(
        self,
        model: Union[str, Glm2],
        tokenizer: Optional[Tokenizer] = None,
        *,
        batch_size: int = 1,
        **options: Any,
    ) -> None:
        if tokenizer is None:
            if not isinstance(model, str):
                raise UsageError(
                    "a pipeline of a network needs its tokenizer",
                    hint="give tokenizer=AutoTokenizer.from_pretrained(...)",
                )
            tokenizer = AutoTokenizer.from_pretrained(model)
        self.tokenizer = tokenizer
        self.model = AutoModel.from_pretrained(model) if isinstance(model, str) else model
        self.batch_size, self.options = batch_size, options

    def __call__(
        self, texts: Union[str, Sequence[str]], **options: Any
    ) -> List[Dict[str, List[str]]]:
        """Each text with its continuation; ``options`` go before those of the pipeline."""
        prompts = [self.tokenizer.encode(t) for t in ([texts] if isinstance(texts, str) else texts)]
        found: List[Dict[str, List[str]]] = []
        for first in range(0, len(prompts), self.batch_size):
            group = prompts[first : first + self.batch_size]
            rows = self.model.generate(group, **{**self.options, **options})
            found += [{"text_generation_text": [self.tokenizer.decode(row)]} for row in rows]
        return found


def pipeline(
    task: str = TASK,
    model: Union[str, Glm2] = "glm2_6b",
    tokenizer: Optional[Tokenizer] = None,
    **options: Any,
) -> TextGenerationPipeline:
    """The pipeline of a task; see ``TextGenerationPipeline``."""
    require_task(task)
    return TextGenerationPipeline(model, tokenizer, **options)


def require_task(task: str) -> None:
    if task != TASK:
        raise UsageError(f"there is no task {task!r}", hint=f"glm2 has {TASK}")
