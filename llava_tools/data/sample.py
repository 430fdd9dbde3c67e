"""What a training row is, and the reasons why a row is skipped or mended (never in silence)."""

from __future__ import annotations

from dataclasses import dataclass

# A row with one of these is left out, counted and listed in `skipped.jsonl`.
SKIP_REASONS = {
    "not_an_object": "the row is not a JSON object",
    "no_conversations": "`conversations` is missing, empty or not a list",
    "bad_turn": "a turn is not an object with the texts `from` and `value`",
    "no_messages": "`messages` is missing, empty or not a list",
    "bad_message": "a message without a role, or whose content is no text",
    "missing_text": "a key that the format needs is missing or no text",
    "no_markers": "no `### Human:` in `text`",
    "unknown_role": "`from` is no known role",
    "tool_turn": "a turn of a tool or a function call, which no template here expresses",
    "weighted_answer": "an answer with a `weight` other than 1: answers weigh alike here",
    "remote_image": "an image that is an address or inline data, not a local file",
    "misplaced_system": "a system turn that is not the first one",
    "bad_image_field": "`image` is neither a path nor a list of paths",
    "image_without_token": "an image, but no `<image>` in the user's turns",
    "token_without_image": "`<image>` in the user's turns, but no image",
    "image_count": "not as many `<image>` as images",
    "misplaced_image_token": "`<image>` in an answer or in the system text",
    "no_answer": "no answer to train on",
    "template_refused": "the tokenizer's chat template does not take the dialogue",
    "fastchat_masks": "FastChat would mask the whole row (fastchat_compat)",
    "several_captions": "more than one answer, which the template `plain` cannot express",
    "beyond_context": "the row, its images included, is longer than the model's context",
    "image_cut": "an image lies beyond max_length",
    "nothing_supervised": "nothing to train on is left within max_length",
    "image_without_tower": "an image row in a run without a vision tower",
    "outside_folder": "the image lies outside image_folder",
    "missing_image": "the image file is not there",
    "broken_image": "the image file cannot be read",
    "labels_misaligned": "labels that are not the ids at their places",
    "image_lost": "not as many images in the tokens as the row names",
    "image_trained": "an image is trained on",
    "bos_count": "not one BOS for each sequence",
    "control_token": "a control token that the template did not put there",
    "end_not_trained": "an answer whose end is not trained on",
    "mask_not_answers": "what is trained on is not the answers",
    "answer_lost": "an answer is cut off, and not because of max_length",
    "question_lost": "a question or system text is not in the tokens as it stands",
    "beyond_max_tokens": "longer than max_tokens of its data set",
    "malformed_json": "no valid JSON; training stops here with an error",
}

# What the user asked to leave out: such rows do not count as faults.
ASKED_FOR = frozenset({"beyond_max_tokens", "fastchat_masks"})

# A row with one of these is trained on; it is counted only.
MENDED_REASONS = {
    "answer_first": "answers before the first question were dropped",
    "questions_merged": "consecutive questions were joined",
    "answer_repeated": "an answer behind an answer, without a question of its own",
    "empty_question": "an empty question",
    "second_system": "a `system` beside a system turn, which goes before it, was not read",
    "empty_pair": "a question with an empty answer was dropped",
    "question_unanswered": "a last question without an answer was dropped",
    "control_text_escaped": "a control token that a text spells out was encoded as plain text",
    "image_token_added": "`<image>` was put in front of the first question",
    "answer_cut": "the last answer is cut off at max_length",
}

# What only an audit of all rows looks for; these rows are trained on.
AUDIT_REASONS = {
    "empty_answer": "an answer without text",
    "duplicate_key": "a key twice in one object of the row; the last one counts",
    "text_changed": "a text that the tokenizer does not give back as it was",
    "duplicate_id": "an id that an earlier row of the file has",
    "duplicate_row": "the turns and images of an earlier row of the file",
}


@dataclass(frozen=True)
class Turn:
    """One message: `role` is system, user or assistant."""

    role: str
    text: str


@dataclass(frozen=True)
class Sample:
    """One row: an optional system turn, then user and assistant in turn, ending with an answer.

    Each `<image>` in the user's turns stands for the next path of `images`. `origin` says where
    the row was written ("train.json, row 12"); `mended` holds keys of MENDED_REASONS.
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[str, ...]
    origin: str
    mended: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skip:
    """A row that is left out: `reason` is a key of SKIP_REASONS, `detail` says what was found."""

    origin: str
    id: str
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.origin}: {SKIP_REASONS[self.reason]} ({self.detail})"
