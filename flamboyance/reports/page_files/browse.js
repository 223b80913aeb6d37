// The page: what is chosen, the list, the keys.

const bar = h("div", { class: "bar" }), overview = h("div", { class: "wide" }), list = h("main", {});
const tail = h("div", {});
const count = h("div", { class: "count", "aria-live": "polite" });
const ending = new IntersectionObserver((found) => found.some((one) => one.isIntersecting) && more(drawn + PAGE), { rootMargin: "1500px" });

function choose(label, key, options) {
  const entries = Object.entries(options);
  return entries.length < 2 ? null : h("label", {}, label, h("select", { name: key, onchange: (event) => change(key, event.target.value) },
    entries.map(([value, words]) => h("option", { value, selected: String(state[key]) === value }, words))));
}

const named = (values, words) => Object.fromEntries([...new Set(values)].map((value) => [value, words(value)]));

function drawBar() {
  const ours = cells().filter((one) => one.run === state.run);
  const search = h("input", { type: "search", name: "find", placeholder: "question, answer, reference, id", value: state.find,
    oninput: (event) => { state.find = event.target.value; clearTimeout(search.later); search.later = setTimeout(() => select(false), 120); } });
  const focused = bar.contains(document.activeElement) ? document.activeElement.name : "";
  bar.replaceChildren(...[
    choose("run", "run", named(META.cells.map((one) => one.run), (i) => META.runs[i].name)),
    choose("task", "task", named(META.cells.filter((one) => one.run === state.run).map((one) => one.task), (i) => META.tasks[i].title)),
    choose("demonstrations", "mode", named(ours.map((one) => one.mode), (mode) => MODES[mode] || mode)),
    choose("shots", "shots", named(ours.filter((one) => one.mode === state.mode).map((one) => one.shots), String)),
    choose("seed", "seed", named(ours.filter((one) => one.mode === state.mode && one.shots === state.shots).map((one) => one.seed), String)),
    choose("show", "show", SHOWN[cell.kind]),
    choose("only", "tag", tagged()),
    cell.kind === "none" ? null : choose("sort by", "sort", SORTS),
    h("label", {}, "find", search), count,
  ].filter(Boolean));
  if (focused) bar.querySelector(`[name="${focused}"]`)?.focus();
}

// The tags of the cell's answers, the most frequent first within their kind.
function tagged() {
  const counts = new Map();
  for (const row of cell.rows) for (const number of row[8] || []) counts.set(text(number), (counts.get(text(number)) || 0) + 1);
  if (state.tag && !counts.has(state.tag)) counts.set(state.tag, 0);
  const kind = ([name]) => name.split(":")[0];
  const found = [...counts].sort((a, b) => kind(a).localeCompare(kind(b)) || b[1] - a[1]);
  return Object.fromEntries([["", "any answer"], ...found.map(([name, count]) => [name, `${name} (${count.toLocaleString("en")})`])]);
}

// Mean over seeds of the task's cells; each opens its first seed.
function drawOverview() {
  const ours = cells().filter((one) => one.run === state.run);
  const shots = [...new Set(ours.map((one) => one.shots))].sort((a, b) => a - b);
  const modes = [...new Set(ours.map((one) => one.mode))];
  const task = META.tasks[state.task];
  const entry = (mode, number_) => {
    const seeds = ours.filter((one) => one.mode === mode && one.shots === number_);
    if (!seeds.length) return h("td", { class: "none" }, "–");
    const values = seeds.filter((one) => one.finished && one.value !== null).map((one) => one.value);
    const mean = values.reduce((a, b) => a + b, 0) / values.length;
    const words = values.length ? number(mean) : seeds[0].finished ? "–" : "unfinished";
    return h("td", {}, h("button", { type: "button", "aria-pressed": String(cell.mode === mode && cell.shots === number_),
      onclick: () => { state.mode = mode; change("shots", number_); } }, words));
  };
  overview.replaceChildren(h("table", { class: "scores" },
    h("caption", {}, [task.title, task.metric].filter(Boolean).join(", "), " by shots, mean over seeds"),
    h("tr", {}, h("th", {}, "demonstrations"), shots.map((one) => h("th", { scope: "col" }, String(one)))),
    modes.map((mode) => h("tr", {}, h("th", { scope: "row" }, MODES[mode] || mode), shots.map((one) => entry(mode, one))))));
}

function change(key, value) {
  state[key] = typeof state[key] === "number" ? Number(value) : value;
  if (key === "show" || key === "sort" || key === "tag") select(false);
  else show();
}

// The cell that fits best what is asked for: other tasks may lack a mode, a number of shots or a seed.
function best() {
  const ours = META.cells.filter((one) => one.run === state.run);
  const near = (one) => [one.task === state.task, one.mode === state.mode, one.shots === state.shots, one.seed === state.seed, one.finished];
  const points = (one) => near(one).reduce((sum, same) => 2 * sum + same, 0);
  return ours.reduce((found, one) => (points(one) > points(found) ? one : found), ours[0]);
}

async function show() {
  const mine = ++turn;
  cell = best() || META.cells[0];
  if (!cell) return app.replaceChildren(h("p", { class: "empty" }, "There are no predictions yet."));
  Object.assign(state, { run: cell.run, task: cell.task, mode: cell.mode, shots: cell.shots, seed: cell.seed });
  if (!(state.show in SHOWN[cell.kind])) state.show = "all";
  const [found, all] = await Promise.all([unpack("t" + cell.task), unpack("c" + META.cells.indexOf(cell))]);
  if (mine !== turn) return; // another cell has been asked for meanwhile
  table = found;
  cell.rows = all;
  drawOverview();
  drawBar();
  select(true);
}

function haystack(row) {
  const one = opened(row);
  return [one.id, ...one.asked, one.answer, one.generated, ...one.references].join("\n").toLowerCase();
}

// What is shown of the cell. The query that was looked at stays in sight in another cell, but not in another selection.
function select(stay) {
  const wanted = state.find.toLowerCase().trim();
  if (wanted && !cell.texts) cell.texts = new Map(cell.rows.map((row) => [row, haystack(row)]));
  rows = cell.rows.filter((row) => (state.show === "all" || grade(cell, row) === state.show) &&
    (!state.tag || (row[8] || []).some((number) => text(number) === state.tag)) && (!wanted || cell.texts.get(row).includes(wanted)));
  if (state.sort !== "order") {
    const way = state.sort === "low" ? 1 : -1;
    const key = new Map(rows.map((row) => [row, worth(row)]));
    rows = [...rows].sort((a, b) => (key.get(a) === null) - (key.get(b) === null) || way * (key.get(a) - key.get(b)));
  }
  count.replaceChildren(h("strong", {}, counted(rows.length, "query").replace("querys", "queries")), ` of ${cell.queries.toLocaleString("en")}`,
    cell.there < cell.queries ? `, the first ${cell.there.toLocaleString("en")} of which are in this page` : "",
    cell.value === null ? "" : `; ${META.tasks[cell.task].metric} ${number(cell.value)}`,
    cell.interval ? ` (95 %: ${number(cell.interval[0])} to ${number(cell.interval[1])})` : "",
    cell.finished ? "" : "; this cell is unfinished and counts nowhere", ". ",
    h("span", {}, h("kbd", {}, "j"), " ", h("kbd", {}, "k"), " next, previous  ", h("kbd", {}, "p"), " prompt  ", h("kbd", {}, "o"), " other cells  ", h("kbd", {}, "/"), " find"));
  drawn = 0;
  here = -1;
  list.replaceChildren();
  if (!rows.length) list.append(h("p", { class: "empty" }, cell.queries ? "No query fits." : "This cell has no queries."));
  const linked = stay && state.at ? rows.findIndex((row) => text(table.asked[row[0]][0]) === state.at) : -1;
  more(Math.max(PAGE, linked + 1));
  if (linked >= 0) return stand(linked, true);
  state.at = "";
  const top = list.offsetTop - bar.offsetHeight;
  if (scrollY > top) scrollTo(0, top);
  remember();
}

function more(until) {
  const end = Math.min(until, rows.length);
  if (end > drawn) list.append(...rows.slice(drawn, end).map((row, place) => card(row, drawn + place)));
  drawn = Math.max(drawn, end);
  // Observed anew, it tells again whether the end is in sight.
  ending.unobserve(tail);
  if (drawn < rows.length) ending.observe(tail);
}

function stand(place, scroll) {
  if (place < 0 || place >= rows.length) return;
  more(place + 2);
  list.querySelector(".here")?.classList.remove("here");
  here = place;
  const element = list.children[place];
  element.classList.add("here");
  state.at = element.dataset.id;
  if (scroll) {
    element.scrollIntoView({ block: "start" });
    if (!bar.contains(document.activeElement)) element.focus({ preventScroll: true });
  }
  remember();
}

// The address says what is looked at, so that it can be passed on. Browsers refuse to change it very often.
let later = 0;
function remember() {
  clearTimeout(later);
  later = setTimeout(() => history.replaceState(null, "", "#" + address()), 300);
}

function address() {
  const { run, task, ...rest } = state;
  const usual = { run: 0, show: "all", tag: "", sort: "order", find: "", at: "" };
  const kept = Object.entries({ run, task: META.tasks[task]?.name ?? "", ...rest });
  return new URLSearchParams(kept.filter(([key, value]) => value !== usual[key]));
}

function recall() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const key of ["run", "shots", "seed"]) if (/^-?\d+$/.test(given.get(key) || "")) state[key] = Number(given.get(key));
  for (const key of ["mode", "show", "tag", "find", "at"]) if (given.has(key)) state[key] = given.get(key);
  if (given.get("sort") in SORTS) state.sort = given.get("sort");
  if (!META.runs[state.run]) state.run = 0;
  const task = META.tasks.findIndex((one) => one.name === given.get("task"));
  const first = META.cells.find((one) => one.run === state.run && one.finished) || META.cells[0];
  state.task = task >= 0 ? task : first ? first.task : 0;
  if (!given.has("mode") && first) Object.assign(state, { mode: first.mode, shots: first.shots, seed: first.seed });
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.matches("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const open = (kind) => { const found = list.children[here]?.querySelector(`details.${kind}`); if (found) found.open = !found.open; };
  const actions = {
    j: () => stand(here + 1, true), k: () => stand(here - 1, true), p: () => open("prompt"), o: () => open("elsewhere"),
    "/": () => bar.querySelector("input").focus(),
  };
  if (event.key in actions && cell) { event.preventDefault(); actions[event.key](); }
});
addEventListener("hashchange", () => { recall(); show(); });

if (typeof DecompressionStream === "undefined") {
  app.append(h("p", { class: "empty" }, "This browser cannot unpack the predictions: use one of 2023 or later."));
} else {
  app.append(overview, bar, list, tail);
  recall();
  show();
}
