// Elements, and what is made of them: a card for each query.

function h(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((one) => one !== null && one !== undefined && one !== ""));
  return element;
}

function picture(number, words) {
  const [link, name, small] = table.images[number];
  const source = small ? "data:image/jpeg;base64," + small : link;
  const image = h("img", { alt: words, loading: "lazy", decoding: "async", src: source });
  const button = h("button", { class: "picture", type: "button", title: name, onclick: () => enlarge(link, source, name) }, image);
  image.addEventListener("error", () => button.replaceWith(h("div", { class: "gone", title: link }, h("span", {}, "no image at"), name)));
  return button;
}

function enlarge(link, small, name) {
  const image = h("img", { alt: name, src: link });
  image.addEventListener("error", () => { image.src = small; }, { once: true });
  const box = h("dialog", { onclick: () => box.close(), onclose: () => box.remove() }, image, h("p", { class: "soft" }, name));
  document.body.append(box);
  box.showModal();
}

const number = (value) => (value === null ? "–" : (Math.round(value * 10) / 10).toFixed(1));
const counted = (value, word) => `${value.toLocaleString("en")} ${word}${value === 1 ? "" : "s"}`;

function card(row, place) {
  const one = opened(row);
  const sign = grade(cell, row);
  const words = { right: "✓ ", wrong: "✗ ", partly: "~ " }[sign] || "";
  const told = one.value === null ? { right: "right", wrong: "wrong" }[sign] || "" : number(one.value);
  const head = h("div", { class: "soft" }, `${(place + 1).toLocaleString("en")}`, h("span", {}, one.id),
    one.dropped ? h("span", {}, counted(one.dropped, "demonstration"), " dropped: the prompt was too long") : null,
    told || words ? h("span", { class: `badge ${sign}` }, words + told) : null);
  const facts = h("div", { class: "facts" });
  const say = (label, ...content) => facts.append(h("p", { class: "label" }, label), ...content);
  if (one.asked.length) say("asked", h("p", {}, one.asked.join(" · ")));
  say("answer", h("p", { class: "answer" }, one.answer === null || one.answer === "" ? h("span", { class: "soft" }, "(nothing)") : one.answer));
  if (one.generated !== null && one.generated !== one.answer) say("generated", h("p", { class: "raw" }, one.generated));
  if (one.references.length) say(one.references.length > 1 ? "references" : "reference", references(one));
  if (one.chances) say("probabilities", chances(one));
  if (one.tags.length) facts.append(h("p", { class: "soft tags" }, one.tags.join(" · ")));
  const images = one.images.length ? one.images.map((number) => picture(number, "query")) : [h("div", { class: "gone" }, "no image")];
  facts.append(...[strip(one), prompt(one), elsewhere(one)].flat().filter(Boolean));
  return h("article", { class: "card", tabindex: "-1", "data-id": one.id, onclick: () => stand(place, false) },
    head, h("div", { class: "query" }, images), facts);
}

function references(one) {
  const counts = new Map();
  for (const words of one.references) counts.set(words, (counts.get(words) || 0) + 1);
  return h("ul", { class: "references" }, [...counts].map(([words, count]) =>
    h("li", {}, words, count > 1 ? h("small", {}, ` × ${count}`) : null)));
}

function chances(one) {
  return h("div", { class: "chances" }, one.chances.flatMap(([label, chance]) => {
    const kind = one.references.includes(label) ? "true" : "";
    return [h("span", { class: kind }, label === one.answer ? "▸ " : "", label),
      h("span", { class: `track ${kind}` }, h("i", { style: `width:${(100 * chance).toFixed(1)}%` })),
      h("output", {}, `${(100 * chance).toFixed(1)} %`)];
  }));
}

function strip(one) {
  if (!one.shown.length) return null;
  const shown = one.shown.map((number) => {
    const [, images, asked, answer] = table.shown[number];
    const words = h("figcaption", { title: [...asked.map(text), text(answer)].join("\n") },
      ...asked.map((each) => h("span", { class: "soft" }, text(each), " ")), h("strong", {}, text(answer)));
    return h("figure", { class: images.length ? "" : "text" }, images.map((number) => picture(number, "demonstration")), words);
  });
  const blind = one.shown.every((number) => !table.shown[number][1].length);
  return [h("p", { class: "label" }, counted(shown.length, "demonstration"), blind ? ", shown as text alone" : shown.length > 1 ? ", the last next to the query" : ""),
    h("div", { class: "strip" }, shown)];
}

function prompt(one) {
  const place = h("pre", {});
  const fill = () => place.childNodes.length || place.append(...one.prompt.map(text).join("")
    .split(/(<image>|<\|endofchunk\|>)/).map((piece, at) => (at % 2 ? h("span", { class: "token" }, piece) : piece)));
  return h("details", { class: "prompt", ontoggle: fill }, h("summary", {}, "Prompt"), place);
}

function elsewhere(one) {
  if (cells().length < 2) return null;
  const place = h("div", { class: "wide" });
  const fill = async () => {
    if (place.childNodes.length) return;
    place.append("…");
    const found = [];
    for (const other of cells()) {
      const row = (await unpack("c" + META.cells.indexOf(other))).find((each) => each[0] === one.query);
      if (row) found.push([other, row]);
    }
    const many = META.runs.length > 1;
    place.replaceChildren(h("table", { class: "elsewhere" }, found.map(([other, row]) =>
      h("tr", { class: other === cell ? "now" : "" }, many ? h("td", {}, META.runs[other.run].name) : null, h("td", {}, MODES[other.mode] || other.mode),
        h("td", {}, counted(other.shots, "shot")), h("td", {}, `seed ${other.seed}`), h("td", {}, text(row[4]) || ""),
        h("td", { class: grade(other, row) }, row[5] === null ? grade(other, row) : number(row[5]))))));
  };
  return h("details", { class: "elsewhere", ontoggle: (event) => event.target.open && fill() }, h("summary", {}, "The same query in other cells"), place);
}
