"""The two pages of the desk, in Gradio."""

from pathlib import Path

import gradio as gr

from .markup import LATEX_DELIMITERS, attempt_html, load_attempts, to_markdown
from .picture import picture_html
from .session import DeskSession, Shown


# A tab keeps its name, its question and the typed text when it is reloaded, which Gradio does by itself when its
# server comes back. The browser keeps the person's name.
_REMEMBER = """(tab, author, promptId) => {
    tab = sessionStorage.getItem("pivottrace-tab") || Math.random().toString(36).slice(2);
    sessionStorage.setItem("pivottrace-tab", tab);
    const author_before = localStorage.getItem("pivottrace-author");
    return [tab, author_before || author, sessionStorage.getItem("pivottrace-prompt") || ""];
}"""
_KEEP_AUTHOR = """(author) => { localStorage.setItem("pivottrace-author", author); }"""
_KEEP_DRAFT = """(promptId, text) => {
    sessionStorage.setItem("pivottrace-draft", JSON.stringify([promptId, text]));
}"""
_RESTORE_DRAFT = """(promptId, text) => {
    const [draftId, draft] = JSON.parse(sessionStorage.getItem("pivottrace-draft") || "[]");
    return promptId && draftId === promptId ? draft : text;
}"""
_FOCUS = """(promptId) => {
    sessionStorage.setItem("pivottrace-prompt", promptId);
    setTimeout(() => document.querySelector("#answer textarea, #answer input")?.focus(), 50);
}"""
HEAD = """<script>
document.addEventListener("keydown", (event) => {
    const buttons = {s: "skip", b: "broken", z: "undo"};
    if (event.altKey && buttons[event.key.toLowerCase()]) {
        event.preventDefault();
        document.getElementById(buttons[event.key.toLowerCase()])?.click();
    }
});
</script>"""
CSS = """
#prompt { font-size: 1.15em; padding: 0.8em 0; }
#message { min-height: 1.6em; }
.note { color: #67727e; font-size: 0.9em; }
.attempt { white-space: pre-wrap; font-size: 0.9em; }
.attempt mark { background: #f9d7a0; border-bottom: 2px solid #c8453b; }
#picture img { max-width: 100%; margin-bottom: 1em; }
"""
# Gradio's own themes load their fonts from an external server.
THEME = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def build_page(session: DeskSession, author: str, show_attempts: bool) -> gr.Blocks:
    """Build the pages. `author` is the initial name of the person."""
    attempts = load_attempts(Path(session.ledger.path).with_name("attempts.parquet")) if show_attempts else {}

    def render(shown: Shown) -> list:
        query = shown.query
        text = "Nothing is left to answer." if query is None else to_markdown(query.prompt or "(no text)")
        values = [text, query.prompt_id if query else "", shown.draft, "", f"{shown.message}", session.progress()]
        if show_attempts:
            values.append(attempt_html(attempts.get(query.prompt_id)) if query else "")
        return values

    def preview(text: str) -> str:
        if not text.strip():
            return ""
        try:
            read = session.preview(text)
        except ValueError as error:
            return f"cannot be read: {to_markdown(str(error))}"
        return f"reads as {to_markdown(read)}"

    with gr.Blocks(title="PivotTrace desk", analytics_enabled=False) as page:
        gr.Navbar(main_page_name="Answer")
        tab = gr.Textbox(visible="hidden", elem_id="tab")
        prompt_id = gr.Textbox(visible="hidden", elem_id="prompt-id")
        with gr.Row():
            progress = gr.Markdown(elem_id="progress")
            name = gr.Textbox(author, label="Answering as", elem_id="author", scale=0, min_width=200)
        prompt = gr.Markdown(elem_id="prompt", latex_delimiters=LATEX_DELIMITERS)
        answer = gr.Textbox(
            label="Answer (a number, or a formula in LaTeX)", elem_id="answer", autofocus=True, max_lines=1
        )
        reading = gr.Markdown(elem_id="reading", latex_delimiters=LATEX_DELIMITERS)
        with gr.Row():
            record = gr.Button("Record  [Enter]", variant="primary", elem_id="record")
            skip = gr.Button("Skip  [Alt+S]", elem_id="skip")
            broken = gr.Button("Problem is broken  [Alt+B]", elem_id="broken")
            undo = gr.Button("Undo  [Alt+Z]", elem_id="undo")
        message = gr.Textbox(show_label=False, container=False, interactive=False, elem_id="message")
        shown_parts = [prompt, prompt_id, answer, reading, message, progress]
        if show_attempts:
            shown_parts.append(gr.HTML(elem_id="attempt"))

        def act(trigger, function, inputs: list) -> None:
            event = trigger(
                lambda *given: render(function(*given)), inputs, shown_parts, show_progress="hidden", queue=False
            )
            event.then(None, [prompt_id], None, js=_FOCUS)

        started = page.load(None, [tab, name, prompt_id], [tab, name, prompt_id], js=_REMEMBER).then(
            lambda owner, author, shown: render(session.next(owner, author, shown=shown)),
            [tab, name, prompt_id],
            shown_parts,
            show_progress="hidden",
        )
        restored = started.then(None, [prompt_id, answer], [answer], js=_RESTORE_DRAFT)
        restored.then(None, [prompt_id], None, js=_FOCUS)
        for trigger in (record.click, answer.submit):
            act(trigger, session.answer, [tab, name, prompt_id, answer])
        act(skip.click, session.skip, [tab, name, prompt_id])
        act(broken.click, session.mark_broken, [tab, name, prompt_id])
        act(undo.click, session.undo, [tab, name])
        answer.input(preview, [answer], [reading], show_progress="hidden", trigger_mode="always_last")
        answer.input(None, [prompt_id, answer], None, js=_KEEP_DRAFT)
        name.change(None, [name], None, js=_KEEP_AUTHOR)

    with page.route("Run", "/run"):
        gr.Navbar(main_page_name="Answer")
        picture = gr.HTML(elem_id="picture")
        page.load(lambda: picture_html(session.ledger), None, [picture])
        gr.Timer(15).tick(lambda: picture_html(session.ledger), None, [picture], show_progress="hidden")
    return page
