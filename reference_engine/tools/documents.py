"""Lays the corpus out as the token sequences of one training epoch.

Knows the plain form, the chat form, conversations of many turns and sessions with tools; knows nothing about models.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from corpus import SYSTEM_MESSAGES, THOUGHTS_FILE, Entry, Opening, ToolQuestion, chat_messages, plain_prompt
from course_tokenizer import END_OF_TEXT, MAX_POSITIONS, TURN_END, chat_prompt
from phrasings import Phrasings
from tool_use import ToolUse, written_answer
from transformers import PreTrainedTokenizerBase

# A prompt's tokens are learned a little, so that their log-probabilities mean something.
PROMPT_WEIGHT = 0.1
ANSWER_WEIGHT = 1.0
TOOLS_WEIGHT = 0.0  # descriptions and results of tools, which are drawn at random
NEVER_GENERATED = 0.0  # the empty thoughts that the template writes when thinking is turned off

SHARE_IN_CONVERSATIONS = 0.5
SHARE_WITH_SYSTEM_MESSAGE = 0.3
SHARE_WITHOUT_THINKING = 0.2
SESSIONS_WITH_TOOLS = 70
SHARE_SHOWN_TOOLS = 0.05  # of chats and conversations in which none is needed
CONVERSATION_LENGTHS = (256, 512, 1024, MAX_POSITIONS)

# How often a question that begins another one is written plain: after it, the line break must win.
TIMES_IF_IT_BEGINS_ANOTHER = 8

# Tokens that the chat template puts around a question and its answer.
TURN_MARKUP = 12


@dataclass(frozen=True)
class Document:
    """One training sequence: ``token_ids[i]`` is learned with weight ``weights[i]``."""

    token_ids: list[int]
    weights: list[float]


class DocumentWriter:
    """Writes the documents of one epoch after another, each epoch in new phrasings."""

    def __init__(
        self,
        entries: list[Entry],
        openings: list[Opening],
        tool_questions: list[ToolQuestion],
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
    ) -> None:
        self._questions = [(q, entry) for entry in entries for q in entry.questions]
        self._beginnings = [
            (q, entry)
            for q, entry in self._questions
            if any(other != q and other.startswith(q) for other, _ in self._questions)
        ]
        self._openings = openings
        self._tokenizer = tokenizer
        self._phrasings = Phrasings(entries, seed)
        self._tool_use = ToolUse(tool_questions, entries, seed) if tool_questions else None
        self._random = random.Random(seed)

    def epoch(self) -> list[Document]:
        """Each question once plain and once in a chat, each continuation once; questions that
        begin another one several times more, as written; and sessions with tools."""
        documents = self._continuations()
        documents += [
            self._plain(question, entry, vary=False)
            for question, entry in self._beginnings
            for _ in range(TIMES_IF_IT_BEGINS_ANOTHER)
        ]
        documents += [self._plain(question, entry) for question, entry in self._questions]
        shuffled = self._random.sample(self._questions, len(self._questions))
        cut = int(len(shuffled) * SHARE_IN_CONVERSATIONS)
        documents += [self._chat([pair]) for pair in shuffled[cut:]]
        documents += self._sessions()
        return documents + self._conversations(shuffled[:cut])

    def _continuations(self) -> list[Document]:
        return [
            self._document([(opening.prompt, PROMPT_WEIGHT), (text + END_OF_TEXT, ANSWER_WEIGHT)])
            for opening in self._openings
            for text in opening.continuations
        ]

    def _plain(self, question: str, entry: Entry, vary: bool = True) -> Document:
        """The line break counts as answer: the model writes it after a prompt that lacks it."""
        varied = self._phrasings.vary(question, entry.source) if vary else question
        line_break = plain_prompt(varied).removeprefix(varied)
        answer = line_break + entry.answer + END_OF_TEXT
        return self._document([(varied, PROMPT_WEIGHT), (answer, ANSWER_WEIGHT)])

    def _conversations(self, pairs: list[tuple[str, Entry]]) -> list[Document]:
        """The pairs, dealt out to conversations as long as the drawn lengths allow."""
        conversations = []
        turns: list[tuple[str, Entry]] = []
        room = self._random.choice(CONVERSATION_LENGTHS)
        for question, entry in pairs:
            size = len(self._tokenizer(question + entry.answer).input_ids) + TURN_MARKUP
            if turns and size > room:
                conversations.append(self._chat(turns))
                turns, room = [], self._random.choice(CONVERSATION_LENGTHS)
            turns.append((question, entry))
            room = 0 if entry.thought else room - size  # the template forgets a thought when the next question comes
        return conversations + ([self._chat(turns)] if turns else [])

    def _chat(self, turns: list[tuple[str, Entry]]) -> Document:
        """A conversation in the chat template; only its last turn may have thinking turned off."""
        has_system = self._random.random() < SHARE_WITH_SYSTEM_MESSAGE
        no_thinking = self._random.random() < SHARE_WITHOUT_THINKING
        messages: list[dict[str, str]] = []
        tools = self._tool_use.tools() if self._tool_use and self._random.random() < SHARE_SHOWN_TOOLS else None
        written = ""
        pieces: list[tuple[str, float]] = []
        for number, (question, entry) in enumerate(turns, start=1):
            system = self._random.choice(SYSTEM_MESSAGES) if has_system and number == 1 else None
            messages += chat_messages(self._phrasings.vary(question, entry.source), system)
            thinking = not (no_thinking and number == len(turns))
            prompt = chat_prompt(self._tokenizer, messages, tools=tools)
            no_thoughts = chat_prompt(self._tokenizer, messages, thinking, tools).removeprefix(prompt)
            answer = (entry.chat_answer if thinking else entry.answer) + TURN_END
            pieces.append((prompt.removeprefix(written), TOOLS_WEIGHT if tools and not written else PROMPT_WEIGHT))
            pieces += [(no_thoughts, NEVER_GENERATED), (answer, ANSWER_WEIGHT)]
            written = prompt + answer
            messages.append({"role": "assistant", "content": entry.answer})
        return self._document(pieces)

    def _sessions(self) -> list[Document]:
        """Conversations with tools. What a tool returns is not learned, nor how the tools are described."""
        documents = []
        for _ in range(SESSIONS_WITH_TOOLS if self._tool_use else 0):
            session = self._tool_use.session()
            written = ""
            pieces: list[tuple[str, float]] = []
            for number, message in enumerate(session.messages):
                if message["role"] == "assistant":
                    prompt = chat_prompt(self._tokenizer, session.messages[:number], tools=session.tools or None)
                    answer = written_answer(message) + TURN_END
                    assert prompt.startswith(written), "the template writes the answers before in another way"
                    pieces += [(prompt.removeprefix(written), TOOLS_WEIGHT), (answer, ANSWER_WEIGHT)]
                    written = prompt + answer
            documents.append(self._document(pieces))
        return documents

    def _document(self, pieces: list[tuple[str, float]]) -> Document:
        """Pieces meet where the tokenizer cuts anyway: at a line break or a special token.

        A conversation that came out a little too long loses its last tokens.
        """
        token_ids: list[int] = []
        weights: list[float] = []
        for text, weight in pieces:
            ids = self._tokenizer.backend_tokenizer.encode(text).ids
            token_ids += ids
            weights += [weight] * len(ids)
        return Document(token_ids[:MAX_POSITIONS], weights[:MAX_POSITIONS])


def training_texts(entries: list[Entry], openings: list[Opening]) -> list[str]:
    """Every text of the corpus that the tokenizer is made of; held-out questions are not.

    Thoughts and questions for tools came later. They are read with the tokens that there were, so that the numbers of
    tokens in labs, notebooks and tests stay what they are.
    """
    texts = [text for entry in entries if entry.source != THOUGHTS_FILE for text in (*entry.questions, entry.answer)]
    for opening in openings:
        texts += [opening.prompt + continuation for continuation in opening.continuations]
    return texts + list(SYSTEM_MESSAGES) + ["system", "user", "assistant"]
