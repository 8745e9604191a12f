"""Chat templates: where files keep them, the jinja they are written in, and messages as they see them.

Everything is as in transformers, so that the same template gives the same text; an error during rendering
becomes the caller's `InvalidParametersError`. Knows nothing of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, UndefinedError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from nano_qwen3_serving.arguments import invalid, refuse_unknown
from nano_qwen3_serving.exceptions import InvalidParametersError, ModelLoadError, shown
from nano_qwen3_serving.side_files import Fields, read_object, read_text

Templates = str | dict[str, str] | None
"""One template, several by name, or none: jinja source."""

ROLES = ("system", "user", "assistant", "tool")
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of a message's thoughts; templates read the first
MARK = "CONTINUE_FINAL_MESSAGE_TAG "  # transformers' own; its space shows whether a template trims


# -- files --


def read_templates(folder: Path, settings: Fields) -> Templates:
    """A checkpoint's templates: its files of jinja, else what `tokenizer_config.json` says, else `chat_template.json`.

    Raises:
        ModelLoadError: a template cannot be read, or is no jinja.
    """
    files = {path.stem: path for path in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    if (folder / "chat_template.jinja").exists():
        files["default"] = folder / "chat_template.jinja"
    if files:
        sources = {name: parsed(path, read_text(path)) for name, path in files.items()}
        return sources["default"] if list(sources) == ["default"] else sources
    older = folder / "chat_template.json"
    if settings.get("chat_template") is None and older.exists():
        settings = read_object(older)
    return templates_in(settings)


def templates_in(settings: Fields) -> Templates:
    """The field `chat_template`: a template, or several, each with its name."""
    value = settings.get("chat_template")
    if value is None or isinstance(value, str):
        return value if value is None else parsed(settings.file, value)
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {entry.get("name"): entry.get("template") for entry in value}
    if not isinstance(value, dict) or not all(isinstance(v, str) for pair in value.items() for v in pair):
        raise settings.wrong("chat_template", 'a template, or a list of {"name": "…", "template": "…"}')
    return {name: parsed(settings.file, source) for name, source in value.items()}


def parsed(file: Path, source: str) -> str:
    """The source, if it is jinja."""
    try:
        compiled(source)
    except (TemplateSyntaxError, RecursionError) as error:
        where = f"line {error.lineno}: " if isinstance(error, TemplateSyntaxError) else ""
        raise ModelLoadError(
            f"{file} has a chat_template that is not valid jinja ({where}{error}); copy or download the file again, "
            "or remove the template and give chat_template=") from error
    return source


def choose(templates: Templates, asked: str | None, tools: Any) -> str:
    """The template to use: the caller's, or the one of that name, or the checkpoint's for tools, or its usual one."""
    named = templates if isinstance(templates, dict) else {}
    if asked is not None:
        if not isinstance(asked, str):
            raise invalid("chat_template", asked, "jinja source, the name of one of the checkpoint's templates, or None")
        return named.get(asked, asked)
    if isinstance(templates, str):
        return templates
    if named:
        source = named.get("tool_use") if tools is not None and "tool_use" in named else named.get("default")
        if source is None:
            raise invalid("chat_template", None, f"one of {', '.join(sorted(named))}: no template here is the default")
        return source
    raise InvalidParametersError(
        "this checkpoint has no chat template; use generate(), or give chat_template=", parameter="chat_template")


# -- jinja --


def render(
    source: str, messages: list[dict[str, Any]], names: Mapping[str, str], tools: Any, documents: Any,
    add_generation_prompt: bool, switches: Mapping[str, Any],
) -> str:
    """The text that a template makes of messages.

    Args:
        source: jinja.
        messages: checked.
        names: `eos_token` and the like.
        tools, documents: dicts, for templates that know them; or None.
        add_generation_prompt: whether the answer begins.
        switches: the template's own.

    Raises:
        InvalidParametersError: the template refuses the messages, or fails on them.
        UnknownArgumentError: the template never looks at one of the switches.
    """
    variables = {**names, **switches, "tools": checked_objects("tools", tools),
             "documents": checked_objects("documents", documents), "add_generation_prompt": add_generation_prompt}
    try:
        if switches:
            refuse_unknown("the chat template", sorted(looked_at(source) - {"messages", "tools", "documents"}), switches)
        return rendered(compiled(source), messages, variables)
    except InvalidParametersError:
        raise
    except Exception as error:  # a template is a program: it may fail in any way
        what = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
        raise InvalidParametersError(
            f"the chat template refuses these messages: {what}", parameter="messages", value=messages) from error


def rendered(template: Template, messages: list[dict[str, Any]], variables: Mapping[str, Any]) -> str:
    """The template's text. Tool calls often come without a content: if a template needs the key, the content is
    empty, as in vLLM; if not, the key is missing, as in transformers."""
    try:
        return template.render({**variables, "messages": messages})
    except UndefinedError:
        if all("content" in message for message in messages):
            raise
        return template.render({**variables, "messages": [{"content": "", **message} for message in messages]})


def looked_at(source: str) -> set[str]:
    """Names that a template looks at and does not set."""
    return meta.find_undeclared_variables(environment().parse(source)) - set(environment().globals)


@lru_cache(maxsize=32)
def compiled(source: str) -> Template:
    """The template, ready to render."""
    return environment().from_string(source)


@cache
def environment() -> ImmutableSandboxedEnvironment:
    """Jinja as Hugging Face's templates expect it, in a sandbox."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
    made.filters["tojson"] = to_json
    made.globals |= {"raise_exception": raise_template_error, "strftime_now": strftime_now, "dict": TemplateDict(),
                     "namespace": TemplateNamespace}
    return made


class GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks what the assistant says, for trainers; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 (as jinja declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        """The body, in a scope of its own as in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_render_body"), [], [], body).set_lineno(line)

    def _render_body(self, caller: Any) -> str:
        return caller()


class TemplateDict:
    """`dict(...)` for templates, without the way into Python that the type itself would be."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """A new dict."""
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """A new dict of equal values."""
        return dict.fromkeys(*args, **kwargs)


class TemplateNamespace(Namespace):
    """`namespace(...)` for templates, without attributes that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be an attribute's name
        self, attributes = args[0], dict(*args[1:], **kwargs)
        for name in attributes:
            refuse_private(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        refuse_private(name)
        super().__setitem__(name, value)


def refuse_private(name: Any) -> None:
    """Raises a `SecurityError` for a name that begins with an underscore."""
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have the attribute {name!r}")


def to_json(
    value: Any, ensure_ascii: bool = False, indent: int | str | None = None,
    separators: tuple[str, str] | None = None, sort_keys: bool = False,
) -> str:
    """The filter `tojson`; jinja's own escapes characters for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime_now(format: str) -> str:
    """The date and time, for templates that print it."""
    return datetime.now().strftime(format)


def raise_template_error(message: str) -> None:
    """What a template calls to refuse its input."""
    raise TemplateError(message)


# -- messages --


def checked_objects(parameter: str, objects: Any) -> list[dict[str, Any]] | None:
    """Tools or documents: None or a list of dicts."""
    if objects is None:
        return None
    if not isinstance(objects, (list, tuple)) or not all(isinstance(item, dict) for item in objects):
        raise invalid(parameter, objects, "a list of dicts, or None")
    return list(objects)


def checked_messages(messages: Any) -> list[dict[str, Any]]:
    """The messages as templates see them, if each is a dict with a known role and, but for the assistant's calls, a text.

    A text may be given in parts, as OpenAI's clients do; templates see it as one string. Keys whose value is None
    are left out, and thoughts are found under any of their names, both as in transformers.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise InvalidParametersError(
            f"messages must be a non-empty list of dicts with 'role' and 'content', got {shown(messages)}",
            parameter="messages", value=messages)
    return [checked_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def checked_message(message: Any, where: str) -> dict[str, Any]:
    """One of the messages; `where` is its place among them."""
    role = message.get("role") if isinstance(message, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list) and content:
        content = joined_parts(content, f"{where}.content")
        message = {**message, "content": content}
    if role not in ROLES or not (isinstance(content, str) or (role == "assistant" and message.get("tool_calls"))):
        raise InvalidParametersError(
            f"{where} must be a dict with a 'role' of {', '.join(ROLES)} and a 'content', a string or a list "
            f"of text parts, got {shown(message)}", parameter=where, value=message)
    message = {key: value for key, value in message.items() if value is not None}
    thoughts = next((message[key] for key in REASONING if key in message), None)
    return message if thoughts is None else {"thinking": thoughts, **message, "reasoning_content": thoughts}


def joined_parts(parts: Sequence[Any], where: str) -> str:
    """The text of `[{"type": "text", "text": "…"}, …]`, a line for each part, as vLLM joins them.

    Raises:
        InvalidParametersError: a part is no text; `where` is the list's place in the messages.
    """
    for j, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            what = f"a part of type {kind!r}, and only text is served" if kind not in ("text", None) else f"{shown(part)}"
            raise InvalidParametersError(
                f"{where}[{j}] must be {{'type': 'text', 'text': '…'}}, got {what}",
                parameter=f"{where}[{j}]", value=part)
    return "\n".join(part["text"] for part in parts)


def marked(message: dict[str, Any]) -> dict[str, Any]:
    """The message with `MARK` at the end of its text: whatever a template adds stands after it."""
    if not isinstance(message.get("content"), str):
        raise InvalidParametersError(
            f"continue_final_message=True needs a final message with a text, got {shown(message)}",
            parameter="continue_final_message", value=message)
    return {**message, "content": message["content"] + MARK}


def cut_at_mark(text: str) -> str:
    """`text` up to the mark; if the template trimmed the message, the mark lost its spaces, and the text loses its last ones."""
    start = text.rfind(MARK.strip())
    if start < 0:
        raise InvalidParametersError(
            "the chat template leaves the final message out, so it cannot be continued",
            parameter="continue_final_message", value=True)
    return text[:start] if text.startswith(MARK, start) else text[:start].rstrip()
