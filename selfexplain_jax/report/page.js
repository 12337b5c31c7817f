"use strict";
// What moves on the report page. Without it the page still shows all of its content.

const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector, root = document) => root.querySelector(selector);

// ---- Theme: what the system asks for, or what the reader chose. ----
function theme(button) {
  const choices = ["system", "light", "dark"];
  const show = (choice) => {
    if (choice === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = choice;
    button.textContent = `Theme: ${choice}`;
  };
  let choice = "system";
  // A page that is opened as a file may not be allowed to remember.
  try { choice = localStorage.getItem("theme") || "system"; } catch { /* the system's, then */ }
  if (!choices.includes(choice)) choice = "system";
  show(choice);
  button.addEventListener("click", () => {
    choice = choices[(choices.indexOf(choice) + 1) % choices.length];
    show(choice);
    try { localStorage.setItem("theme", choice); } catch { /* for this time only */ }
  });
}

// ---- Tables: a heading sorts, the better values first; what has no value stays last. ----
function sortable(table) {
  const headings = all("thead th", table);
  const body = one("tbody", table);
  headings.forEach((heading, place) => {
    one("button", heading).addEventListener("click", () => {
      const numeric = heading.classList.contains("number");
      const lower = heading.textContent.includes("↓") || !numeric;
      const first = lower ? "ascending" : "descending";
      const second = lower ? "descending" : "ascending";
      const order = heading.getAttribute("aria-sort") === first ? second : first;
      headings.forEach((other) => other.setAttribute("aria-sort", other === heading ? order : "none"));
      const sign = order === "ascending" ? 1 : -1;
      const value = (row) => row.children[place].dataset.value;
      const rows = [...body.rows].sort((a, b) => {
        const [left, right] = [value(a), value(b)];
        if (left === "" || right === "") return (left === "") - (right === "");
        return sign * (numeric ? Number(left) - Number(right) : left.localeCompare(right));
      });
      body.append(...rows);
    });
  });
  const box = one(".all-numbers", table.closest(".scroll").previousElementSibling);
  if (box) box.addEventListener("change", () => table.classList.toggle("all", box.checked));
}

// ---- Charts: the values at the step that is pointed at. ----
function chart(plot) {
  const lines = JSON.parse(plot.dataset.points);
  const cursor = one(".cursor", plot);
  const output = one("output", plot.parentElement);
  const [left, right, width] = ["left", "right", "width"].map((name) => Number(plot.dataset[name]));
  const last = Number(plot.getAttribute("aria-valuemax"));
  const steps = [...new Set(lines.flatMap(([, points]) => points.map(([step]) => step)))].sort((a, b) => a - b);
  if (!steps.length) return;
  let place = steps.length - 1;
  const nearest = (points, step) =>
    points.reduce((best, point) => (Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best));
  const show = () => {
    const step = steps[place];
    const values = lines.filter(([, points]) => points.length).map(([, points]) => nearest(points, step)[1].toPrecision(3));
    const x = left + ((right - left) * step) / Math.max(last, 1);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
    output.textContent = `${values.join(" / ")} at ${step}`;
    plot.setAttribute("aria-valuenow", step);
    plot.setAttribute("aria-valuetext", output.textContent);
  };
  const hide = () => { cursor.setAttribute("visibility", "hidden"); output.textContent = ""; };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const step = (((event.clientX - box.left) / box.width) * width - left) / (right - left) * last;
    place = steps.indexOf(nearest(steps.map((value) => [value]), step)[0]);
    show();
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("focus", show);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: place - 1, ArrowDown: place - 1, ArrowRight: place + 1, ArrowUp: place + 1, Home: 0, End: steps.length - 1 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    place = Math.min(Math.max(moves[event.key], 0), steps.length - 1);
    show();
  });
}

// ---- Masks in training: one picture for each step. ----
function training(slider) {
  const pictures = all("#steps img");
  const show = () => {
    pictures.forEach((picture, place) => { picture.hidden = place !== Number(slider.value); });
    const { step } = pictures[Number(slider.value)].dataset;
    one("#step-value").textContent = step;
    slider.setAttribute("aria-valuetext", `step ${step}`);
  };
  slider.addEventListener("input", show);
  show();
}

// ---- Gallery: narrowed by kind and class, a page at a time; maps over the photo. ----
function gallery(root) {
  const cards = all(".card", root);
  const [kind, picked, opacity, more, count] = ["#kind", "#class", "#opacity", "#more", "#count"].map((id) => one(id, root));
  const atOnce = Number(root.dataset.atOnce);
  let room = atOnce;
  const has = (list, value) => value === "" || list.split(" ").includes(value);
  const show = () => {
    const found = cards.filter((card) => has(card.dataset.kinds, kind.value) && has(card.dataset.classes, picked.value));
    const shown = new Set(found.slice(0, room));
    const off = new Set(all(".method", root).filter((box) => !box.checked).map((box) => box.value));
    cards.forEach((card) => {
      card.hidden = !shown.has(card);
      if (card.hidden) return;
      // The photo stands in the file once; the maps of a card lie over that one.
      all(".under[hidden]", card).forEach((under) => { under.src = one(".photo", card).src; under.hidden = false; });
      const maps = all("figure[data-class]", card);
      // A label without a map of its own, beyond those that are kept, shows what there is.
      const known = picked.value !== "" && maps.some((map) => map.dataset.class === picked.value);
      maps.forEach((map) => {
        map.hidden = (known && map.dataset.class !== picked.value) || off.has(map.dataset.method);
      });
    });
    more.hidden = shown.size === found.length;
    count.textContent = `${shown.size} of ${found.length} images are shown.`;
  };
  const again = () => { room = atOnce; show(); };
  kind.addEventListener("change", again);
  picked.addEventListener("change", again);
  all(".method", root).forEach((box) => box.addEventListener("change", show));
  more.addEventListener("click", () => {
    const next = cards.filter((card) => card.hidden);
    room += atOnce;
    show();
    // The button may be gone: who uses the keyboard goes on with the first new image.
    const card = next.find((other) => !other.hidden);
    if (card) { card.tabIndex = -1; card.focus({ preventScroll: true }); }
  });
  one("form", root).addEventListener("submit", (event) => event.preventDefault());
  if (opacity) {
    const apply = () => {
      root.style.setProperty("--opacity", opacity.value / 100);
      one("#opacity-value", root).textContent = `${opacity.value} %`;
    };
    opacity.addEventListener("input", apply);
    apply();
  }
  show();
}

theme(one("#theme"));
all(".sortable").forEach(sortable);
all(".plot").forEach(chart);
if (one("#step")) training(one("#step"));
if (one("#gallery")) gallery(one("#gallery"));
