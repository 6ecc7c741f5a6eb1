/* The live simulator of this book: toy B of `periodic_lib.theory.toys` in JavaScript, and the page element that shows it.

   First part: the model and the judge of its regime, without a page; tests run it beside the library.
   Second part: the page element. One file without imports, because it is written into the page that shows it. */
"use strict";

(() => {
  // ------------------------------------------------------------ the model: `SphereToy`, one run

  const STREAM = { points: 1, batches: 2, start: 3 }; // what random numbers are used for

  /* Each shows its regime; they differ in one parameter from `periodic`. `speed` is in steps per frame. */
  const PRESETS = {
    converges: { lrWd: 1e-5, flipped: 0, speed: 100 },
    periodic: { lrWd: 10 ** -2.5, flipped: 0, speed: 20 },
    equilibrium: { lrWd: 10 ** -2.5, flipped: 0.25, speed: 20 },
  };

  const DEFAULTS = {
    lrWd: 1e-3, // learning rate times weight decay
    gain: 30,
    margin: 0.05,
    flipped: 0,
    batch: 4,
    eps: 0,
    seed: 0,
    points: 16,
    weightDecay: 0.1,
    elrStart: 0.02,
    heldElr: 0, // on the sphere: the effective learning rate at which the norm is held; 0: free
  };

  /* On the sphere; each shows what the effective learning rate decides. */
  const SPHERE_PRESETS = {
    settles: { heldElr: 0.1, seed: 3, speed: 10 },
    "to and fro": { heldElr: 0.22, seed: 3, speed: 10 },
    wanders: { heldElr: 0.5, seed: 3, speed: 10 },
  };

  function mix(hash) {
    hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
    hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
    return hash ^ (hash >>> 16);
  }

  /* Return a number from 0 to below 1 that depends on (seed, stream, counter) only; as `toys.random_numbers`. */
  function randomNumber(seed, stream, counter) {
    const start = mix((seed + Math.imul(stream, 0x9e3779b9)) | 0);
    return (mix((start + Math.imul(counter, 0x9e3779b9)) | 0) >>> 0) / 2 ** 32;
  }

  /* Return the point of the unit sphere at this height over the equator of axis 0. */
  function onSphere(height, turn) {
    const radius = Math.sqrt(1 - height * height);
    const azimuth = 2 * Math.PI * turn;
    return [height, radius * Math.cos(azimuth), radius * Math.sin(azimuth)];
  }

  function roundHalfToEven(value) {
    const rounded = Math.round(value);
    return rounded - value === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded;
  }

  const softplus = (value) => Math.max(value, 0) + Math.log1p(Math.exp(-Math.abs(value)));

  /* One batch-normalized neuron with three weights, trained by SGD with weight decay. After `step()`, `loss` (all
     points), `norm`, `elr`, `gradient` (effective gradient norm of the batch), `direction` and `angle` (angular
     update, radians) are those of the step just made, taken before its update. */
  class Toy {
    constructor(parameters) {
      this.steps = 0;
      this.direction = new Float64Array(3);
      this.change({ ...DEFAULTS, ...parameters });
      this.rate = this.lrWd / this.weightDecay;
      this.weights = this.#start();
      this.#hold();
    }

    /* On the sphere: give the weights the norm at which the effective learning rate is `heldElr`. */
    #hold() {
      if (!this.heldElr) return;
      const [w0, w1, w2] = this.weights;
      const factor = Math.sqrt(this.rate / this.heldElr) / Math.sqrt(w0 * w0 + w1 * w1 + w2 * w2);
      for (let k = 0; k < 3; k++) this.weights[k] *= factor;
    }

    /* Go on with other parameters; a new `lrWd` is a new weight decay, so that nothing jumps. */
    change(parameters) {
      Object.assign(this, parameters);
      if (this.rate) this.weightDecay = this.lrWd / this.rate;
      this.#placePoints();
      this.chosen = new Int32Array(this.batch).map((_, place) => place);
      if (this.weights) this.#hold();
    }

    #placePoints() {
      const wrong = roundHalfToEven(this.flipped * this.points);
      this.x = new Float64Array(3 * this.points);
      for (let i = 0; i < this.points; i++) {
        const draw = (k) => randomNumber(this.seed, STREAM.points, 2 * i + k);
        const point = onSphere(this.margin + (1 - this.margin) * draw(0), draw(1));
        this.x.set(i < wrong ? point.map((value) => -value) : point, 3 * i);
      }
    }

    #start() {
      const draw = (k) => randomNumber(this.seed, STREAM.start, k);
      const norm = Math.sqrt(this.rate / this.elrStart);
      return Float64Array.from(onSphere(2 * draw(0) - 1, draw(1)), (value) => value * norm);
    }

    #chooseBatch() {
      if (this.batch === this.points) return;
      for (let k = 0; k < this.batch; k++) {
        const drawn = randomNumber(this.seed, STREAM.batches, this.steps * this.points + k);
        this.chosen[k] = Math.floor(drawn * this.points);
      }
    }

    /* Return <x_i, u> times the gain. */
    score(i, u0, u1, u2) {
      return this.gain * (this.x[3 * i] * u0 + this.x[3 * i + 1] * u1 + this.x[3 * i + 2] * u2);
    }

    /* Return the loss on all points for a neuron's normalized weights. */
    lossAt(u0, u1, u2) {
      let sum = 0;
      for (let i = 0; i < this.points; i++) sum += softplus(-this.score(i, u0, u1, u2));
      return sum / this.points;
    }

    step() {
      const { weights, x, gain, batch, rate } = this;
      const [w0, w1, w2] = weights;
      const square = w0 * w0 + w1 * w1 + w2 * w2;
      const scale = Math.sqrt(square + this.eps);
      const u0 = w0 / scale, u1 = w1 / scale, u2 = w2 / scale;
      this.#chooseBatch();
      let d0 = 0, d1 = 0, d2 = 0; // minus the gradient on the sphere
      for (let k = 0; k < batch; k++) {
        const i = this.chosen[k];
        const miss = 1 / batch / (1 + Math.exp(this.score(i, u0, u1, u2)));
        d0 += miss * x[3 * i];
        d1 += miss * x[3 * i + 1];
        d2 += miss * x[3 * i + 2];
      }
      d0 *= gain;
      d1 *= gain;
      d2 *= gain;
      const radial = u0 * d0 + u1 * d1 + u2 * d2;
      const g0 = (u0 * radial - d0) / scale, g1 = (u1 * radial - d1) / scale, g2 = (u2 * radial - d2) / scale;
      this.loss = this.lossAt(u0, u1, u2);
      this.norm = Math.sqrt(square);
      this.elr = rate / square;
      this.gradient = this.norm * Math.sqrt(g0 * g0 + g1 * g1 + g2 * g2);
      const shrink = this.heldElr ? 1 : 1 - rate * this.weightDecay;
      weights[0] = shrink * w0 - rate * g0;
      weights[1] = shrink * w1 - rate * g1;
      weights[2] = shrink * w2 - rate * g2;
      this.#hold();
      this.angle = angleBetween(w0, w1, w2, weights[0], weights[1], weights[2]);
      this.direction[0] = w0 / this.norm;
      this.direction[1] = w1 / this.norm;
      this.direction[2] = w2 / this.norm;
      this.steps += 1;
    }
  }

  function angleBetween(a0, a1, a2, b0, b1, b2) {
    const c0 = a1 * b2 - a2 * b1, c1 = a2 * b0 - a0 * b2, c2 = a0 * b1 - a1 * b0;
    return Math.atan2(Math.sqrt(c0 * c0 + c1 * c1 + c2 * c2), a0 * b0 + a1 * b1 + a2 * b2);
  }

  // ------------------------------------------------------------ the regime: `periods`, step by step

  const MIN_RISE = 0.1; // of ln rho^2
  const BUDGET_BORDER = 0.53; // of the window budget
  const BUDGET_SPAN = 0.1; // of ln rho^2, that weight decay takes in its window
  const REGULAR = 0.7; // coefficient of variation of the spacings of breaks
  const NOISE_FACTOR = 8 * 1.4826; // robust standard deviations
  const RECORD = 20000; // steps of a run by which the chapters judge: without an event, the longest wait for a verdict

  function median(values) {
    const sorted = Float64Array.from(values).sort();
    const middle = sorted.length >> 1;
    return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  }

  /* A series of any length, of which every value, then every second, every fourth, ... is kept: at most 4096. */
  class Series {
    constructor() {
      this.length = 0;
      this.stride = 1;
      this.values = [];
    }

    push(value) {
      if (this.length++ % this.stride) return;
      this.values.push(value);
      if (this.values.length === 4096) {
        this.values = this.values.filter((_, place) => place % 2 === 0);
        this.stride *= 2;
      }
    }

    spread() {
      const middle = median(this.values);
      return median(this.values.map((value) => Math.abs(value - middle)));
    }
  }

  /* Judges a run from what it was shown, by the definitions of `periods`. */
  class Judge {
    constructor(lrWd) {
      this.lrWd = lrWd;
      this.levels = new Series(); // ln rho^2
      this.changes = new Series(); // of ln rho^2
      this.starts = []; // steps of the destabilizations
      this.least = MIN_RISE;
      this.checked = 0;
      this.falling = false;
      this.low = this.high = this.level = null;
    }

    get steps() {
      return this.levels.length;
    }

    observe({ norm }) {
      const level = 2 * Math.log(norm);
      if (this.steps) this.changes.push(level - this.level);
      this.level = level;
      this.#raiseThreshold();
      if (this.falling) this.#seekLow(level);
      else this.#seekHigh(level);
      this.levels.push(level);
    }

    /* Measurement noise must not pass as a rise. */
    #raiseThreshold() {
      if (this.steps < 1.1 * this.checked + 10) return;
      this.checked = this.steps;
      this.least = Math.max(MIN_RISE, NOISE_FACTOR * this.changes.spread());
    }

    #seekLow(level) {
      if (level < this.low) {
        this.#setLow(level);
      } else if (level - this.low >= this.least) {
        this.falling = false;
        this.high = level;
        this.starts.push(this.lowStep);
      }
    }

    #seekHigh(level) {
      if (this.high === null || level > this.high) {
        this.high = level;
      } else if (this.high - level >= this.least) {
        this.falling = true;
        this.#setLow(level);
      }
    }

    #setLow(level) {
      this.low = level;
      this.lowStep = this.steps;
    }

    get meanPeriod() {
      const count = this.starts.length - 1;
      return count > 0 ? (this.starts[count] - this.starts[0]) / count : null;
    }

    get regime() {
      const breaks = this.starts.length;
      if (!breaks && this.steps < this.#wait(1)) return "too early to say";
      if (this.#budget() >= BUDGET_BORDER) return "equilibrium";
      if (breaks >= 3) return this.#variation() < REGULAR ? "periodic" : "irregular breaks";
      if (breaks) return breaks === 1 ? "one break" : "two breaks";
      return this.steps < this.#wait(4) ? "too early to say" : "convergence"; // a period takes 2 / lrWd to 4 / lrWd
    }

    /* How much of what weight decay takes comes back within a window: the median over the second half. */
    #budget() {
      const { stride, values } = this.levels;
      const late = values.slice(Math.ceil((this.steps >> 1) / stride));
      const taken = -2 * Math.log1p(-this.lrWd) * stride; // from one kept value to the next
      const window = Math.min(Math.ceil(BUDGET_SPAN / taken - 1e-9), (late.length - 1) >> 1);
      if (window < 1) return 0;
      return median(late.slice(window).map((level, place) => 1 + (level - late[place]) / (taken * window)));
    }

    /* Coefficient of variation of the spacings between breaks. */
    #variation() {
      const spacings = this.starts.slice(1).map((start, place) => start - this.starts[place]);
      const mean = spacings.reduce((sum, one) => sum + one, 0) / spacings.length;
      return Math.sqrt(spacings.reduce((sum, one) => sum + (one - mean) ** 2, 0) / spacings.length) / mean;
    }

    #wait(decays) {
      return Math.min(Math.max(decays / this.lrWd, 200), RECORD); // steps; in 1 / lrWd of them rho^2 decays by e^2
    }
  }

  const SETTLED = 0.03; // loss, as `sphere.LOW_LOSS`
  const RECENT = 201; // steps of the median

  /* Judges a run on the sphere: has it settled in a valley? A change of the answer is a freezing or a melting. */
  class SphereJudge {
    constructor() {
      this.losses = [];
      this.steps = this.freezings = this.meltings = 0;
      this.settled = false;
    }

    observe({ loss }) {
      this.losses.push(loss);
      if (this.losses.length > RECENT) this.losses.shift();
      if (++this.steps % 50 || this.losses.length < RECENT) return;
      const settled = median(this.losses) < SETTLED;
      if (settled !== this.settled) this[settled ? "freezings" : "meltings"] += 1;
      this.settled = settled;
    }

    get regime() {
      if (this.steps < RECENT) return "too early to say";
      return this.settled ? "settled" : "wandering";
    }
  }

  const simulator = { PRESETS, SPHERE_PRESETS, DEFAULTS, Toy, Judge, SphereJudge, randomNumber };
  if (typeof module !== "undefined") module.exports = simulator;
  if (typeof document === "undefined") return;

  // ------------------------------------------------------------ what the plots show

  const BUCKETS = 600;
  const TRAIL = 800; // points
  const WINDOW = 16; // steps that are shown, in 1 / lrWd: some five periods
  const FRAME = 12; // milliseconds of simulation in a frame, at most

  /* The last steps in at most 600 buckets: ranges of norm and loss, and sums for the phase diagram. */
  class History {
    constructor(lrWd) {
      this.longest = Math.ceil(WINDOW / lrWd / BUCKETS); // steps of a bucket
      this.width = 1;
      this.buckets = [];
      this.marks = []; // steps at which parameters changed
    }

    push(step, { loss, norm, elr, gradient }) {
      let last = this.buckets[this.buckets.length - 1];
      if (!last || last.count >= this.width) {
        if (this.buckets.length === BUCKETS) this.#makeRoom();
        last = { step, count: 0, loss: [Infinity, 0], norm: [Infinity, 0], elr: 0, gradient: 0 };
        this.buckets.push(last);
      }
      widen(last.loss, loss, loss);
      widen(last.norm, norm, norm);
      last.count += 1;
      last.elr += Math.log(elr);
      last.gradient += gradient * gradient;
    }

    #makeRoom() {
      if (this.width >= this.longest) {
        this.buckets.shift();
        return;
      }
      this.width *= 2;
      this.buckets = this.buckets.filter((_, place) => place % 2 === 0).map((left, place) => {
        return joined(left, this.buckets[2 * place + 1]);
      });
    }

    range(name) {
      const range = [Infinity, 0];
      for (const bucket of this.buckets) widen(range, ...bucket[name]);
      return range;
    }

    /* Geometric means of the effective learning rate, and quadratic ones of the effective gradient norm: the norm
       grows in the buckets whose point lies above the line of balance. */
    path() {
      return this.buckets.map(({ elr, gradient, count }) => [Math.exp(elr / count), Math.sqrt(gradient / count)]);
    }
  }

  function widen(range, low, high) {
    if (low < range[0]) range[0] = low;
    if (high > range[1]) range[1] = high;
  }

  function joined(left, right) {
    if (!right) return left;
    widen(left.loss, ...right.loss);
    widen(left.norm, ...right.norm);
    for (const name of ["count", "elr", "gradient"]) left[name] += right[name];
    return left;
  }

  /* The directions of about the last period, oldest first. */
  class Trail {
    constructor(lrWd) {
      this.stride = Math.max(1, Math.round(2 / lrWd / TRAIL));
      this.points = [];
    }

    push(step, direction) {
      if (step % this.stride) return;
      if (this.points.length === TRAIL) this.points.shift();
      this.points.push([direction[0], direction[1], direction[2]]);
    }
  }

  // ------------------------------------------------------------ numbers as text

  const SUPERSCRIPT = { "-": "\u207b", 0: "\u2070", 1: "\u00b9", 2: "\u00b2", 3: "\u00b3", 4: "\u2074", 5: "\u2075",
    6: "\u2076", 7: "\u2077", 8: "\u2078", 9: "\u2079" };

  function inPowers(value) {
    const [digits, exponent] = value.toExponential(1).split("e");
    const power = "10" + String(Number(exponent)).replace(/./g, (character) => SUPERSCRIPT[character]);
    return Number(digits) === 1 ? power : `${Number(digits)}\u00b7${power}`;
  }

  function short(value) {
    if (value === 0) return "0";
    const plain = value >= 1e-3 && value < 1e4;
    return plain ? String(Number(value.toPrecision(2))) : inPowers(value);
  }

  const whole = (value) => Math.round(value).toLocaleString("en");

  // ------------------------------------------------------------ drawing

  const THEMES = {
    light: { text: "#323232", faint: "#d8d8d8", line: "#0173b2", accent: "#c44e00", page: "#ffffff" },
    dark: { text: "#ced6dd", faint: "#48566b", line: "#56b4e9", accent: "#ff9d5c", page: "#14181e" },
  };

  /* From the valley to the heights; dark to light, distinct without colour. */
  const COLORS = [[22, 32, 74], [38, 84, 124], [62, 134, 138], [132, 174, 132], [214, 208, 150], [252, 242, 216]];

  function colorAt(share) {
    const place = Math.min(Math.max(share, 0), 0.9999) * (COLORS.length - 1);
    const left = Math.floor(place);
    return COLORS[left].map((value, k) => value + (place - left) * (COLORS[left + 1][k] - value));
  }

  /* A picture whose coordinates are CSS pixels, sharp on any screen. */
  class Picture {
    constructor(canvas) {
      this.canvas = canvas;
      this.context = canvas.getContext("2d");
    }

    clear(theme) {
      const { canvas, context } = this;
      const density = window.devicePixelRatio || 1;
      this.width = canvas.clientWidth;
      this.height = canvas.clientHeight;
      const wanted = [Math.round(this.width * density), Math.round(this.height * density)];
      if (canvas.width !== wanted[0] || canvas.height !== wanted[1]) [canvas.width, canvas.height] = wanted;
      context.setTransform(density, 0, 0, density, 0, 0);
      context.clearRect(0, 0, this.width, this.height);
      context.font = "12px sans-serif";
      context.lineJoin = "round";
      this.theme = theme;
    }

    line(points, color, width = 1.4, dash = []) {
      const { context } = this;
      context.beginPath();
      for (const [x, y] of points) context.lineTo(x, y);
      Object.assign(context, { strokeStyle: color, lineWidth: width });
      context.setLineDash(dash);
      context.stroke();
      context.setLineDash([]);
    }

    text(content, x, y, align = "center", baseline = "middle") {
      Object.assign(this.context, { fillStyle: this.theme.text, textAlign: align, textBaseline: baseline });
      this.context.fillText(content, x, y);
    }

    dot(x, y, radius, color) {
      const { context } = this;
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      Object.assign(context, { fillStyle: color, strokeStyle: this.theme.page, lineWidth: 1.5 });
      context.fill();
      context.stroke();
    }
  }

  /* Return positions along an axis from `from` to `to`, and the values to write on it. */
  function logarithmicScale([low, high], from, to) {
    const [start, end] = high / low < 1.5 ? [low / 1.5, high * 1.5] : [low / 1.1, high * 1.1];
    const span = Math.log(end / start);
    const at = (value) => from + ((to - from) * Math.log(value / start)) / span;
    const decades = span / Math.LN10;
    const digits = decades < 0.7 ? [1, 1.5, 2, 3, 4, 5, 7] : decades < 2 ? [1, 2, 5] : [1];
    const every = Math.ceil(decades / 6);
    const ticks = [];
    for (let power = Math.floor(Math.log10(start)); power <= Math.log10(end); power++) {
      for (const digit of digits) {
        const value = Number(`${digit}e${power}`);
        if (value >= start && value <= end && power % every === 0) ticks.push([at(value), short(value)]);
      }
    }
    return { at, ticks };
  }

  function linearScale([low, high], from, to) {
    const rough = (high - low) / (to - from < 150 ? 2 : 4) || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const apart = Math.max(1, [1, 2, 5, 10].find((digit) => digit * power >= rough) * power);
    const at = (value) => from + ((to - from) * (value - low)) / (high - low || 1);
    const ticks = [];
    for (let value = Math.ceil(low / apart) * apart; value <= high; value += apart) ticks.push([at(value), whole(value)]);
    return { at, ticks };
  }

  const NARROW = 220; // pixels of a plot, as two are beside each other on a phone
  const FRAME_LEFT = 44, FRAME_TOP = 24, FRAME_RIGHT = 14, FRAME_BOTTOM = 38;

  /* Draw the axes of a plot and return its scales. */
  function drawAxes(picture, title, xLabel, xScaleOf, yScaleOf) {
    const { context, theme, width, height } = picture;
    const right = width - FRAME_RIGHT, bottom = height - FRAME_BOTTOM;
    const x = xScaleOf(FRAME_LEFT, right), y = yScaleOf(bottom, FRAME_TOP);
    for (const [place] of x.ticks) picture.line([[place, FRAME_TOP], [place, bottom]], theme.faint, 0.5);
    for (const [place] of y.ticks) picture.line([[FRAME_LEFT, place], [right, place]], theme.faint, 0.5);
    picture.line([[FRAME_LEFT, FRAME_TOP], [FRAME_LEFT, bottom], [right, bottom]], theme.text, 1);
    for (const [place, label] of x.ticks) {
      const half = context.measureText(label).width / 2;
      picture.text(label, Math.min(place, width - half), bottom + 12);
    }
    for (const [place, label] of y.ticks) picture.text(label, FRAME_LEFT - 5, place, "right");
    picture.text(xLabel, (FRAME_LEFT + right) / 2, height - 8);
    picture.text(title, 2, 9, "left");
    context.save();
    context.beginPath();
    context.rect(FRAME_LEFT, FRAME_TOP, right - FRAME_LEFT, bottom - FRAME_TOP);
    context.clip(); // until the caller restores
    return { x, y };
  }

  function drawSeries(picture, history, name, title) {
    const { buckets, marks } = history;
    const end = buckets.length ? buckets[buckets.length - 1].step : 0;
    const span = [buckets.length ? buckets[0].step : 0, Math.max(end, 10)];
    const range = buckets.length ? history.range(name) : [0.1, 1];
    const { x, y } = drawAxes(picture, title, "step",
      (from, to) => linearScale(span, from, to), (from, to) => logarithmicScale(range, from, to));
    for (const mark of marks) {
      picture.line([[x.at(mark), 0], [x.at(mark), picture.height]], picture.theme.accent, 1, [2, 3]);
    }
    const points = buckets.flatMap((bucket) => bucket[name].map((value) => [x.at(bucket.step), y.at(value)]));
    picture.line(points, picture.theme.line);
    picture.context.restore();
  }

  function drawPhases(picture, history, lrWd) {
    const path = history.path();
    const rangeOf = (k) => path.reduce((range, point) => (widen(range, point[k], point[k]), range), [Infinity, 0]);
    const ranges = path.length ? [rangeOf(0), rangeOf(1)] : [[0.01, 1], [0.01, 1]];
    const balance = (1 - lrWd) * Math.tan(Math.acos(1 - lrWd)); // effective learning rate times gradient norm
    const ends = [ranges[0][0] / 2, ranges[0][1] * 2];
    widen(ranges[1], balance / ranges[0][1], balance / ranges[0][1]);
    const title = picture.width < NARROW ? "gradient (dashed: balance)" : "effective gradient norm (dashed: balance)";
    const { x, y } = drawAxes(picture, title, "effective learning rate",
      (from, to) => logarithmicScale(ranges[0], from, to), (from, to) => logarithmicScale(ranges[1], from, to));
    const { line, accent } = picture.theme;
    picture.line(ends.map((elr) => [x.at(elr), y.at(balance / elr)]), accent, 1.4, [6, 4]);
    const points = path.map(([elr, gradient]) => [x.at(elr), y.at(gradient)]);
    picture.context.globalAlpha = 0.55;
    picture.line(points, line, 1);
    picture.context.globalAlpha = 1;
    picture.context.restore();
    if (points.length) picture.dot(...points[points.length - 1], 5, line);
  }

  /* Return the extremes of the loss over the sphere, from points spread evenly by the golden ratio. */
  function lossRange(toy, points = 4000) {
    const range = [Infinity, 0];
    for (let k = 0; k < points; k++) {
      const loss = toy.lossAt(...onSphere(1 - (2 * k + 1) / points, k * 0.6180339887498949));
      widen(range, loss, loss);
    }
    return range;
  }

  /* The unit sphere, seen from `yaw` and `pitch` (radians); straight at axis 0, where the valley is, if both are 0. */
  class Sphere {
    constructor() {
      this.yaw = 0.5;
      this.pitch = 0.35;
      this.forget();
      this.map = document.createElement("canvas");
      this.turn(0, 0);
    }

    /* Another loss is to be painted. */
    forget() {
      this.range = null;
      this.stale = true;
    }

    turn(yaw, pitch) {
      this.yaw += yaw;
      this.pitch = Math.min(Math.max(this.pitch + pitch, -1.5), 1.5);
      const [cy, sy, cp, sp] = [Math.cos(this.yaw), Math.sin(this.yaw), Math.cos(this.pitch), Math.sin(this.pitch)];
      this.right = [-sy, cy, 0];
      this.up = [-sp * cy, -sp * sy, cp];
      this.toward = [cp * cy, cp * sy, sp];
      this.stale = true;
    }

    /* Paint the loss, in logarithmic colours between its extremes. */
    paint(toy, size) {
      const { right, up, toward, map } = this;
      const values = new Float64Array(size * size).fill(NaN);
      this.range ||= lossRange(toy);
      for (let row = 0; row < size; row++) {
        for (let column = 0; column < size; column++) {
          const a = ((column + 0.5) / size) * 2.04 - 1.02, b = 1.02 - ((row + 0.5) / size) * 2.04;
          const flat = a * a + b * b;
          if (flat > 1.08) continue;
          const shrunk = flat > 1 ? 1 / Math.sqrt(flat) : 1; // a rim that is cut off when the map is drawn
          const c = Math.sqrt(Math.max(0, 1 - flat));
          const at = (k) => (a * right[k] + b * up[k]) * shrunk + c * toward[k];
          values[row * size + column] = toy.lossAt(at(0), at(1), at(2));
        }
      }
      map.width = map.height = size;
      map.getContext("2d").putImageData(this.#colored(values, size), 0, 0);
      this.stale = false;
    }

    #colored(values, size) {
      const image = new ImageData(size, size);
      const [low, high] = this.range.map(Math.log);
      values.forEach((loss, place) => {
        if (Number.isNaN(loss)) return;
        image.data.set([...colorAt((Math.log(loss) - low) / (high - low)), 255], 4 * place);
      });
      return image;
    }

    draw(picture, toy, trail) {
      const { context, theme, width, height } = picture;
      const narrow = width < NARROW;
      const radius = Math.min(narrow ? width - 8 : width - 90, height - 34) / 2;
      const x = narrow ? width / 2 : radius + 12, y = 24 + radius;
      if (this.stale) this.paint(toy, 160);
      context.save();
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      context.clip();
      context.drawImage(this.map, x - 1.02 * radius, y - 1.02 * radius, 2.04 * radius, 2.04 * radius);
      context.restore();
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      Object.assign(context, { strokeStyle: theme.text, lineWidth: 0.5 });
      context.stroke();
      const seen = (point) => {
        const along = (axis) => point[0] * axis[0] + point[1] * axis[1] + point[2] * axis[2];
        return [x + radius * along(this.right), y - radius * along(this.up), along(this.toward)];
      };
      this.#drawTrail(picture, trail.points.map(seen));
      const [nowX, nowY, depth] = seen(toy.steps ? toy.direction : toy.weights.map((w) => w / Math.hypot(...toy.weights)));
      context.globalAlpha = depth < 0 ? 0.45 : 1;
      picture.dot(nowX, nowY, 6, "#e8384f");
      context.globalAlpha = 1;
      picture.text(narrow ? "loss on the sphere" : "loss on the sphere of directions", 2, 9, "left");
      if (!narrow) this.#drawLegend(picture, x + radius + 16, y, radius * 0.8, theme);
    }

    /* Older thirds fainter. */
    #drawTrail(picture, points) {
      const third = Math.ceil(points.length / 3);
      [0.35, 0.6, 0.9].forEach((strength, part) => {
        picture.context.globalAlpha = strength;
        picture.line(points.slice(Math.max(0, part * third - 1), (part + 1) * third), "#ff5d73", 1.5);
      });
      picture.context.globalAlpha = 1;
    }

    #drawLegend(picture, x, y, half, theme) {
      const { context } = picture;
      const paint = context.createLinearGradient(0, y + half, 0, y - half);
      COLORS.forEach((color, k) => paint.addColorStop(k / (COLORS.length - 1), `rgb(${color})`));
      context.fillStyle = paint;
      context.fillRect(x, y - half, 12, 2 * half);
      context.strokeStyle = theme.text;
      context.lineWidth = 0.5;
      context.strokeRect(x, y - half, 12, 2 * half);
      const { ticks } = logarithmicScale(this.range.map((value, k) => (k ? value / 1.1 : value * 1.1)), y + half, y - half);
      for (const [place, label] of ticks) picture.text(label, x + 17, place, "left");
    }
  }

  // ------------------------------------------------------------ the page element

  const power = (position) => 10 ** position;

  const SLIDERS = [
    { name: "lrWd", label: "learning rate \u00d7 weight decay", low: -5, high: -0.5, by: 0.1, value: power, position: Math.log10 },
    { name: "gain", label: "head gain", low: 5, high: 50, by: 1 },
    { name: "margin", label: "margin", low: 0, high: 0.5, by: 0.05 },
    { name: "flipped", label: "flipped labels", low: 0, high: 0.5, by: 0.0625, show: (value) => `${whole(value * 16)} of 16` },
    { name: "batch", label: "batch size", low: 1, high: 16, by: 1 },
    { name: "eps", label: "BN epsilon", low: -6.25, high: 1, by: 0.25,
      value: (position) => (position < -6 ? 0 : 10 ** position), position: (eps) => (eps ? Math.log10(eps) : -6.25) },
    { name: "speed", label: "steps per frame", low: 0, high: 3.7, by: 0.1,
      value: (position) => Number((10 ** position).toPrecision(position < 1 ? 1 : 2)), position: Math.log10 },
  ];

  const ELR_SLIDER = { name: "heldElr", label: "effective learning rate", low: -2, high: 1, by: 0.05, value: power,
    position: Math.log10 };

  const PLOTS = {
    sphere: "Loss on the sphere of weight directions, with the path of the weights. Arrow keys rotate it.",
    loss: "Training loss against step",
    norm: "Weight norm against step",
    phases: "Phase diagram: effective gradient norm against effective learning rate, with the line of balance",
  };

  const READINGS = { regime: "regime", count: "breaks", period: "mean period", step: "step",
    loss: "training loss", norm: "weight norm" };

  const MODES = { // what the element's data-mode asks for; `first` is the preset at the start
    brief: { // one preset, one slider
      presets: { periodic: PRESETS.periodic }, first: "periodic", plots: ["sphere", "norm"],
      readings: { count: "breaks", period: "mean period", regime: "regime" },
      sliders: [{ ...SLIDERS[0], low: -4, high: -1 }],
    },
    free: { presets: PRESETS, first: "periodic", plots: Object.keys(PLOTS), readings: READINGS, sliders: SLIDERS },
    sphere: {
      presets: SPHERE_PRESETS, first: "to and fro", plots: ["sphere", "loss"],
      readings: { regime: "state", count: "settled", period: "left again", step: "step", loss: "training loss",
        norm: "weight norm" },
      sliders: [ELR_SLIDER, ...SLIDERS.filter(({ name }) => !["lrWd", "eps"].includes(name))],
    },
  };

  const STATUS_WAIT = 4000; // milliseconds from one spoken status to the next, at least
  const READING_WAIT = 200;

  function element(tag, attributes = {}, ...content) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...content);
    return made;
  }

  class Simulator {
    constructor(root, number) {
      this.root = root;
      this.id = `simulator-${number}`;
      this.sphere = new Sphere();
      this.mode = MODES[root.dataset.mode] || MODES.free;
      this.parameters = { ...DEFAULTS, ...this.mode.presets[this.mode.first] };
      this.playing = !window.matchMedia("(prefers-reduced-motion: reduce)").matches;
      this.visible = false;
      this.#build();
      this.#watch();
      this.restart();
      this.play(this.playing);
      this.#say();
    }

    // ---- building

    #build() {
      const panel = element("div", { class: "simulator-panel" });
      panel.append(this.#buttons(), this.#readings(), this.#plots(), this.#sliders());
      this.status = element("p", { class: "simulator-status", "aria-live": "polite" });
      panel.append(this.status);
      this.root.prepend(panel);
      for (const picture of this.root.querySelectorAll("img")) picture.hidden = true;
    }

    #button(label, act, attributes = {}) {
      const button = element("button", { type: "button", ...attributes }, label);
      button.addEventListener("click", act);
      return button;
    }

    #buttons() {
      const { presets, first } = this.mode;
      this.presets = Object.keys(presets).map((name) =>
        this.#button(name, () => this.choose(name), { "aria-pressed": String(name === first) }));
      this.playButton = this.#button("", () => this.play(!this.playing));
      const step = this.#button("one step", () => this.stepOnce());
      const restart = this.#button("restart", () => this.restart());
      const seed = this.seed = element("input", { type: "number", id: `${this.id}-seed`, min: 0, max: 9999, step: 1, value: 0 });
      seed.addEventListener("change", () => {
        this.parameters.seed = Math.min(Math.max(Math.round(Number(seed.value)) || 0, 0), 9999);
        this.restart();
      });
      if (this.mode === MODES.brief) {
        return element("div", { class: "simulator-buttons", role: "group", "aria-label": "Run" }, this.playButton, restart);
      }
      return element("div", { class: "simulator-buttons" },
        element("div", { role: "group", "aria-label": "Regimes" }, ...this.presets),
        element("div", { role: "group", "aria-label": "Run" }, this.playButton, step, restart,
          element("span", {}, element("label", { for: seed.id }, "seed"), " ", seed)));
    }

    #readings() {
      this.readings = {};
      const list = element("dl", { class: "simulator-readings simple" });
      for (const [name, label] of Object.entries(this.mode.readings)) {
        this.readings[name] = element("dd", { "data-reading": name });
        list.append(element("div", {}, element("dt", {}, label), this.readings[name]));
      }
      return list;
    }

    #plots() {
      this.pictures = {};
      const plots = element("div", { class: "simulator-plots" });
      for (const name of this.mode.plots) {
        const label = PLOTS[name];
        const canvas = element("canvas", { role: "img", "aria-label": label, "data-plot": name });
        this.pictures[name] = new Picture(canvas);
        plots.append(canvas);
      }
      this.#makeRotatable(this.pictures.sphere.canvas);
      return plots;
    }

    #makeRotatable(canvas) {
      canvas.tabIndex = 0;
      const turn = (yaw, pitch) => {
        this.sphere.turn(yaw, pitch);
        this.request();
      };
      const keys = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] };
      canvas.addEventListener("keydown", (event) => {
        if (!keys[event.key]) return;
        event.preventDefault();
        turn(...keys[event.key]);
      });
      canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
      canvas.addEventListener("pointermove", (event) => {
        if (canvas.hasPointerCapture(event.pointerId)) turn(-event.movementX / 100, event.movementY / 100);
      });
    }

    #sliders() {
      this.inputs = {};
      const sliders = element("div", { class: "simulator-sliders" });
      for (const slider of this.mode.sliders) {
        const id = `${this.id}-${slider.name}`;
        const { low: min, high: max, by: step } = slider;
        const input = element("input", { type: "range", id, min, max, step });
        const output = element("output", { for: id });
        const valueOf = slider.value || Number;
        input.addEventListener("input", () => this.change(slider.name, valueOf(Number(input.value))));
        this.inputs[slider.name] = { ...slider, input, output };
        sliders.append(element("div", {}, element("label", { for: id }, slider.label), output, input));
      }
      return sliders;
    }

    #watch() {
      new IntersectionObserver((entries) => {
        this.visible = entries[entries.length - 1].isIntersecting;
        this.request();
      }).observe(this.root.querySelector(".simulator-plots"));
      new ResizeObserver(() => this.request()).observe(this.root);
      const theme = new MutationObserver(() => this.request());
      theme.observe(document.documentElement, { attributeFilter: ["data-theme"] });
    }

    // ---- what a reader can do

    choose(name) {
      Object.assign(this.parameters, DEFAULTS, this.mode.presets[name]);
      this.#press(name);
      this.restart();
    }

    restart() {
      this.toy = new Toy(this.parameters);
      this.#forget();
      this.#showParameters();
      this.request();
    }

    /* Go on from the present weights with another value; what was judged and plotted of another `lrWd` is dropped. */
    change(name, value) {
      this.parameters[name] = value;
      this.#showParameters();
      if (name === "speed") return;
      this.#press(null);
      this.toy.change({ [name]: value });
      if (name === "lrWd") this.#forget();
      else this.history.marks.push(this.toy.steps);
      if (name !== "heldElr") this.judge = this.#newJudge();
      this.sphere.forget();
      this.request();
    }

    play(playing) {
      this.playing = playing;
      this.playButton.textContent = playing ? "pause" : "play";
      this.request();
    }

    stepOnce() {
      this.play(false);
      this.#advance(1);
    }

    #press(chosen) {
      for (const button of this.presets) button.setAttribute("aria-pressed", String(button.textContent === chosen));
    }

    #newJudge() {
      return this.mode === MODES.sphere ? new SphereJudge() : new Judge(this.parameters.lrWd);
    }

    #forget() {
      const { lrWd } = this.parameters;
      this.judge = this.#newJudge();
      this.history = new History(lrWd);
      this.trail = new Trail(lrWd);
      this.sphere.forget();
    }

    #showParameters() {
      for (const { name, input, output, position = Number, show = short } of Object.values(this.inputs)) {
        const value = this.parameters[name];
        input.value = position(value);
        output.textContent = show(value);
        input.setAttribute("aria-valuetext", show(value));
      }
      this.seed.value = this.parameters.seed;
    }

    // ---- frames

    request() {
      if (this.requested || !this.visible) return;
      this.requested = true;
      requestAnimationFrame(() => {
        this.requested = false;
        if (!this.visible) return;
        if (this.playing) this.#advance(this.parameters.speed);
        this.#draw();
        if (this.playing) this.request();
      });
    }

    #advance(steps) {
      const { toy, judge, history, trail } = this;
      const end = performance.now() + FRAME;
      for (let made = 0; made < steps; made++) {
        toy.step();
        judge.observe(toy);
        history.push(toy.steps, toy);
        trail.push(toy.steps, toy.direction);
        if (made % 128 === 127 && performance.now() > end) break;
      }
    }

    #draw() {
      const { pictures, history, toy } = this;
      const theme = THEMES[document.documentElement.dataset.theme === "dark" ? "dark" : "light"];
      for (const picture of Object.values(pictures)) picture.clear(theme);
      this.sphere.draw(pictures.sphere, toy, this.trail);
      if (pictures.loss) drawSeries(pictures.loss, history, "loss", "training loss");
      if (pictures.norm) drawSeries(pictures.norm, history, "norm", "weight norm");
      if (pictures.phases) drawPhases(pictures.phases, history, toy.lrWd);
      this.#read();
      this.statusTimer ||= setTimeout(() => {
        this.statusTimer = 0;
        this.#say();
      }, STATUS_WAIT);
    }

    // ---- words

    #read() {
      const now = performance.now();
      if (this.playing && now < this.readAt + READING_WAIT) return;
      this.readAt = now;
      const { judge, toy } = this;
      const [count, period] = this.#events();
      const texts = { regime: judge.regime, count, period, step: whole(toy.steps) };
      for (const name of ["loss", "norm"]) texts[name] = toy.steps ? short(toy[name]) : "\u2013";
      for (const [name, place] of Object.entries(this.readings)) place.textContent = texts[name];
    }

    /* Return what is counted: breaks and the period between them, or how often a run has settled and left again. */
    #events() {
      const { judge } = this;
      if (judge instanceof SphereJudge) return [judge.freezings, judge.meltings].map((count) => `${whole(count)} times`);
      const period = judge.meanPeriod;
      return [whole(judge.starts.length), period ? `${whole(period)} steps` : "\u2013"];
    }

    /* Say the state in one sentence; while it runs only if the regime changed, or now and then. */
    #say() {
      const { judge, toy } = this;
      const regime = judge.regime;
      const now = performance.now();
      if (this.playing && regime === this.said && now < this.saidAt + 5 * STATUS_WAIT) return;
      this.said = regime;
      this.saidAt = now;
      this.status.textContent = this.#sentence(regime);
      if (!toy.steps) return;
      for (const name of ["loss", "norm"].filter((plot) => this.pictures[plot])) {
        const [low, high] = this.history.range(name).map(short);
        const label = `${PLOTS[name]}: now ${short(toy[name])}, between ${low} and ${high} in the plot`;
        this.pictures[name].canvas.setAttribute("aria-label", label);
      }
      if (!this.pictures.phases) return;
      const place = `now ${short(toy.elr)} and ${short(toy.gradient)}`;
      this.pictures.phases.canvas.setAttribute("aria-label", `${PLOTS.phases}: ${place}`);
    }

    #sentence(regime) {
      const { judge, toy } = this;
      if (!toy.steps) return "Ready to simulate.";
      if (judge instanceof SphereJudge) {
        const [settled, left] = this.#events();
        return `State: ${regime}; settled ${settled}, left again ${left}, in ${whole(judge.steps)} steps; ` +
          `training loss ${short(toy.loss)}, effective learning rate ${short(toy.elr)}.`;
      }
      const count = judge.starts.length;
      const period = judge.meanPeriod ? `, one every ${whole(judge.meanPeriod)} steps` : "";
      const events = `${whole(count)} break${count === 1 ? "" : "s"} in ${whole(judge.steps)} steps${period}`;
      return `Regime: ${regime}; ${events}; training loss ${short(toy.loss)}, weight norm ${short(toy.norm)}.`;
    }
  }

  document.querySelectorAll(".simulator:not([data-started])").forEach((root, place) => {
    root.dataset.started = "";
    new Simulator(root, document.querySelectorAll("[data-started]").length + place);
  });
})();
