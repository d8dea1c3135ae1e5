"use strict";
const state = JSON.parse(document.getElementById("state").textContent);
const at = id => document.getElementById(id);
const { items, classes, saves, separator } = state; // separator of several classes, or null where each has one
const MANY = 30, AHEAD = 3, SMALL = 96;
const KEYS = [..."123456789abcdefghijklmopqrtvwxyz"]; // without s, n and u, which have a meaning of their own
const store = `sft-lightning labels ${state.key}`;

let answers = state.answers; // by the number of the example: [label, status]
if (!saves) try { answers = JSON.parse(localStorage.getItem(store)) || answers; } catch { }
const past = items.map((_, k) => k).filter(k => answers[k]).map(k => [k, null]); // what undo takes back, the last at the end
let current = 0, chosen = new Set(), shown = [], pending = Promise.resolve();

function report(text) { at("problem").textContent = text; at("problem").hidden = !text; }

function save(k) {
  if (!saves) {
    try { localStorage.setItem(store, JSON.stringify(answers)); }
    catch { report("This browser keeps no answers: download the labels before you close the page."); }
    return;
  }
  const body = JSON.stringify({ number: k, answer: answers[k] || null });
  const headers = { "Content-Type": "application/json" };
  pending = pending.then(() => fetch("answer", { method: "POST", headers, body })).then(async response => {
    if (!response.ok) throw new Error(await response.text());
  }).catch(error => report(`Not saved: ${error.message}. Start the command again and open its new address.`));
}

function answer(label, status, said) {
  if (current >= items.length) return;
  const k = current;
  past.push([k, answers[k] || null]);
  answers[k] = [label, status];
  save(k);
  at("last").textContent = `${items[k].id}: ${said || label}`;
  at("filter").value = "";
  next();
}

function split(label) { // the classes that it names
  const names = label.split(separator).map(one => one.trim());
  return new Set(classes.filter(name => names.includes(name)));
}

function choose(name) {
  if (separator === null) return answer(name, "");
  chosen.delete(name) || chosen.add(name);
  list();
}

function finish() { // the separator alone says that no class fits
  const label = classes.filter(name => chosen.has(name)).join(separator);
  answer(label || separator, "", label || "none of the classes");
}

function undo() {
  const last = past.pop();
  if (!last) return;
  const [k, before] = last;
  if (before) answers[k] = before; else delete answers[k];
  save(k);
  at("last").textContent = `${items[k].id}: undone`;
  current = k;
  show();
}

function next() {
  current = items.findIndex((_, k) => k > current && !answers[k]);
  if (current < 0) current = items.findIndex((_, k) => !answers[k]);
  if (current < 0) current = items.length;
  show();
}

function list() {
  const word = at("filter").value.trim().toLowerCase();
  shown = classes.filter(name => name.toLowerCase().includes(word));
  const suggestion = current < items.length ? items[current].suggestion : "";
  const many = classes.length > MANY;
  at("classes").replaceChildren(...shown.map((name, k) => {
    const button = document.createElement("button"), key = many && k > 8 ? "" : KEYS[k];
    if (key) {
      const hint = document.createElement("kbd");
      hint.textContent = key;
      hint.setAttribute("aria-hidden", "true");
      button.append(hint, " ");
      button.setAttribute("aria-keyshortcuts", key);
    }
    button.append(name);
    button.classList.toggle("suggested", separator === null ? name === suggestion : split(suggestion).has(name));
    if (separator !== null) button.setAttribute("aria-pressed", chosen.has(name));
    button.disabled = current >= items.length;
    button.onclick = () => choose(name);
    return button;
  }));
}

function show() {
  const done = items.filter((_, k) => answers[k]);
  const count = status => Object.values(answers).filter(one => one[1] === status).length;
  at("where").textContent = `${done.length} of ${items.length} · ${count("")} labeled, ${count("unsure")} not sure, ` +
    `${count("skip")} skipped · ${state.source}`;
  at("progress").max = items.length;
  at("progress").value = done.length;
  const item = items[current], figure = at("example");
  for (const id of ["skip", "unsure", "done"]) at(id).disabled = !item;
  if (separator !== null) chosen = item ? split(answers[current]?.[0] || item.suggestion) : new Set();
  at("undo").disabled = !past.length;
  at("suggestion").hidden = !item || !item.suggestion;
  if (!item) {
    const end = document.createElement("p");
    end.textContent = saves ? `All ${items.length} are answered; the labels are in ${state.file}.`
      : `All ${items.length} are answered: download the labels.`;
    figure.replaceChildren(end);
  } else {
    at("suggestion").textContent = `Suggested: ${item.suggestion} (Enter confirms)`;
    const caption = document.createElement("figcaption");
    caption.textContent = item.id;
    let example;
    if (item.text !== undefined) {
      example = document.createElement("blockquote");
      example.dir = "auto"; // right to left where the text begins so
      example.textContent = item.text;
    } else {
      example = document.createElement("img");
      example.alt = `Example ${current + 1} of ${items.length}: ${item.id}`;
      example.onload = () => example.classList.toggle("small", example.naturalWidth <= SMALL);
      example.src = item.image;
    }
    const parts = [example, caption];
    if (item.clip) {
      const player = document.createElement("audio");
      player.controls = player.autoplay = true;
      player.src = item.clip;
      player.setAttribute("aria-label", `Play ${item.id}`);
      parts.splice(1, 0, player);
    }
    figure.replaceChildren(...parts);
    for (const later of items.slice(current + 1, current + 1 + AHEAD)) if (later.image) new Image().src = later.image;
  }
  list();
}

function protect(text) { // as sft_lightning/utils/spreadsheet.py does
  const runs = /^'*(?:\s*[=+\-@\uff1d\uff0b\uff0d\uff20][^]|[\t\r\n])/.test(text);
  const number = /^[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|inf|nan)$/.test(text);
  return runs && !number ? `'${text}` : text;
}

function format() {
  const cell = text => /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  const rows = items.map((item, k) => [item.id, ...(answers[k] || [])]).filter(row => row.length > 1);
  return [["id", "label", "status"], ...rows].map(row => row.map(text => cell(protect(text))).join(",") + "\n").join("");
}

at("skip").onclick = () => answer("", "skip", "skipped");
at("unsure").onclick = () => answer("", "unsure", "not sure");
at("undo").onclick = undo;
at("done").onclick = finish;
at("done").hidden = separator === null;
at("filter").hidden = classes.length <= MANY;
at("filter").oninput = list;
at("download").hidden = saves;
at("download").onclick = () => {
  const link = document.createElement("a");
  link.href = `data:text/csv;charset=utf-8,${encodeURIComponent(format())}`;
  link.download = "labels.csv";
  link.click();
};
addEventListener("keydown", event => {
  const key = event.key.toLowerCase(), typing = event.target === at("filter");
  if ((event.ctrlKey || event.metaKey) && key === "z" && !typing) { event.preventDefault(); return undo(); }
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing) return;
  if (typing) {
    if (key === "enter" && shown.length) { choose(shown[0]); at("filter").blur(); }
    if (key === "escape") at("filter").blur();
    return;
  }
  if (key === "/" && classes.length > MANY) { event.preventDefault(); at("filter").focus(); }
  else if (key === "enter" && separator !== null) { event.preventDefault(); if (current < items.length) finish(); }
  else if (key === "enter" && event.target.tagName !== "BUTTON" && items[current]?.suggestion)
    answer(items[current].suggestion, "");
  else if (key === "s") at("skip").click();
  else if (key === "n") at("unsure").click();
  else if (key === "u") undo();
  else {
    const k = KEYS.indexOf(key);
    if (k >= 0 && k < shown.length && (classes.length <= MANY || k < 9)) choose(shown[k]);
  }
});
current = -1;
next();
