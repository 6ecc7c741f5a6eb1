/* What a reader explores: a run step by step (.explore-steps), and guesses of its next break (.explore-guess).

   The data stand in the page, written by `periodic_lib.publishing.explore`. The first part, without a page, is tested beside the
   library. One file without imports, because it is written into the page that shows it. */
"use strict";

(() => {
  function median(values) {
    const sorted = [...values].sort((a, b) => a - b);
    const half = sorted.length >> 1;
    return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  }

  /* Return how far off a forecast is, as a share of the true length; as `forecasts.errors`. */
  const errorOf = (said, length) => Math.abs(said - length) / length;

  /* Return the median errors over the rounds played: `said[k]` is the reader's answer to `rounds[k]`, in steps. */
  function scores(rounds, said) {
    const played = rounds.slice(0, said.length);
    const of = (forecast) => median(played.map((round, k) => errorOf(forecast(round, k), round.length)));
    return { you: of((_, k) => said[k]), clock: of((round) => round.clock), level: of((round) => round.level),
      tooEarly: said.filter((steps, k) => steps < played[k].not_before).length,
      kept: played.filter((round) => round.not_before <= 1.01 * round.length).length };
  }

  if (typeof module !== "undefined") module.exports = { median, errorOf, scores };
  if (typeof document === "undefined") return;

  // ------------------------------------------------------------ drawing

  const LEFT = 52, RIGHT = 8, TOP = 20, BOTTOM = 20;

  function make(tag, attributes = {}, ...content) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...content);
    return made;
  }

  const parsed = make("div");
  parsed.innerHTML = "<svg></svg>";
  const SVG = parsed.firstChild.namespaceURI;

  function emptyPlot(label) {
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", label);
    return svg;
  }

  function draw(svg, tag, attributes, text = "") {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.textContent = text;
    svg.append(made);
    return made;
  }

  function short(value) {
    if (value && (value < 1e-3 || value >= 1e5)) return value.toExponential(2);
    return String(Number(value.toPrecision(3)));
  }

  /* An empty plot of a logarithmic quantity against the step; returns the places of steps and values. */
  function frame(svg, label, [first, last], values, height) {
    svg.replaceChildren();
    const width = Math.max(svg.parentNode.clientWidth, 200);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const [low, high] = [Math.min(...values) / 1.1, Math.max(...values) * 1.1];
    const x = (step) => LEFT + ((width - LEFT - RIGHT) * (step - first)) / (last - first || 1);
    const y = (value) => height - BOTTOM - ((height - TOP - BOTTOM) * Math.log(value / low)) / Math.log(high / low);
    draw(svg, "text", { x: 0, y: 13 }, label);
    draw(svg, "path", { d: `M${LEFT} ${TOP}V${height - BOTTOM}H${width - RIGHT}`, class: "explore-axis" });
    for (const value of [low * 1.1, high / 1.1])
      draw(svg, "text", { x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, short(value));
    for (const [step, anchor] of [[first, "start"], [last, "end"]])
      draw(svg, "text", { x: x(step), y: height - 5, "text-anchor": anchor }, `step ${Math.round(step)}`);
    return { x, y, line: (steps, shown, kind) => draw(svg, "path", { class: kind,
      d: "M" + steps.map((step, k) => `${x(step).toFixed(1)} ${y(shown[k]).toFixed(1)}`).join("L") }) };
  }

  /* Paint again when the place has another width. */
  function follow(place, paint) {
    let width = place.clientWidth;
    new ResizeObserver(() => {
      if (place.clientWidth === width) return;
      width = place.clientWidth;
      requestAnimationFrame(paint);
    }).observe(place);
  }

  function slider(id, label, low, high, value, act) {
    const input = make("input", { type: "range", id, min: low, max: high, value, step: 1 });
    input.addEventListener("input", () => act(Number(input.value)));
    return [make("label", { for: id }, label), input];
  }

  function button(label, act) {
    const made = make("button", { type: "button" }, label);
    made.addEventListener("click", act);
    return made;
  }

  // ------------------------------------------------------------ a run, step by step

  function stepper(place, data, id) {
    const { first, phases, series } = data;
    const last = first + phases.length - 1;
    const start = first + Math.max(phases.indexOf("C"), 0);
    let now = start;
    const plots = series.map(({ label }) => emptyPlot(`${label} against the step`));
    const said = make("output", { "aria-live": "polite", for: id });
    const [name, input] = slider(id, "step", first, last, now, go);
    const by = (change) => () => go(Math.min(Math.max(now + change, first), last));
    place.prepend(make("div", { class: "explore-panel" }, make("div", { class: "explore-plots" }, ...plots), name, input,
      make("div", { class: "explore-buttons" }, button("one step back", by(-1)), button("one step on", by(1)),
        button("to the break", () => go(start))), said));

    function paint() {
      const steps = Array.from(phases, (_, k) => first + k);
      series.forEach(({ label, values }, k) => {
        const { x, y, line } = frame(plots[k], label, [first, last], values, 105);
        const c = [...phases].map((phase, at) => (phase === "C" ? first + at : null)).filter((at) => at !== null);
        if (c.length) draw(plots[k], "rect", { class: "explore-phase", x: x(c[0]), y: TOP, height: 65,
          width: Math.max(x(c[c.length - 1]) - x(c[0]), 2) });
        line(steps, values, "explore-line");
        draw(plots[k], "path", { class: "explore-now", d: `M${x(now)} ${TOP}V85` });
        draw(plots[k], "circle", { class: "explore-dot", cx: x(now), cy: y(values[now - first]), r: 4 });
      });
    }

    function go(step) {
      now = step;
      input.value = step;
      const phase = phases[now - first];
      const numbers = series.map(({ label, values }) => `${label} ${short(values[now - first])}`).join(", ");
      const text = `Step ${now}${phase === "-" ? "" : `, phase ${phase}`}: ${numbers}.`;
      input.setAttribute("aria-valuetext", text);
      said.textContent = text;
      paint();
    }
    go(start);
    follow(place, paint);
  }

  // ------------------------------------------------------------ guesses of the next break

  const percent = (share) => `${Math.round(100 * share)} %`;

  function guesser(place, { step, norm, rounds }, id) {
    if (!rounds.length) return;
    const most = Math.ceil((1.3 * Math.max(...rounds.flatMap(({ length, clock, level }) => [length, clock, level]))) / 50) * 50;
    const answers = [];
    let answer = Math.round(most / 2), revealed = false;
    const svg = emptyPlot("weight norm");
    const said = make("output", { "aria-live": "polite", for: id });
    const [name, input] = slider(id, "", 1, most, answer, (value) => { answer = value; show(); });
    const act = button("", next);
    const table = make("table", {}, make("caption", {}, "How far off, as a share of the true length"),
      make("thead", {}, row("th", ["Passage", "You", "As long as before", "Free decay", "True steps"])));
    const body = make("tbody");
    table.append(body);
    table.hidden = true;
    place.prepend(make("div", { class: "explore-panel" }, make("div", { class: "explore-plots" }, svg), name, input,
      make("div", { class: "explore-buttons" }, act), said, table));

    function row(tag, texts) {
      return make("tr", {}, ...texts.map((text) => make(tag, tag === "th" ? { scope: "col" } : {}, text)));
    }

    function current() {
      return rounds[Math.min(answers.length - revealed, rounds.length - 1)];
    }

    function paint() {
      const round = current();
      const begins = rounds.map(({ begin }) => begin);
      const from = Math.max(step[0], round.begin - 4 * round.clock);
      const to = round.begin + most;
      const end = round.begin + (revealed ? round.length : 0);
      const seen = step.map((at, k) => [at, norm[k]]).filter(([at]) => at >= from && at <= end);
      const { x, y, line } = frame(svg, "weight norm", [from, to], norm, 190);
      const upright = (at, kind) => draw(svg, "path", { class: kind, d: `M${x(at)} ${TOP}V${190 - BOTTOM}` });
      if (revealed) {
        draw(svg, "rect", { class: "explore-phase", x: x(round.begin), y: TOP, height: 190 - TOP - BOTTOM,
          width: x(round.begin + round.not_before) - x(round.begin) });
        upright(round.begin + round.clock, "explore-clock");
        upright(round.begin + round.level, "explore-level");
      }
      line(seen.map(([at]) => at), seen.map(([, value]) => value), "explore-line");
      upright(round.begin + answer, "explore-now");
      const where = `${begins.indexOf(round.begin) + 1} of ${rounds.length}`;
      svg.setAttribute("aria-label", `Weight norm up to step ${Math.round(end)}; passage ${where}`);
    }

    function show() {
      name.textContent = `Your guess: the next break begins after ${answer} steps`;
      act.textContent = !revealed ? "that is my guess" : answers.length < rounds.length ? "next passage" : "play again";
      input.disabled = revealed;
      paint();
    }

    function next() {
      if (revealed && answers.length === rounds.length) {
        answers.length = 0;
        body.replaceChildren();
        table.hidden = true;
      } else if (!revealed) {
        const round = current();
        answers.push(answer);
        revealed = true;
        const { length } = round;
        body.append(row("td", [String(answers.length), ...[answer, round.clock, round.level].map((steps) =>
          percent(errorOf(steps, length))), String(length)]));
        table.hidden = false;
        said.textContent = sentence(round);
        return show();
      }
      revealed = false;
      said.textContent = "";
      show();
      input.focus();
    }

    function sentence({ length, clock, level, not_before }) {
      const bound = `no break before ${Math.round(not_before)} (shaded), if it takes the lowest level so far`;
      const first = `It began after ${length} steps. You said ${answer}; as long as before (dashed), ${Math.round(clock)}; ` +
        `free decay to the usual level (dotted), ${Math.round(level)}; the bound, ${bound}.`;
      const score = scores(rounds, answers);
      const all = answers.length < 2 ? "" : ` Median error so far: you ${percent(score.you)}, as long as before ` +
        `${percent(score.clock)}, free decay ${percent(score.level)}; the bound was kept in ${score.kept} of ` +
        `${answers.length}.`;
      return first + all;
    }
    show();
    follow(place, paint);
  }

  // ------------------------------------------------------------ every place of the page

  document.querySelectorAll(".explore:not([data-started])").forEach((place) => {
    place.dataset.started = "";
    const data = JSON.parse(place.querySelector("script[type='application/json']").textContent);
    const id = `explore-${document.querySelectorAll(".explore[data-started]").length}`;
    (place.classList.contains("explore-steps") ? stepper : guesser)(place, data, id);
  });
})();
