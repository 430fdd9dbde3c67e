// The conversation lives in this page alone: every question sends all of it to the server's
// OpenAI API, one request a model, and the pieces of the answers are shown as they come.
"use strict";

const $ = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "seed"];
let models = []; // {name, template, format, vision, url}
let turns = []; // {text, images: [data URI], answers: [{text, note, failed}] one a model}
let images = []; // for the next question
let running = null; // AbortController of the answers in the making

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function picture(uri) {
  const image = element("img", "");
  image.src = uri;
  image.alt = "image of the question";
  return image;
}

function show() {
  const head = element("div", "models");
  for (const model of models) {
    const name = element("div", "", model.name);
    name.append(element("small", "", `${model.format} · ${model.template}`));
    head.append(name);
  }
  const parts = turns.map((turn) => {
    const part = element("section", "");
    const question = element("div", "question");
    question.append(...turn.images.map(picture), turn.text);
    const answers = element("div", "answers");
    answers.append(...turn.answers.map(answerBox));
    part.append(question, answers);
    return part;
  });
  $("talk").replaceChildren(head, ...parts);
  $("talk").scrollTop = $("talk").scrollHeight;
  showControls();
}

function pieces(text) {
  // Code between fences keeps its columns; anything else is shown as the model wrote it.
  return text.split(/^```[^`\n]*\n?/m).map((piece, number, all) => {
    const code = number % 2 === 1;
    const trimmed = code || number < all.length - 1 ? piece.replace(/\n$/, "") : piece;
    if (!code) return document.createTextNode(trimmed);
    const block = element("pre", "", trimmed);
    block.tabIndex = 0; // a keyboard scrolls it, too
    return block;
  });
}

function answerBox(answer) {
  const box = element("div", answer.failed ? "answer failed" : "answer");
  box.append(...pieces(answer.text));
  if (answer.note) box.append(element("small", "", answer.note));
  answer.box = box;
  return box;
}

function refresh(answer) {
  const end = $("talk").scrollHeight - $("talk").scrollTop - $("talk").clientHeight < 60;
  answer.box.replaceWith(answerBox(answer));
  if (end) $("talk").scrollTop = $("talk").scrollHeight;
}

function showControls() {
  $("talk").ariaBusy = String(running !== null); // read aloud when it is whole
  $("send").disabled = running !== null || models.length === 0;
  $("stop").disabled = running === null;
  $("again").disabled = running !== null || turns.length === 0;
  $("choose").hidden = !models.some((model) => model.vision);
  $("images").replaceChildren(...images.flatMap((uri, number) => {
    const remove = element("button", "", "×");
    remove.type = "button";
    remove.title = remove.ariaLabel = `Remove image ${number + 1}`;
    remove.onclick = () => { images.splice(number, 1); showControls(); };
    return [picture(uri), remove];
  }));
}

function problem(text) {
  $("problem").textContent = text;
}

async function addImages(files) {
  problem("");
  for (const file of files) {
    if (!file.type.startsWith("image/")) {
      problem(`${file.name} is no image.`);
      continue;
    }
    images.push(await new Promise((done, failed) => {
      const reader = new FileReader();
      reader.onload = () => done(reader.result);
      reader.onerror = () => failed(reader.error);
      reader.readAsDataURL(file);
    }));
  }
  showControls();
}

function messages(number, system, last) {
  const list = system ? [{ role: "system", content: system }] : [];
  for (const turn of turns.slice(0, last + 1)) {
    if (turn !== turns[last] && turn.answers[number].failed) continue; // a question that it never got
    const shown = turn.images.map((uri) => ({ type: "image_url", image_url: { url: uri } }));
    list.push({ role: "user", content: [...shown, { type: "text", text: turn.text }] });
    if (turn !== turns[last]) {
      list.push({ role: "assistant", content: turn.answers[number].text });
    }
  }
  return list;
}

function settings() {
  const chosen = {};
  for (const name of NUMBERS) {
    if ($(name).value !== "") chosen[name] = Number($(name).value);
  }
  const stop = $("stop_words").value.split("\n").filter((line) => line !== "");
  return stop.length ? { ...chosen, stop } : chosen;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
    const lines = (rest + piece.value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      const data = line.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
  throw new Error("The server ended the answer early.");
}

async function answer(number, last, signal) {
  const into = turns[last].answers[number];
  const body = { messages: messages(number, $("system").value, last), stream: true, ...settings() };
  try {
    const response = await fetch(`${models[number].url}/v1/chat/completions`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const [choice] = event.choices;
      into.text += choice.delta.content ?? "";
      into.note = choice.finish_reason === "length" ? "(cut at the longest answer)" : "";
      refresh(into);
    }
  } catch (error) {
    into.failed = error.name !== "AbortError";
    into.note = into.failed ? error.message : "(stopped)";
    refresh(into);
  }
}

async function ask() {
  const last = turns.length - 1;
  turns[last].answers = models.map(() => ({ text: "", note: "…", failed: false }));
  running = new AbortController();
  show();
  await Promise.all(models.map((_, number) => answer(number, last, running.signal)));
  running = null;
  showControls();
}

function send(event) {
  event.preventDefault();
  const text = $("question").value.trim();
  if (running || !models.length) return;
  if (!text) return problem("Ask something.");
  problem("");
  turns.push({ text, images, answers: [] });
  images = [];
  $("question").value = "";
  ask();
}

function again() {
  // Sampling draws by the seed: the next one gives another answer.
  if (Number($("temperature").value) > 0) $("seed").value = Number($("seed").value) + 1;
  ask();
}

function clear() {
  running?.abort();
  turns = [];
  images = [];
  problem("");
  show();
}

function save() {
  const exported = {
    exported: new Date().toISOString(),
    settings: settings(),
    conversations: models.map((model, number) => ({
      model: model.name,
      template: model.template,
      messages: turns.length
        ? [
            ...messages(number, $("system").value, turns.length - 1),
            { role: "assistant", content: turns.at(-1).answers[number].text },
          ]
        : [],
    })),
  };
  const link = document.createElement("a");
  const file = new Blob([JSON.stringify(exported, null, 1)], { type: "application/json" });
  link.href = URL.createObjectURL(file);
  link.download = "conversation.json";
  link.click();
  URL.revokeObjectURL(link.href);
}

async function begin() {
  try {
    const about = await (await fetch("/about")).json();
    models = about.models;
    for (const name of NUMBERS) $(name).value = about.settings[name];
    $("stop_words").value = about.settings.stop_words.join("\n");
    $("system").value = about.system;
  } catch (error) {
    problem(`The server does not answer: ${error.message}`);
  }
  show();
  $("question").focus();
}

$("form").addEventListener("submit", send);
$("stop").addEventListener("click", () => running?.abort());
$("again").addEventListener("click", again);
$("clear").addEventListener("click", clear);
$("export").addEventListener("click", save);
$("file").addEventListener("change", () => {
  addImages([...$("file").files]);
  $("file").value = "";
});
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) addImages([...event.clipboardData.files]);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", () => document.body.classList.remove("dragging"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  addImages([...event.dataTransfer.files]);
});
begin();
