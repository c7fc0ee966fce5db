// Charts of the last two minutes on a canvas each: lines, or areas on top of each other.

const SPAN_S = 120;
export const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/** A chart in a card of its own.
 * @param {HTMLElement} parent where the card goes
 * @param {{title: string, unit?: string, log?: boolean, stack?: boolean, steps?: boolean,
 *          floor?: number, optional?: boolean}} options ``optional``: hidden while it is empty
 */
export class Chart {
  constructor(parent, options) {
    this.options = options;
    this.series = new Map(); // name -> [[seconds, value], ...]
    this.mark = null; // a value to compare with
    const card = (this.card = parent.appendChild(document.createElement("div")));
    card.className = "chart";
    const title = card.appendChild(document.createElement("h2"));
    title.append(options.title);
    this.value = title.appendChild(document.createElement("output"));
    this.canvas = card.appendChild(document.createElement("canvas"));
    this.canvas.setAttribute("role", "img");
    this.names = card.appendChild(document.createElement("p"));
  }

  clear() {
    this.series.clear();
  }

  add(name, time, value) {
    if (!this.series.has(name)) this.series.set(name, []);
    const points = this.series.get(name);
    points.push([time, Number.isFinite(value) ? value : null]);
    while (points.length && points[0][0] < time - SPAN_S) points.shift();
  }

  get count() {
    return [...this.series.values()].reduce((sum, points) => sum + points.length, 0);
  }

  draw(now) {
    this.card.hidden = Boolean(this.options.optional) && !this.count;
    const ratio = window.devicePixelRatio || 1;
    const width = this.canvas.clientWidth;
    const height = this.canvas.clientHeight;
    if (!width) return;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const style = getComputedStyle(document.documentElement);
    const faint = style.getPropertyValue("--faint");
    const line = style.getPropertyValue("--line");
    const lines = this.options.stack ? stacked(this.series) : [...this.series.values()];
    const [low, high] = this.range(lines);
    const up = (value) => (this.options.log ? Math.log10(Math.max(value, 1e-9)) : value);
    const left = 44;
    const x = (time) => left + ((time - now + SPAN_S) / SPAN_S) * (width - left - 4);
    const y = (value) =>
      height - 6 - ((up(value) - up(low)) / (up(high) - up(low))) * (height - 14);

    pen.font = "11px system-ui, 'DejaVu Sans', sans-serif";
    pen.textBaseline = "middle";
    for (const value of this.ticks(low, high)) {
      pen.strokeStyle = line;
      pen.beginPath();
      pen.moveTo(left, y(value));
      pen.lineTo(width, y(value));
      pen.stroke();
      pen.fillStyle = faint;
      pen.textAlign = "right";
      pen.fillText(short(value), left - 5, y(value));
    }
    pen.save();
    pen.beginPath();
    pen.rect(left, 0, width - left, height);
    pen.clip();
    if (this.mark !== null && this.mark >= low && this.mark <= high) {
      pen.strokeStyle = faint;
      pen.setLineDash([4, 4]);
      pen.beginPath();
      pen.moveTo(left, y(this.mark));
      pen.lineTo(width, y(this.mark));
      pen.stroke();
      pen.setLineDash([]);
    }
    for (let index = lines.length - 1; index >= 0; index--) {
      const colour = COLOURS[index % COLOURS.length];
      const points = lines[index].filter((point) => point[1] !== null);
      if (!points.length) continue;
      pen.strokeStyle = pen.fillStyle = colour;
      pen.lineWidth = 1.5;
      pen.beginPath();
      points.forEach(([time, value], at) => {
        if (at === 0) return pen.moveTo(x(time), y(value));
        if (this.options.steps) pen.lineTo(x(time), y(points[at - 1][1]));
        pen.lineTo(x(time), y(value));
      });
      if (this.options.stack) {
        pen.lineTo(x(points[points.length - 1][0]), y(low));
        pen.lineTo(x(points[0][0]), y(low));
        pen.fill();
      } else pen.stroke();
      if (points.length === 1) pen.fillRect(x(points[0][0]) - 1, y(points[0][1]) - 1, 3, 3);
    }
    pen.restore();
    this.tell();
  }

  range(lines) {
    const values = lines.flat().map((point) => point[1]).filter((value) => value !== null);
    if (this.options.log) {
      const found = values.filter((value) => value > 0);
      const low = Math.floor(Math.log10(Math.min(...found, this.mark ?? 0.1, 0.1)));
      const high = Math.ceil(Math.log10(Math.max(...found, 10 ** (low + 1))));
      return [10 ** Math.max(low, -9), 10 ** Math.min(Math.max(high, low + 1), 9)];
    }
    const low = this.options.floor ?? Math.min(...values, Infinity);
    let high = Math.max(...values, -Infinity);
    if (this.options.stack && values.length > 50)  // one late frame must not flatten all others
      high = Math.min(high, 1.3 * values.sort((a, b) => a - b)[Math.floor(0.98 * values.length)]);
    if (!values.length) return [0, 1];
    const room = Math.max(high - low, Math.abs(high) * 0.05, 1e-6);
    return [this.options.floor ?? low - 0.1 * room, high + 0.12 * room];
  }

  ticks(low, high) {
    if (this.options.log) {
      const found = [];
      for (let power = Math.round(Math.log10(low)); power <= Math.log10(high) + 0.01; power++)
        found.push(10 ** power);
      return found;
    }
    const rough = (high - low) / 3;
    const base = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((each) => each * base).find((each) => each >= rough);
    const found = [];
    for (let value = Math.ceil(low / step) * step; value <= high; value += step) found.push(value);
    return found;
  }

  // The newest values in words, also for whoever cannot see the picture.
  tell() {
    const newest = [...this.series].map(([name, points]) => [name, points.at(-1)?.[1] ?? null]);
    const words = newest.map(([name, value]) =>
      this.options.stack && !value ? "" : `${name} ${this.say(value)}`,
    );
    const known = newest.map(([, value]) => value).filter((value) => value !== null);
    const total = this.options.stack ? known.reduce((sum, value) => sum + value, 0) : known[0];
    this.value.textContent = known.length ? this.say(total) : "–";
    this.canvas.setAttribute("aria-label", `${this.options.title}: ${words.filter(Boolean).join(", ")}`);
    if (newest.length < 2 && !this.options.stack) return;
    this.names.replaceChildren(
      ...words.flatMap((text, index) => {
        if (!text) return [];
        const span = document.createElement("span");
        span.textContent = `■ ${text}`;
        span.style.color = COLOURS[index % COLOURS.length];
        return [span, " "]; // where lines may be broken
      }),
    );
  }

  say(value) {
    return value === null ? "–" : `${short(value)}${this.options.unit ?? ""}`;
  }
}

/** Each series added to those before it, at the times of the newest ones. */
function stacked(series) {
  const sums = new Map();
  return [...series.values()].map((points) =>
    points.map(([time, value]) => {
      sums.set(time, (sums.get(time) ?? 0) + (value ?? 0));
      return [time, sums.get(time)];
    }),
  );
}

/** A number in few characters. */
export function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 0.001 || size >= 1e5) return value.toExponential(0);
  return String(Number(value.toPrecision(size < 1 ? 2 : 3)));
}
