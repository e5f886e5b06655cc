"""What of a response is its answer: the text that stands outside its reasoning."""

TAGS = _OPEN, _CLOSE = "<think>", "</think>"


def answer_of(response: str) -> str:
    """The response without its reasoning, for graders and demonstrations.

    Some chat templates open the reasoning themselves, so the response holds only its
    end: what comes before a lone `</think>` is reasoning too. So is all that follows a
    `<think>` that is never closed, as where the length limit cut the response off.
    """
    kept = ""
    while _CLOSE in response:
        reasoning, _, response = response.partition(_CLOSE)
        answer, opened, _ = reasoning.partition(_OPEN)
        kept = kept + answer if opened else ""
        response = response.lstrip()
    return kept + response.partition(_OPEN)[0]


def opening(prompt: str) -> str:
    """The tag that opens the reasoning at the end of a prompt; empty if none does."""
    return _OPEN if prompt.rstrip().endswith(_OPEN) else ""
