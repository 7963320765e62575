(() => {
"use strict";

const page = JSON.parse(document.getElementById("data").textContent);
const find = id => document.getElementById(id);
const state = { metric: page.metrics[0]?.name, x: "steps", y: "linear", band: "interval", tasks: false, hidden: new Set(), focus: null };
let charts = [];

// Numbers ---------------------------------------------------------------------------------------------------------

const MISSING = 65535;

/** Numbers of a packed array, null where there is none; see `pack` in data.py. */
function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.data), letter => letter.charCodeAt(0));
  return Array.from(new Uint16Array(bytes.buffer), each => each === MISSING ? null : packed.low + each * packed.step);
}

const digits = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const minus = text => text.replace("-", "−");
const number = value => minus(digits.format(value));
const axisNumber = value => minus((Math.abs(value) >= 1e4 ? compact : digits).format(value));

/** A text for each number that gives the largest of `values` four digits, and all as many decimals. */
function aligned(values) {
  const whole = Math.floor(Math.log10(Math.max(...values.map(Math.abs)) || 1)) + 1;
  const decimals = Math.min(Math.max(4 - whole, 0), 6);
  const format = new Intl.NumberFormat("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
  return value => minus(format.format(value));
}

/** Name, factor from minutes, and text of the unit that suits durations up to `longest` minutes. */
function unitOfTime(longest) {
  if (longest > 180) return { name: "hours", factor: 1 / 60 };
  return longest < 3 ? { name: "seconds", factor: 60 } : { name: "minutes", factor: 1 };
}

/** Value of `key` of a curve at `x`, linear between its points; null outside of them. */
function at(curve, key, x) {
  const xs = curve.x, ys = curve[key];
  if (!ys || !xs.length || x < xs[0] || x > xs[xs.length - 1]) return null;
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle; else high = middle;
  }
  if (ys[low] === null || x === xs[low]) return ys[low];
  if (ys[high] === null || x === xs[high]) return ys[high];
  return ys[low] + (ys[high] - ys[low]) * (x - xs[low]) / (xs[high] - xs[low]);
}

/** The lowest (`Math.min`) or highest seed at each point. */
const extreme = (seeds, pick) => seeds[0].map((_, i) => {
  const values = seeds.map(seed => seed[i]).filter(value => value !== null);
  return values.length ? pick(...values) : null;
});

/** About `count` round numbers from `low` to `high`. */
function evenTicks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(each => each * power).find(each => each >= raw);
  const ticks = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) ticks.push(+(i * step).toPrecision(12));
  return ticks;
}

/** Round numbers from `low` to `high` on a logarithmic axis, which may pass through 0. */
function logTicks(low, high, count) {
  for (const mantissas of [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 5], [1, 3], [1]]) {
    const ticks = new Set(low <= 0 && high >= 0 ? [0] : []);
    const top = Math.floor(Math.log10(Math.max(Math.abs(low), Math.abs(high))));
    for (let power = top; power > top - 12; power--)
      for (const mantissa of mantissas)
        for (const tick of [mantissa * 10 ** power, -mantissa * 10 ** power])
          if (tick >= low && tick <= high && (low > 0 || high < 0 || power > top - 3)) ticks.add(+tick.toPrecision(12));
    if (ticks.size < 3) return evenTicks(low, high, count);
    if (ticks.size <= 2 * count) return [...ticks].sort((a, b) => a - b);
  }
  return evenTicks(low, high, count);
}

// Colours ---------------------------------------------------------------------------------------------------------

const probe = document.body.appendChild(document.createElement("i"));
probe.hidden = true;
const colours = new Map();

/** A colour of the style sheet as canvases take it: custom properties and light-dark() resolved. */
function colour(name, alpha = 1) {
  if (!colours.has(name)) {
    probe.style.color = `var(--${name})`;
    colours.set(name, getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).join(", "));
  }
  return `rgba(${colours.get(name)}, ${alpha})`;
}

const COLOURS = 8;
const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3]];
const arm = index => ({ name: page.arms[index], colour: `arm-${index % COLOURS}`, dash: DASHES[Math.floor(index / COLOURS) % DASHES.length] });
const faded = curve => state.focus !== null && curve.arm !== state.focus ? 0.2 : 1;

function swatch({ colour: name, dash }) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg"), line = document.createElementNS(space, "line");
  svg.setAttribute("class", "swatch");
  svg.setAttribute("viewBox", "0 0 24 10");
  svg.setAttribute("aria-hidden", "true");
  for (const [key, value] of Object.entries({ x1: 1, y1: 5, x2: 23, y2: 5, "stroke-width": 3, "stroke-dasharray": dash.join(" ") })) line.setAttribute(key, value);
  line.style.stroke = `var(--${name})`;
  svg.append(line);
  return svg;
}

function element(tag, text = "", name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (name) made.className = name;
  return made;
}

// Charts ----------------------------------------------------------------------------------------------------------

/**
 * A chart in `figure`: a line and a band per curve, a tip of values under the pointer, zoom by dragging.
 *
 * Curves: { arm, x, centre, low, high, thin }; `reference` for a published number of the arm; `arm` null for `marks`,
 * which are published points with bars, and for a line with a `name` of its own.
 * Options: title, xLabel, xText (of a value in the tip), xTicks (optional), log, height.
 */
class Chart {
  constructor(figure, curves, options) {
    Object.assign(this, { figure, curves, options });
    const caption = figure.appendChild(document.createElement("figcaption"));
    caption.append(element("h3", options.title));
    this.reset = caption.appendChild(element("button", "Reset zoom"));
    this.reset.type = "button";
    this.reset.hidden = true;
    this.reset.addEventListener("click", () => this.plot.setData(this.plot.data));
    this.host = figure.appendChild(element("div", "", "plot"));
    this.host.tabIndex = 0;
    this.host.setAttribute("role", "img");
    this.host.setAttribute("aria-label", `${options.title}: ${options.xLabel}. Arrow keys move along the curves, + and − zoom.`);
    this.tip = element("div", "", "tip");
    this.tip.hidden = true;
    const tables = curves.map(({ x, low, high, centre }) => [x, low ?? x.map(() => null), high ?? x.map(() => null), centre]);
    this.plot = new uPlot(this.options_of(), uPlot.join(tables), this.host);
    this.dots = this.plot.over.appendChild(element("div"));
    this.host.append(this.tip);
    this.host.addEventListener("keydown", event => this.key(event));
    this.host.addEventListener("blur", () => this.plot.setCursor({ left: -10, top: -10 }));
    this.observer = new ResizeObserver(() => {
      const width = this.host.clientWidth;
      if (width && width !== this.plot.width) this.plot.setSize({ width, height: this.options.height });
    });
    this.observer.observe(this.host);
  }

  options_of() {
    const { log, height, xLabel, xTicks } = this.options;
    const lowest = Math.min(...this.curves.flatMap(curve => [...(curve.low ?? []), ...curve.centre, ...(curve.thin ?? []).flat()]).filter(value => value !== null));
    const positive = lowest > 0;
    const axis = { stroke: () => colour("quiet"), font: "12px system-ui, sans-serif", grid: { stroke: () => colour("grid"), width: 1 }, ticks: { show: false } };
    const range = (plot, min, max) => {
      if (min === null) return [0, 1];
      for (const line of this.visible().flatMap(curve => curve.low && state.band === "seeds" && !xTicks ? [] : curve.thin ?? []))
        for (const value of line) if (value !== null) [min, max] = [Math.min(min, value), Math.max(max, value)];
      if (log && positive) return min === max ? [min / 2, max * 2] : [min / (max / min) ** 0.05, max * (max / min) ** 0.05];
      const pad = (max - min || Math.abs(max) || 1) * 0.06;
      return [min - pad, max + pad];
    };
    return {
      width: this.host.clientWidth || 480, height,
      legend: { show: false },
      cursor: { y: false, points: { show: false }, drag: { x: true, y: false } },
      scales: {
        x: { time: false, range: (plot, min, max) => this.range_of_x(plot, min, max) },
        y: log ? { distr: positive ? 3 : 4, asinh: 1, range } : { range },
      },
      axes: [
        { ...axis, label: xLabel, labelFont: axis.font, labelSize: 22, size: 30, space: 60, splits: xTicks && (() => xTicks), values: (plot, ticks) => ticks.map(axisNumber) },
        { ...axis, splits: (plot, index, min, max) => (log ? logTicks : evenTicks)(min, max, Math.max(2, plot.bbox.height / devicePixelRatio / 45)), filter: (plot, ticks) => ticks,
          values: (plot, ticks) => ticks.map(axisNumber), size: (plot, texts) => 16 + 7 * Math.max(1, ...(texts ?? []).map(text => text.length)) },
      ],
      series: [{}, ...this.curves.flatMap(curve => this.series_of(curve))],
      bands: this.curves.flatMap((curve, i) => curve.low && curve.arm !== null && state.band !== "seeds" ? [{ series: [3 * i + 2, 3 * i + 1], fill: () => colour(arm(curve.arm).colour, 0.18 * faded(curve)) }] : []),
      hooks: { drawAxes: [() => this.beneath()], draw: [() => this.above()], setCursor: [() => this.hover()], setScale: [(plot, key) => key === "x" && this.zoomed()] },
    };
  }

  /** Steps start at 0 unless zoomed; integers have room on both sides. */
  range_of_x(plot, min, max) {
    if (min === null) return [0, 1];
    if (this.options.xTicks) return [-0.12 * (this.options.xTicks.length - 1 || 1), (this.options.xTicks.length - 1) * 1.12 || 1];
    const whole = min === plot.data[0][0] && max === plot.data[0][plot.data[0].length - 1];
    if (whole && min === max) return [0, 2 * max || 1];
    return whole ? [Math.min(0, min), max] : [min, max];
  }

  series_of(curve) {
    const shown = curve.arm === null || !state.hidden.has(curve.arm);
    const edge = { show: shown, width: 0, stroke: "transparent", points: { show: false } };
    const style = curve.arm === null ? { colour: "quiet", dash: [3, 4] } : { ...arm(curve.arm), ...(curve.reference && { dash: [2, 5] }) };
    const stroke = () => colour(style.colour, faded(curve));
    const single = !curve.reference && curve.centre.filter(value => value !== null).length === 1 || this.options.xTicks;
    const points = { show: curve.arm === null ? Boolean(curve.marks) : Boolean(single), size: 7, stroke: curve.marks ? () => colour("ink") : stroke, fill: curve.marks ? () => colour("paper") : stroke };
    return [edge, { ...edge }, { show: shown, width: curve.arm === null || curve.reference ? 1 : 2, dash: style.dash, stroke, points, paths: curve.marks ? () => null : undefined }];
  }

  clipped(draw) {
    const { ctx, bbox } = this.plot;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    draw(ctx, x => this.plot.valToPos(x, "x", true), y => this.plot.valToPos(y, "y", true));
    ctx.restore();
  }

  visible() {
    return this.curves.filter(curve => curve.arm === null || !state.hidden.has(curve.arm));
  }

  /** Thin lines, of single seeds or tasks, below the others. */
  beneath() {
    this.clipped((ctx, toX, toY) => {
      for (const curve of this.visible()) {
        ctx.strokeStyle = curve.arm === null ? "" : colour(arm(curve.arm).colour, 0.4 * faded(curve));
        ctx.lineWidth = devicePixelRatio;
        for (const line of curve.thin ?? []) {
          ctx.beginPath();
          let down = false;
          line.forEach((y, i) => {
            if (y !== null) ctx[down ? "lineTo" : "moveTo"](toX(curve.x[i]), toY(y));
            down = y !== null;
          });
          ctx.stroke();
        }
      }
    });
  }

  /** Bars of marks. */
  above() {
    this.clipped((ctx, toX, toY) => {
      ctx.strokeStyle = colour("ink");
      ctx.lineWidth = 1.5 * devicePixelRatio;
      for (const { marks, x, low, high, centre } of this.curves) {
        if (!marks) continue;
        const gap = 4 * devicePixelRatio;
        x.forEach((each, i) => {
          for (const [from, to] of [[toY(low[i]), toY(centre[i]) + gap], [toY(centre[i]) - gap, toY(high[i])]]) {
            if (from <= to) continue;
            ctx.beginPath();
            ctx.moveTo(toX(each), from);
            ctx.lineTo(toX(each), to);
            ctx.stroke();
          }
        });
      }
    });
  }

  /** Rows of the tip at `x`, the highest value first: { curve, value, low, high }. */
  rows(x) {
    return this.visible().filter(curve => !curve.marks && !curve.reference)
      .map(curve => ({ curve, value: at(curve, "centre", x), low: at(curve, "low", x), high: at(curve, "high", x) }))
      .filter(row => row.value !== null).sort((a, b) => b.value - a.value);
  }

  hover() {
    const { left, top, idx } = this.plot.cursor;
    const shown = left >= 0 && idx !== null && idx !== undefined;
    const x = shown ? this.options.xTicks ? Math.round(this.plot.posToVal(left, "x")) : this.plot.posToVal(left, "x") : 0;
    const rows = shown ? this.rows(x) : [];
    this.tip.hidden = !rows.length;
    this.dots.replaceChildren(...rows.filter(({ curve }) => curve.arm !== null).map(({ curve, value }) => {
      const dot = element("i", "", "dot");
      dot.style.background = `var(--${arm(curve.arm).colour})`;
      dot.style.transform = `translate(${this.plot.valToPos(x, "x")}px, ${this.plot.valToPos(value, "y")}px)`;
      return dot;
    }));
    if (!rows.length) return;
    const format = aligned(rows.flatMap(({ value, low, high }) => [value, low ?? 0, high ?? 0]));
    const table = document.createElement("table");
    table.createCaption().textContent = this.options.xText(x);
    for (const { curve, value, low, high } of rows) {
      const row = table.insertRow(), name = row.insertCell();
      if (curve.arm === null) name.textContent = curve.name;
      else name.append(swatch(arm(curve.arm)), arm(curve.arm).name);
      row.insertCell().textContent = format(value);
      row.insertCell().append(element("span", low === null || low === high ? "" : `${format(low)} to ${format(high)}`, "between"));
    }
    this.tip.replaceChildren(table);
    const over = this.plot.over, width = this.tip.offsetWidth, room = this.host.clientWidth;
    const centre = over.offsetLeft + left;
    const beside = centre + 14 + width <= room ? centre + 14 : centre - 14 - width;
    this.tip.style.left = `${Math.max(0, Math.min(beside, room - width))}px`;
    this.tip.style.top = `${Math.max(0, Math.min(over.offsetTop + top - this.tip.offsetHeight / 2, this.options.height - this.tip.offsetHeight))}px`;
  }

  zoomed() {
    const xs = this.plot.data[0], { min, max } = this.plot.scales.x;
    this.reset.hidden = Boolean(this.options.xTicks) || !(min > xs[0] || max < xs[xs.length - 1]);
  }

  key(event) {
    const { plot } = this, xs = plot.data[0], { min, max } = plot.scales.x;
    const now = plot.cursor.left >= 0 ? plot.posToVal(plot.cursor.left, "x") : min;
    const inside = xs.filter(x => x >= min && x <= max);
    const near = (max - min) * 1e-6;
    const targets = { ArrowRight: inside.find(x => x > now + near), ArrowLeft: inside.findLast(x => x < now - near), Home: inside[0], End: inside[inside.length - 1] };
    if (event.key in targets) {
      const x = targets[event.key] ?? now;
      plot.setCursor({ left: plot.valToPos(x, "x"), top: plot.over.clientHeight / 2 });
      find("said").textContent = `${this.options.xText(x)}: ${this.rows(x).map(({ curve, value }) => `${curve.name ?? arm(curve.arm).name} ${number(value)}`).join(", ")}`;
    } else if (event.key === "+" || event.key === "-") {
      const half = (max - min) * (event.key === "+" ? 0.25 : 1);
      plot.setScale("x", { min: Math.max(now - half, Math.min(0, xs[0])), max: Math.min(now + half, xs[xs.length - 1]) });
    } else if (event.key === "Escape" || event.key === "0") plot.setData(plot.data);
    else return;
    event.preventDefault();
  }

  /** Show what is not hidden. */
  toggle() {
    this.plot.batch(() => this.curves.forEach((curve, i) => {
      if (curve.arm === null) return;
      for (const index of [1, 2, 3]) {
        const show = !state.hidden.has(curve.arm);
        if (this.plot.series[3 * i + index].show !== show) this.plot.setSeries(3 * i + index, { show });
      }
    }));
  }

  remove() {
    this.observer.disconnect();
    this.plot.destroy();
    this.figure.remove();
  }
}

// What is drawn ---------------------------------------------------------------------------------------------------

function learning(panel) {
  const stored = panel.curves[state.metric] ?? [];
  const minutes = Math.max(0, ...stored.flatMap(curve => unpack(curve.minutes)));
  const unit = unitOfTime(minutes), timed = state.x === "minutes";
  const curves = stored.map(curve => {
    const x = timed ? unpack(curve.minutes).map(each => each * unit.factor) : curve.steps;
    const seeds = curve.seeds.map(unpack), several = seeds.length > 1;
    const between = { interval: several && [unpack(curve.low), unpack(curve.high)], none: null }[state.band]
      ?? (several && state.band !== "none" ? [extreme(seeds, Math.min), extreme(seeds, Math.max)] : null);
    return { arm: curve.arm, published: curve.published, x, centre: unpack(curve.centre), low: between?.[0], high: between?.[1],
      thin: state.band === "seeds" ? seeds : curve.partial && state.band !== "none" ? seeds : [] };
  });
  for (const { published, ...curve } of [...curves])
    if (published !== null && curve.x.length) curves.push({ arm: curve.arm, reference: true, x: [curve.x[0], curve.x.at(-1)], centre: [published, published] });
  const marks = timed ? null : panel.marks[state.metric];
  if (marks) curves.push({ arm: null, marks: true, x: marks.x, centre: marks.centre, low: marks.low, high: marks.high });
  return { curves, options: {
    title: panel.title, log: state.y === "log",
    xLabel: timed ? `${unit.name} since a run's start` : "environment steps",
    xText: timed ? x => `${number(x)} ${unit.name}` : x => `${whole.format(x)} steps`,
  } };
}

function adaptation(panel) {
  const steps = panel.steps.map((_, k) => k);
  const curves = panel.curves.map(curve => ({ arm: curve.arm, x: steps.slice(0, curve.centre.length), centre: curve.centre, low: curve.low, high: curve.high, thin: state.tasks ? curve.tasks : [] }));
  if (panel.random !== null) curves.push({ arm: null, name: "random actions", x: steps, centre: steps.map(() => panel.random) });
  return { curves, options: {
    title: panel.title, log: false, xTicks: steps, xLabel: "adaptation steps",
    xText: k => k === 1 ? "after 1 step" : k === 0 ? "before adaptation" : `after ${k} steps`,
  } };
}

function drawInto(place, panels, make, height) {
  if (!place) return;
  for (const panel of panels) {
    const figure = place.appendChild(document.createElement("figure"));
    const { curves, options } = make(panel);
    if (curves.some(curve => curve.arm !== null)) charts.push(new Chart(figure, curves, { height, ...options }));
    else figure.append(element("h3", options.title), element("p", `No run has ${state.metric} here.`, "nothing"));
  }
}

function drawAll() {
  charts.forEach(chart => chart.remove());
  charts = [];
  for (const id of ["curves", "adaptation"]) find(id)?.replaceChildren();
  const alone = page.panels.length === 1;
  find("curves").classList.toggle("one", alone);
  drawInto(find("curves"), page.panels, learning, alone && innerWidth > 700 ? 440 : 300);
  drawInto(find("adaptation"), page.adaptation, adaptation, 260);
}

const recolour = () => {
  colours.clear();
  charts.forEach(chart => chart.plot.redraw(false));
};

// Controls --------------------------------------------------------------------------------------------------------

const legend = find("legend");
const all = element("button", "Show all", "all");

function refresh() {
  legend.querySelectorAll("[aria-pressed]").forEach((button, i) => button.setAttribute("aria-pressed", String(!state.hidden.has(i))));
  all.hidden = !state.hidden.size;
  charts.forEach(chart => chart.toggle());
}

function makeLegend() {
  page.arms.forEach((name, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.title = "Press to hide or show; double-click to see it alone";
    button.append(swatch(arm(index)), element("span", name));
    button.addEventListener("click", () => {
      if (state.hidden.delete(index)) state.focus = index;
      else {
        state.hidden.add(index);
        state.focus = null;
      }
      refresh();
    });
    button.addEventListener("dblclick", () => {
      state.hidden = new Set(page.arms.map((_, each) => each).filter(each => each !== index));
      refresh();
    });
    const focus = value => () => {
      state.focus = value === null || state.hidden.has(value) ? null : value;
      charts.forEach(chart => chart.plot.redraw(false));
    };
    for (const [event, value] of [["mouseenter", index], ["focus", index], ["mouseleave", null], ["blur", null]]) button.addEventListener(event, focus(value));
    legend.append(button);
  });
  all.type = "button";
  all.addEventListener("click", () => { state.hidden.clear(); refresh(); });
  legend.append(all);
}

function makeControls() {
  for (const { name, label } of page.metrics) find("metric").append(new Option(label, name));
  find("metric").parentElement.hidden = page.metrics.length < 2;
  for (const key of ["metric", "band"]) {
    find(key).value = state[key];
    find(key).addEventListener("change", event => { state[key] = event.target.value; drawAll(); });
  }
  for (const radio of document.querySelectorAll("#controls [type=radio]"))
    radio.addEventListener("change", () => { state[radio.name] = radio.value; drawAll(); });
  find("tasks")?.addEventListener("change", event => { state.tasks = event.target.checked; drawAll(); });
  find("controls").hidden = false;
}

function makeTheme() {
  const root = document.documentElement, button = find("theme"), dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const show = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
    recolour();
  };
  button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; show(); });
  dark.addEventListener("change", show);
  button.hidden = false;
  show();
}

/** Column heads of every table become buttons that sort it. */
function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = element("button", head.textContent);
    button.type = "button";
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach(each => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const numeric = [...table.tBodies[0].rows].every(row => !Number.isNaN(Number(key(row))));
      const compare = numeric ? (a, b) => key(a) - key(b) || 0 : (a, b) => key(a).localeCompare(key(b), "en", { numeric: true });
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => down ? compare(b, a) : compare(a, b)));
    });
  });
}

makeControls();
makeLegend();
drawAll();
refresh();
makeTheme();
document.querySelectorAll("table.sortable").forEach(makeSortable);
})();
