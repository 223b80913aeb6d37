"use strict";
// What a run's text says is set as text, never as HTML.

const META = JSON.parse(document.getElementById("meta").textContent);
const PAGE = 20; // cards at a time
const MODES = { random: "random", rices: "RICES", balanced: "balanced", fixed: "fixed" };
const SHOWN = {
  share: { all: "all", right: "right", partly: "partly right", wrong: "wrong" },
  score: { all: "all", upper: "better half", lower: "worse half" },
  label: { all: "all", right: "right", wrong: "wrong" },
  none: { all: "all" },
};
const SORTS = { order: "order of the queries", low: "value, lowest first", high: "value, highest first" };

const app = document.getElementById("app");
const state = { run: 0, task: 0, mode: "", shots: 0, seed: 0, show: "all", tag: "", sort: "order", find: "", at: "" };
let table = null, cell = null, rows = [], here = -1, drawn = 0, turn = 0;

// ---- data

const packed = new Map();
function unpack(name) {
  if (!packed.has(name)) packed.set(name, read(name));
  return packed.get(name);
}
async function read(name) {
  const bytes = Uint8Array.from(atob(document.getElementById(name).textContent), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}
const text = (number) => (number === null ? null : table.texts[number]);
const cells = () => META.cells.filter((one) => one.task === state.task);

// A row of a cell, with its texts.
function opened(row) {
  const [query, prompt, shown, generated, answer, value, chances, dropped, tags] = row;
  const [id, images, asked, references] = table.asked[query];
  return {
    query, prompt, shown, dropped, value, id: text(id), images, asked: asked.map(text), references: references.map(text),
    generated: text(generated), answer: text(answer), tags: (tags || []).map(text),
    chances: chances && chances.map(([label, chance]) => [text(label), chance]),
  };
}

// What rows are sorted by: the metric's value; of labels the right one's probability.
function worth(row) {
  if (row[5] !== null || !row[6]) return row[5];
  const right = table.asked[row[0]][3];
  const found = row[6].find(([label]) => right.includes(label));
  return found ? found[1] : null;
}

function grade(one, row) {
  if (one.kind === "label") return row[4] === null ? "" : table.asked[row[0]][3].includes(row[4]) ? "right" : "wrong";
  if (row[5] === null) return "";
  if (one.kind === "score") return row[5] >= one.middle ? "upper" : "lower";
  return row[5] >= 99.9 ? "right" : row[5] <= 0 ? "wrong" : "partly";
}
